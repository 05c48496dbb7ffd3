"""Parts of a response that several modules read: its status, numbers in headers, the first bytes of its body."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from weightcache._store.content_sniffing import foreign_content

from .read_deadline import stream_of

if TYPE_CHECKING:
    import requests

_SYSTEM_MESSAGE = re.compile(r"\[Errno -?\d+\] ([A-Za-z ,]+)|(certificate verify failed: [^(]+)")
READ_HEAD = 5.0  # seconds that the first bytes of an error page may take: they only explain


def status_in_words(response: requests.Response) -> str:
    """Return the status of a response, with the part of the reason phrase that is safe to show."""
    return f"HTTP {response.status_code} {re.sub('[^ -~]', '', response.reason or '')[:60]}".rstrip()


def header_number(value: str | None) -> int | None:
    text = (value or "").strip()
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def in_words(error: BaseException, otherwise: str) -> str:
    """Return the part of an exception's text that is safe to show, or ``otherwise``."""
    match = _SYSTEM_MESSAGE.search(str(error))
    return (match[1] or match[2]).strip() if match else otherwise


def read_head(response: requests.Response, count: int, seconds: float) -> bytes:
    """Return up to ``count`` first bytes of a body, or fewer if they do not come within ``seconds``."""
    data, ends = b"", time.monotonic() + seconds
    with suppress(Exception):  # the error is what failed before, not this
        while len(data) < count and (left := ends - time.monotonic()) > 0:
            if stream := stream_of(response):
                stream.limit(left)
            if not (more := response.raw.read1(count - len(data), decode_content=True)):
                break
            data += more
    return data


def redirected_host(response: requests.Response, declared: str) -> str:
    """Return the host that answered if a redirect led to another one than declared; else empty."""
    with suppress(ValueError):
        host = urlsplit(response.url).hostname or ""
        if host != urlsplit(declared).hostname:
            return re.sub("[^!-~]", "", host)
    return ""


def unexpected_content(head: bytes, response: requests.Response, declared: str, name: str) -> str:
    """Return what came instead of weights, and from which host after a redirect; empty if it may be weights."""
    what = foreign_content(head, response.headers.get("Content-Type", ""), name=name)
    if not what or response.url == declared:
        return what
    host = redirected_host(response, declared)
    return f"{what} from {host}, to which it redirects" if host else f"{what}, after a redirect"
