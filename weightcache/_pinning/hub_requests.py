"""Requests to the API of the Hub, within bounds.

The client of huggingface_hub has none of these bounds: it follows a redirect or a ``Link`` to any address and takes the
token along, reads a body of any length, and waits for as long as bytes arrive. So the requests go through the session
that fetches files: it refuses addresses of services for this machine, sends the token to its own host alone, and ends
in time.
"""

from __future__ import annotations

import http.client
import json
import logging
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

from weightcache._runtime import tuning_constants
from weightcache._runtime.cancel import Cancel
from weightcache._transfer.http_session import Bearer, Cookies, NoAuth, Session
from weightcache._transfer.mirror_client import MAX_REDIRECTS
from weightcache._transfer.mirror_stream import SourceError, TransientError
from weightcache._transfer.read_deadline import stream_of
from weightcache._transfer.response_head import in_words
from weightcache._transfer.retry_policy import RETRYABLE, seconds_to_wait
from weightcache.errors import redacted
from weightcache.manifest.urls import hub_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import requests

    from weightcache._transfer.auth import Token

_log = logging.getLogger("weightcache")

# The Hub lists 1,000 entries in a page. A repository of a million files is ten times what it recommends at most.
MAX_PAGES = 1000
MAX_ANSWER = 32 << 20  # bytes of one answer; decoded JSON takes up to twenty times as much memory
MAX_BYTES = 256 << 20  # bytes of all answers together
MAX_SECONDS = 300.0  # for all requests together, with their waits
_ANSWER_SECONDS = 60.0  # for one body
_DEFAULT_ENDPOINT = "https://huggingface.co"
_PORTS = {"http": 80, "https": 443}


class RefusedError(Exception):
    """The Hub answered with a status that is an error.

    Attributes:
        status: Of HTTP.
        code: The Hub's own word for it, such as ``RepoNotFound``; empty without one.
        message: The Hub's own text for it; empty without one. It is not safe to show.
        wait: Seconds that it asks to wait; ``None`` if it does not ask.
    """

    def __init__(self, response: requests.Response) -> None:
        super().__init__(f"HTTP {response.status_code}")
        self.status: int = response.status_code
        self.code = response.headers.get("X-Error-Code", "")
        self.message = response.headers.get("X-Error-Message", "")
        self.wait = seconds_to_wait(response.headers)


class CutOffError(TransientError):
    """An answer began and did not end."""


class _Answer(NamedTuple):
    """What a request returned, decoded, and the address of the next page; empty for none."""

    content: Any
    next_page: str


