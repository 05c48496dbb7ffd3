"""The error of a response without a file: the reason, as far as the server gives one, and what to do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from weightcache._environment import token_place

from .auth import is_signed
from .http_environment import netrc_problem, proxy_refusal
from .mirror_stream import RangeError, SourceError, TransientError
from .response_head import read_head, redirected_host, status_in_words, unexpected_content
from .retry_policy import RETRYABLE, SECONDARY, THROTTLED, seconds_to_wait
from .server_message import reason, secrets_in

if TYPE_CHECKING:
    import requests

    from .http_environment import Proxy

HEAD = 4096  # bytes that are read of the body of an error
_MEANING = {
    204: "it has no content there",
    205: "it has no content there",
    410: "it was there, and is gone for good",
    451: "its host must not give it here, for legal reasons",
}
# X-Error-Code of the Hugging Face Hub (huggingface_hub 2.4 reads it in utils/_http.py).
_HUB_CODES = {
    "RevisionNotFound": "the Hub does not have this commit (any more)",
    "RepoNotFound": "the repository does not exist, or is private",
    "EntryNotFound": "this commit has no such file",
    "GatedRepo": "the repository is gated",
    "DisabledRepo": "the Hub has disabled the repository",
}
_REFUSES_CLIENT = re.compile(rb"user[- ]agent|error code: 10(06|07|08|10|20)\b", re.IGNORECASE)


class RequestInfo(NamedTuple):
    """The request for a file.

    Attributes:
        url: The declared URL, with its variables filled in.
        ranged: Whether a part of the file was requested.
        origin: Where the token was found that may have been sent; empty without one.
        auth: What the checkpoint declares.
        hub: Page of the Hub's repository, or empty.
        served: Whether this URL has delivered bytes before. Then no permission is missing.
    """

    url: str
    ranged: bool
    origin: str
    auth: str | None
    hub: str
    served: bool


def error_from(response: requests.Response, request: RequestInfo, proxy: Proxy | None, seconds: float) -> SourceError:
    """Return the error of a response without a file.

    Args:
        response: The response.
        request: The request.
        proxy: The proxy that it came through, if any.
        seconds: How long to wait for the message in the body.
    """
    status = response.status_code
    if status == 416 and request.ranged:
        return RangeError("HTTP 416: it has no such range")
    head = read_head(response, HEAD, seconds) if status >= 400 else b""
    words = reason(head, secrets_in(dict(response.request.headers), request.url, response.url or ""))
    text = status_in_words(response)
    after = seconds_to_wait(response.headers)
    if status == 403 and after is None and "rate limit" in words.lower():
        after = SECONDARY
    if status in RETRYABLE or (status == 403 and after is not None):
        says = f"; it says: {words}" if words else ""
        return TransientError(f"{text}{says}", after or 0.0, throttled=status in THROTTLED)
    if status == 407:
        return proxy_refusal(proxy, text)
    return _final(response, request, head, words)


def _final(response: requests.Response, request: RequestInfo, head: bytes, words: str) -> SourceError:
    """Return the error of a final refusal.

    Args:
        response: The response.
        request: The request.
        head: The first bytes of the body.
        words: The message of the server in it.
    """
    status, url = response.status_code, response.url or ""
    host = redirected_host(response, request.url)
    text = status_in_words(response) + (f" from {host}, to which it redirects" if host else "")
    says = f"; it says: {words}" if words else ""
    if not says and head and (what := unexpected_content(head, response, url, "")):
        says = f", with {what}"
    code = re.sub("[^A-Za-z]", "", response.headers.get("X-Error-Code", ""))[:40]
    if "disabled" in response.headers.get("X-Error-Message", ""):
        code = "DisabledRepo"
    is_refused = status in (401, 403)
    sent = f"; {_sent(response, request)}" if is_refused else ""
    if code or (request.hub and not host and is_refused):
        return _refused_by_hub(f"{text}{sent}", code, request)
    if status in (400, 401, 403) and is_signed(url):
        return _refused_signature(f"{text}{sent}{says}", response, declared=url == request.url)
    challenged = "challenge" in response.headers.get("cf-mitigated", "")
    if is_refused and (challenged or _REFUSES_CLIENT.search(head)):
        what = "wants a browser that solves a challenge" if challenged else "refuses this client (its User-Agent)"
        return SourceError(f"{text}: the host {what}{says}", hint="no token helps there; add another mirror")
    if is_refused:
        return _not_permitted(text + sent, says, response, request, is_bucket=b"<Error>" in head)
    meaning = f": {_MEANING[status]}" if status in _MEANING else ""
    return SourceError(f"{text}{meaning}{says}")


def _has_password(response: requests.Response) -> bool:
    return str(response.request.headers.get("Authorization", "")).startswith("Basic")


def _sent(response: requests.Response, request: RequestInfo) -> str:
    if _has_password(response):
        # requests itself sends what netrc has for the host, or what stands before an @ in the URL.
        return "a user name and password (netrc, or the URL) were sent"
    return (
        f"the token from {request.origin} was sent"
        if "Authorization" in response.request.headers
        else (f"the token from {request.origin} is not sent there" if request.origin else "no token was sent")
    )


def _not_permitted(
    text: str, says: str, response: requests.Response, request: RequestInfo, *, is_bucket: bool
) -> SourceError:
    elsewhere = bool(redirected_host(response, request.url))
    if _has_password(response):
        return SourceError(text + says, hint="check that they are valid here")
    if request.origin:
        hint = "" if elsewhere else f"check that the token in {request.auth or request.origin} is valid here"
        return SourceError(text + says, hint=hint)
    if problem := netrc_problem():
        return SourceError(f"{text}{says}; {problem}", hint="correct the netrc file")
    if is_bucket and not request.served:
        return SourceError(
            text + says, hint="a private bucket wants a signed URL; a public one has no such file, perhaps"
        )
    # A missing token is one cause of a 403 among many. If the host gives another one, do not advise `auth`.
    if elsewhere or request.served or (says and response.status_code == 403):
        return SourceError(text + says, hint="" if request.served else "open the URL in a browser to see what it wants")
    scheme = response.headers.get("WWW-Authenticate", "").partition(" ")[0].lower()
    if scheme in ("basic", "digest", "ntlm", "negotiate"):
        return SourceError(text + says, hint="give its user name and password in a netrc file (see NETRC)")
    return SourceError(f"{text} (no `auth` is declared){says}", hint="declare `auth` if it needs a token")


def _refused_signature(text: str, response: requests.Response, *, declared: bool) -> SourceError:
    if "Authorization" in response.request.headers:
        return SourceError(
            f"{text}; its URL is signed as well, and that is all that such a host accepts",
            hint="a signed URL takes no other permission: remove `auth` and what stands before the @",
        )
    text += "; its URL is signed, and the signature has expired or is not valid"
    if not declared:
        return SourceError(text, hint="the host that redirects there has signed it: try again, or add another mirror")
    return SourceError(
        text,
        hint="get a new signed URL; `${VARIABLE}` in the query of the declared one keeps it out of the manifest",
    )


def _refused_by_hub(text: str, code: str, request: RequestInfo) -> SourceError:
    page = request.hub
    where = page or "its repository"
    token = request.origin or token_place("HF_TOKEN")
    if code == "GatedRepo":
        what = f"{text}; {where} is gated"
        return SourceError(what, hint=f"accept its licence at {where}, and use the token of that account in {token}")
    meaning = f": {_HUB_CODES[code]}" if code in _HUB_CODES else ""
    what = f"{text}{f'; {code}{meaning}' if code else ''}"
    if code == "RevisionNotFound":
        hint = "perhaps its history was rewritten: pin a commit of today"
        return SourceError(what, hint=f"{hint}{f' (see {page}/commits/main)' if page else ''}, or add a mirror")
    if code == "EntryNotFound":
        return SourceError(what, hint=f"check the files of that commit{f' at {page}' if page else ''}")
    if code == "DisabledRepo":
        return SourceError(what, hint="take the file from another mirror")
    if request.served:
        return SourceError(what)
    if request.origin:
        return SourceError(what, hint=f"check that {where} exists, and that the token in {token} may read it")
    return SourceError(what, hint=f"check that {where} exists; if it is private, set {token}")
