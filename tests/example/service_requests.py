"""What the tests of the service share: requests with a photo, and what they read from an answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx

from fakes import FakeDetector
from fashion_crop.models.detection import CancelledError
from serving import Client, photo
from support import until

KEY = "s3cret-clé"


def image(data: bytes | None = None) -> dict[str, Any]:
    return {"image": ("photo.png", photo() if data is None else data)}


def crops(client: Client, data: bytes | None = None, /, **fields: Any) -> httpx.Response:
    return client.post("/v1/crops", files=image(data), data=fields)


def error(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which has the one shape."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert {"code", "message", "request_id"} <= set(body["error"]) <= {"code", "message", "request_id", "fields"}
    assert body["error"]["request_id"] == response.headers["x-request-id"]
    assert body["error"]["message"]
    return body["error"]


class Broken(FakeDetector):
    """A detector that fails in its own way."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def detect(self, *_: Any, **__: Any) -> Any:
        raise self.error


class UntilCancelled:
    """A pipeline that ends when nobody waits any more."""

    def __init__(self) -> None:
        self.began, self.ended = threading.Event(), threading.Event()

    def segment(self, _photo: Any, _options: Any, *, cancelled: Callable[[], bool], **_: Any) -> Any:
        self.began.set()
        until(cancelled)
        self.ended.set()
        raise CancelledError


# How much, how fast, how many.


def begun(client: Client, *headers: str) -> socket.socket:
    """Send the head of a request for crops, which promises a body."""
    connection = socket.create_connection((client.base_url.host, client.base_url.port), timeout=60)
    head = ["POST /v1/crops HTTP/1.1", "Host: x", "Content-Type: multipart/form-data; boundary=b", *headers]
    connection.sendall("\r\n".join([*head, "Expect: 100-continue", "", ""]).encode())
    return connection
