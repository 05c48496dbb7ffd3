"""The id of a request: in its answer, in its errors and in the log lines about its failure."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.datastructures import Headers

HEADER = "X-Request-ID"
ALLOWED = r"[A-Za-z0-9._-]{1,64}"  # as a regular expression; other characters could forge lines of a log

# Threads of `anyio.to_thread` see it too: they run in a copy of the context of the request.
_current: ContextVar[str] = ContextVar("request_id", default="-")
begin, end = _current.set, _current.reset


def current() -> str:
    """Return the id of the request that is answered; ``"-"`` outside of one."""
    return _current.get()


def choose(headers: Headers) -> str:
    """Return the id that the client sends, if it sends one and it is allowed, else a new one."""
    sent = headers.getlist(HEADER)
    return sent[0] if len(sent) == 1 and re.fullmatch(ALLOWED, sent[0]) else uuid.uuid4().hex
