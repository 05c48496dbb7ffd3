"""What the tests of the page share: a pipeline that keeps what it is asked for, and its server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from fakes import FakeDetector, FakeSegmenter, Gate, fake_backend
from fashion_crop.models.detection import Box, Detection
from fashion_crop.models.pipeline import Options, Pipeline
from serving import photo, serving

if TYPE_CHECKING:
    from fashion_crop.web.backend import Backend


SHIRT = Detection("shirt", 0.91, Box(10, 4, 40, 20))
PANTS = Detection("pants", 0.62, Box(14, 20, 36, 38))
CLOTHES = [SHIRT, PANTS]
KEY = "schlüssel €"


class Told(Pipeline):
    """A pipeline that keeps what it is asked for."""

    def __init__(self, found: list[Detection] | None = None, gate: Gate | None = None) -> None:
        super().__init__(FakeDetector(CLOTHES if found is None else found, gate), FakeSegmenter())
        self.asked: list[Options] = []
        self.calls: list[Any] = self._detector.calls

    def segment(self, photo: Any, options: Options, **more: Any) -> Any:
        self.asked.append(options)
        return super().segment(photo, options, **more)


def backend_of(pipeline: Pipeline, **changed: Any) -> Backend:
    backend = fake_backend()
    backend.pipeline = pipeline
    for name, value in changed.items():
        setattr(backend, name, value)
    return backend


def crops(client: httpx.Client, accept: str = "application/json", **fields: Any) -> httpx.Response:
    return client.post("/v1/crops", files={"image": photo()}, data=fields, headers={"Accept": accept})


@contextmanager
def full(gate: Gate) -> Iterator[httpx.Client]:
    """A server with one place, and somebody who has it until the gate opens."""
    with (
        serving(backend_of(Told(gate=gate)), max_queue=0) as client,
        httpx.Client(base_url=client.base_url, timeout=60) as other,
        ThreadPoolExecutor() as pool,
    ):
        taken = pool.submit(crops, other)
        try:
            assert gate.entered.acquire(timeout=20)
            yield client
        finally:
            gate.opened.set()
            assert taken.result().status_code == 200
