"""A middleware around everything else: it gives each request an id, counts it, and answers a crash."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders

from . import errors, request_ids
from .admission import path_in_app
from .metrics import CANCELLED, OTHER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .metrics import Metrics

_log = logging.getLogger(__name__)


class Observing:
    """The middleware.

    Args:
        app: The inner app.
        metrics: Counts the requests.
        paths: Paths that are a route of their own in the metrics before the router has found them.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: Collection[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        token = request_ids.begin(request_ids.choose(Headers(scope=scope)))
        answer = _Answer(receive, send, lambda status: self._metrics.count(self._route(scope), status))
        try:
            await self._app(scope, answer.receive, answer.send)
        except Exception:
            # Here and not in Starlette's own handler, which is outside of all middlewares and knows no id.
            _log.exception("request %s failed", request_ids.current())
            if answer.status is not None:  # too late for another answer: the server closes the connection
                answer.finish(500)
                raise
            await errors.internal().response()(scope, receive, answer.send)
        finally:
            answer.finish(CANCELLED)
            request_ids.end(token)

    def _route(self, scope: Scope) -> str:
        """Return a route of this app, never a path that only the client knows."""
        if found := getattr(scope.get("route"), "path", None):
            return found
        path = path_in_app(scope)
        return path if path in self._paths else OTHER


class _Answer:
    """Follows the answer to one request, and reports its status once, at its end."""

    def __init__(self, receive: Receive, send: Send, report: Callable[[int], None]) -> None:
        self._receive, self._send, self._report = receive, send, report
        self._disconnected = self._finished = False
        self.status: int | None = None

    async def receive(self) -> Message:
        message = await self._receive()
        self._disconnected |= message["type"] == "http.disconnect"
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[request_ids.HEADER] = request_ids.current()
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            assert self.status is not None
            # Before the last bytes leave: a client that has its answer finds it counted.
            self.finish(CANCELLED if self._disconnected else self.status)
        await self._send(message)

    def finish(self, status: int) -> None:
        """Report the status, unless one was reported before."""
        if not self._finished:
            self._finished = True
            self._report(status)
