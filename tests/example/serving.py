"""A service on a free port of loopback, in a thread or in a process of its own."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image

from fashion_crop.web.backend import Backend
from fashion_crop.web.service import Settings, create_app

EXAMPLES = Path(__file__).parents[2] / "examples"


class Client(httpx.Client):
    """A client of a service that also reads the service's state."""

    app: FastAPI

    def waiting(self) -> int:
        """How many photos wait for a thread."""
        return self.app.state.service.workers._free.statistics().tasks_waiting


@contextmanager
def serving(load: Backend | Callable[[], Backend], **settings: Any) -> Iterator[Client]:
    """Serve in a thread, and yield a client of it."""
    app = create_app(load, settings=Settings(**settings))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as client:
            client.app = app
            until_begun(client)
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def until_begun(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}  # it listens already, so this waits


class Process(subprocess.Popen[str]):
    """A process whose errors are kept: in a pipe that nobody reads they would stop it."""

    log: IO[str]

    def told(self) -> str:
        """What it has written to standard error so far."""
        self.log.seek(0)
        return self.log.read()

    def line(self) -> str:
        """The next line of its standard output, waited for."""
        assert self.stdout is not None
        return self.stdout.readline().rstrip("\n")

    def say(self, line: str) -> None:
        """Give it a line to read."""
        assert self.stdin is not None
        self.stdin.write(f"{line}\n")
        self.stdin.flush()


@contextmanager
def process(code: str, *argv: str) -> Iterator[Process]:
    """Run a Python process that can import the example and these helpers; it is gone in the end."""
    paths = [str(EXAMPLES), str(Path(__file__).parent), str(Path(__file__).parents[1] / "shared")]
    with tempfile.TemporaryFile("w+") as log:
        child = Process(
            [sys.executable, "-c", code, *argv],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        child.log = log
        try:
            yield child
        finally:
            child.kill()
            child.communicate()
            print(child.told())  # for the log of a failed test


def photo(width: int = 60, height: int = 40, kind: str = "PNG", **options: Any) -> bytes:
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> bytes:
    """A photo that no compression makes smaller."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()
