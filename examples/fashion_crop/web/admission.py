"""A middleware that checks the API key and limits the size, speed and number of requests.

It is a middleware because FastAPI reads the whole form before it calls a route. A request counts from its first byte to
the last byte of its answer. This bounds the number of photos and answers in memory.
"""

from __future__ import annotations

import hmac
import logging
from typing import TYPE_CHECKING

import anyio
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers

from . import request_ids
from .errors import ServiceError, too_many_bytes, too_slow

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .settings import Settings

FORM = 65_536  # bytes of a form beside the photo: the other fields and the lines between them
PIECE = 65_536  # bytes of an answer that are sent at once
RETRY_AFTER = 5  # seconds

_log = logging.getLogger(__name__)


class Admission:
    """The middleware.

    Args:
        app: The inner app.
        paths: Paths of the POST routes to check; all other requests pass.
        settings: The limits and the key.
        check_ready: Raises `ServiceError` while there is no model.
    """

    def __init__(
        self, app: ASGIApp, *, paths: Collection[str], settings: Settings, check_ready: Callable[[], object]
    ) -> None:
        self._app, self._paths, self._settings, self._check_ready = app, paths, settings, check_ready
        self._free = settings.workers + settings.max_queue
        self._key = None if settings.api_key is None else settings.api_key.strip().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or path_in_app(scope) not in self._paths:
            await self._app(scope, receive, send)
            return
        try:
            self._check(Headers(scope=scope))
        except ServiceError as error:
            await error.response()(scope, receive, send)
            return
        self._free -= 1
        try:
            await self._app(scope, self._limited(receive), self._in_pieces(send))
        except _ReadsTooSlowlyError:
            _log.info("the answer to request %s was cancelled: the client reads too slowly", request_ids.current())
        finally:
            self._free += 1

    def _check(self, headers: Headers) -> None:
        self._check_key(headers)
        self._check_ready()
        media_type, options = parse_options_header(headers.get("content-type"))
        # Some encodings make strings that cannot be written as UTF-8 again.
        if media_type != b"multipart/form-data" or options.get(b"charset", b"utf-8").lower() != b"utf-8":
            text = "send a form: multipart/form-data in UTF-8, with the photo as the file `image`"
            raise ServiceError(415, "form-expected", text)
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()):  # not every server checks it
            raise ServiceError(400, "request-malformed", "Content-Length is not a number")
        if int(length[:20]) > self._settings.max_bytes + FORM:
            raise too_many_bytes(self._settings.max_bytes)
        if self._free <= 0:
            raise ServiceError(
                503,
                "busy",
                f"{self._settings.max_queue} photos wait already: try again in {RETRY_AFTER} seconds",
                headers={"Retry-After": str(RETRY_AFTER)},
            )

    def _check_key(self, headers: Headers) -> None:
        if self._key is None:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = (token if scheme.lower() == "bearer" else headers.get("x-api-key", "")).strip()
        # Constant time: the duration must not reveal the key. Headers are decoded as Latin-1.
        if not hmac.compare_digest(given.encode("latin-1"), self._key):
            raise ServiceError(
                401,
                "key-wrong" if given else "key-missing",
                "this needs an API key: send it as `Authorization: Bearer KEY` or as `X-API-Key: KEY`",
                headers={"WWW-Authenticate": 'Bearer realm="fashion-crop"'},
            )

    def _limited(self, receive: Receive) -> Receive:
        """Limit the size of the body and its minimum speed."""
        size, complete, pace = 0, False, self._pace()

        async def limited() -> Message:
            nonlocal size, complete
            if complete:  # the next message is the disconnect
                return await receive()
            try:
                with anyio.fail_after(pace(size)):
                    message = await receive()
            except TimeoutError:
                raise too_slow(self._settings.slowest) from None
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if size > self._settings.max_bytes + FORM:
                raise too_many_bytes(self._settings.max_bytes)
            return message

        return limited

    def _in_pieces(self, send: Send) -> Send:
        """Send the answer in small pieces, and stop if the client reads too slowly."""
        size, pace = 0, None

        async def in_pieces(message: Message) -> None:
            nonlocal size, pace
            pace = pace or self._pace()
            body, more = message.get("body", b""), message.get("more_body", False)
            for start in range(0, max(len(body), 1), PIECE):
                if message["type"] == "http.response.body":
                    piece = body[start : start + PIECE]
                    message = {**message, "body": piece, "more_body": more or start + PIECE < len(body)}
                try:
                    with anyio.fail_after(pace(size)):
                        await send(message)
                except TimeoutError:
                    raise _ReadsTooSlowlyError from None
                size += len(message.get("body", b""))

        return in_pieces

    def _pace(self) -> Callable[[int], float]:
        """Return a function: bytes so far → seconds left for the next piece."""
        began = anyio.current_time()

        def left(size: int) -> float:
            return began + self._settings.grace + size / self._settings.slowest - anyio.current_time()

        return left


def path_in_app(scope: Scope) -> str:
    """Return the path within this app, which may be mounted below another one's path."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


class _ReadsTooSlowlyError(Exception):
    """The client reads its answer too slowly."""