class HubRequests:
    """A session for the requests about one repository; a context manager.

    Args:
        token: Sent to the host of ``HF_ENDPOINT`` alone; ``None`` for no token.
    """

    def __init__(self, token: Token | None) -> None:
        self._endpoint = hub_endpoint()
        self._session, self._cancel = Session(1), Cancel()
        self._bearer = Bearer(self._session, self._endpoint, token.value, token.origin) if token else None
        self._settings = tuning_constants.DEFAULT
        self._ends, self._received = time.monotonic() + MAX_SECONDS, 0

    def __enter__(self) -> HubRequests:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def get(self, path: str) -> Any:
        """Return what the Hub answers at a path of its API, decoded.

        Raises:
            RefusedError: It refuses.
            SourceError: It cannot be reached, or its answer exceeds a bound.
            ValueError, RecursionError: Its answer is not JSON.
        """
        return self._get(f"{self._endpoint}{path}").content

    def pages(self, path: str) -> Iterator[list[Any]]:
        """Yield the pages of a listing. The errors are those of `get`, and a `TypeError` for a page that is no list."""
        url = f"{self._endpoint}{path}"
        for _ in range(MAX_PAGES):
            page, url = self._get(url)
            if not isinstance(page, list):
                raise TypeError("a page of the listing is no list")
            yield page
            if not url:
                return
            if not page:  # no entry counts against a bound of entries, so such pages could go on
                raise SourceError("it sent an empty page and said that the listing goes on")
        raise SourceError(f"its listing has more than {MAX_PAGES:,} pages")

    def _get(self, url: str) -> _Answer:
        failures = 0
        while True:
            failure: SourceError | RefusedError
            try:
                return self._get_once(url)
            except TransientError as error:
                failure, wait = error, error.retry_after
            except RefusedError as error:
                if error.status not in RETRYABLE:
                    raise
                failure, wait = error, error.wait or 0.0
            failures += 1
            limits = self._settings
            pause = max(wait, min(limits.backoff_max, limits.backoff * 2**failures))
            if failures >= limits.tries or wait > limits.retry_after_max or pause > self._seconds_left():
                raise failure
            if wait:
                _log.warning("%s asks to wait: %s; trying again in %.0f s", redacted(self._endpoint), failure, pause)
            self._cancel.sleep(pause)

    def _get_once(self, url: str) -> _Answer:
        with closing(self._follow(url)) as response:
            if response.status_code != 200:
                raise RefusedError(response)
            return _Answer(json.loads(self._body(response)), self._next_page(response.headers, url))

    def _follow(self, url: str) -> requests.Response:
        """Return the response at the end of the redirects. No redirect takes the token to another host."""
        cookies, encrypted = Cookies(), url.startswith("https://")
        for _ in range(MAX_REDIRECTS + 1):
            seconds = min(self._settings.stall_timeout, self._seconds_left())
            if seconds <= 0:
                raise SourceError(f"its answers took longer than {MAX_SECONDS:g} s")
            # What netrc has for a host is not for everybody on the way, if a redirect leads from https to http.
            auth = self._bearer or (NoAuth() if encrypted and url.startswith("http://") else None)
            response = self._session.get_once(url, {}, auth, cookies, self._settings.connect_timeout, seconds)
            if (target := self._session.redirect(url, response)) is None:
                return response
            response.close()
            if not target.startswith(("http://", "https://")):
                raise SourceError(f"redirects to {redacted(target) or 'no URL'}; only http and https are followed")
            url = self._with_credentials(target) or target
        raise SourceError(f"more than {MAX_REDIRECTS} redirects, the last to {redacted(url)}")

    def _body(self, response: requests.Response) -> bytes:
        from urllib3.exceptions import HTTPError, ReadTimeoutError

        most, seconds = min(MAX_ANSWER, MAX_BYTES - self._received), min(_ANSWER_SECONDS, self._seconds_left())
        failure: SourceError
        try:
            if stream := stream_of(response):
                stream.limit(max(0.0, seconds))
            data = bytearray()
            while chunk := response.raw.read(1 << 16, decode_content=True):
                data += chunk
                self._received += len(chunk)
                if len(data) > most:
                    raise SourceError(f"its answer has more than {most:,} bytes, the most that is read of it")
            return bytes(data)
        except (ReadTimeoutError, TimeoutError):
            failure = SourceError(f"its answer took longer than {seconds:.3g} s")  # another try would take as long
        except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            failure = CutOffError(in_words(error, "its answer broke off"))
        raise failure  # outside the handler: the error of urllib3 has the URL

    def _next_page(self, headers: Mapping[str, str], url: str) -> str:
        """Return the address of the next page, with the credentials of the endpoint; empty without one.

        Raises:
            SourceError: It is on another host, which would get the token, or choose what is listed.
        """
        from requests.utils import parse_header_links

        links = parse_header_links(headers.get("Link", ""))
        target = next((each.get("url", "") for each in links if each.get("rel") == "next"), "")
        if not target:
            return ""
        if target.startswith(f"{_DEFAULT_ENDPOINT}/"):  # as a mirror passes it on that copies the answers of the Hub
            target = self._endpoint + target.removeprefix(_DEFAULT_ENDPOINT)
        joined = urljoin(url, target)
        if not (page := self._with_credentials(joined)):
            raise SourceError(f"its listing goes on at {redacted(joined)}, another host; no request was sent there")
        return page

    def _with_credentials(self, url: str) -> str:
        """Return a URL of the endpoint's host with the user name and password of ``HF_ENDPOINT``; else empty."""
        asked, own = urlsplit(url), urlsplit(self._endpoint)
        return asked._replace(netloc=own.netloc).geturl() if _origin(asked) == _origin(own) else ""

    def _seconds_left(self) -> float:
        return self._ends - time.monotonic()


def _origin(parts: SplitResult) -> tuple[str, str, int | None]:
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(scheme)
