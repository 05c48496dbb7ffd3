"""What the environment sets for requests: proxies, certificates, user names; and messages about what is wrong with it.

No message shows a password: of a proxy only host and port, of a netrc file only its path and the number of a line.
"""

from __future__ import annotations

import netrc
import os
import re
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from requests.utils import select_proxy
from urllib3.util.ssl_ import create_urllib3_context

from .mirror_stream import SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Proxy(NamedTuple):
    """A proxy, without its user name and password, and the variable that names it."""

    address: str  # with its scheme if that is neither http nor https
    variable: str

    @property
    def has_unknown_scheme(self) -> bool:
        """Whether requests does not know how to use it."""
        return "://" in self.address and not self.address.startswith("socks")

    def __str__(self) -> str:
        return f"the proxy {self.address} ({self.variable})"


def proxy_for(url: str, proxies: Mapping[str, str]) -> Proxy | None:
    """Return the proxy of a URL among those that requests found, or ``None``."""
    chosen = select_proxy(url, dict(proxies))
    if not chosen:
        return None
    scheme = url.partition(":")[0].lower()
    names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY")
    variable = next((name for name in names if os.environ.get(name) == chosen), "set by the environment")
    with suppress(ValueError):
        parts = urlsplit(chosen if "://" in chosen else f"http://{chosen}")
        kind = "" if parts.scheme in ("http", "https") else f"{parts.scheme}://"
        port = f":{parts.port}" if parts.port else ""
        return Proxy(re.sub("[^!-~]", "", f"{kind}{parts.hostname or ''}{port}"), variable)
    return Proxy("that is no URL", variable)


def proxy_mistake(proxy: Proxy | None) -> SourceError:
    """Return the error of a request that cannot even be sent because of its proxy."""
    if proxy is None:
        return SourceError("the request cannot be made: its URL is not one that can be requested")
    if proxy.address.startswith("socks"):
        return SourceError(
            f"{proxy} speaks SOCKS, and the package for it (PySocks) is not installed",
            hint=f'pip install "requests[socks]", or unset {proxy.variable}',
            request_sent=False,
        )
    return SourceError(f"{proxy} is not a proxy's URL", hint=f"correct {proxy.variable}: want http://HOST:PORT")


def proxy_refusal(proxy: Proxy | None, status: str) -> SourceError:
    """Return the error of a proxy that wants a user name and password."""
    where = str(proxy) if proxy else "a proxy on the way"
    variable = f"in {proxy.variable}: " if proxy else "in HTTPS_PROXY: "
    return SourceError(
        f"{where} answered {status}: it wants a user name and password",
        hint=f"give both {variable}http://USER:PASSWORD@HOST:PORT (percent-encoded)",
    )


def trusted(bundle: str) -> ssl.SSLContext:
    """Return a context that trusts the certificates of a file or a directory.

    Raises:
        SourceError: They cannot be read.
    """
    context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
    try:
        context.load_verify_locations(**{"capath" if os.path.isdir(bundle) else "cafile": bundle})
    except ssl.SSLError:
        why = "holds no certificates in PEM form"
    except OSError as error:
        why = f"cannot be read: {error.strerror or 'unknown error'}"
    else:
        return context
    set_by = next((name for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if os.environ.get(name) == bundle), "")
    raise SourceError(
        f"TLS: the CA bundle {bundle}{f' ({set_by})' if set_by else ''} {why}",
        hint=f"let {set_by} name a file of PEM certificates, or unset it" if set_by else "install certifi again",
        request_sent=False,
    )


def advice_on_certificates() -> str:
    """Return what to do about a certificate that is not trusted."""
    unread = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), "")
    if unread and not os.environ.get("REQUESTS_CA_BUNDLE"):
        state = "" if os.path.exists(os.environ[unread]) else ", which names nothing that is there,"
        return f"{unread}{state} is not read here: set REQUESTS_CA_BUNDLE to a file of PEM certificates"
    return (
        "if a proxy or the host has a certificate of your organisation, set REQUESTS_CA_BUNDLE to the PEM file of "
        "the authority that signed it"
    )


def netrc_problem() -> str:
    """Return what is wrong with the netrc file; empty if nothing is. requests ignores a file that is wrong."""
    named = os.environ.get("NETRC")
    paths = [named] if named else [os.path.expanduser("~/.netrc"), os.path.expanduser("~/_netrc")]
    path = next((each for each in paths if os.path.exists(each)), None)
    if path is None:
        return ""
    try:
        netrc.netrc(path)
    except netrc.NetrcParseError as error:  # its text quotes the file
        line = f" (line {error.lineno})" if error.lineno else ""
        return f"the netrc file {path} cannot be parsed{line}, so it is not used"
    except OSError as error:
        return f"the netrc file {path} cannot be read: {error.strerror}"
    except ValueError:
        return f"the netrc file {path} is no text in UTF-8"
    return ""
