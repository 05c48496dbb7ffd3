"""A detector and a segmenter without models: they find every prompt, each elsewhere, and can be made to wait."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fashion_crop.models.detection import Box, Detection, never_cancelled
from fashion_crop.models.labels import MAX_TOKENS, PromptsError
from fashion_crop.models.persons import is_person
from fashion_crop.models.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from fashion_crop.web.backend import Backend

DIGEST = "0" * 64


@dataclass
class Gate:
    """What a fake waits at. ``entered`` counts the calls that wait; ``opened`` lets all of them go on.

    In a test: ``assert gate.entered.acquire(timeout=10)``, look at what is to be seen meanwhile, ``gate.opened.set()``.
    """

    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    opened: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        self.entered.release()
        assert self.opened.wait(60), "nobody opened the gate"


@dataclass
class FakeDetector:
    """Finds each prompt once, in its cell of a grid, the first one best; a person in the whole image.

    Attributes:
        found: What to find instead, in pixels of the image that the detector gets.
        gate: Where each call waits.
        calls: The arguments of each call: height and width, prompts, thresholds.
    """

    found: Sequence[Detection] | None = None
    gate: Gate | None = None
    calls: list[dict[str, object]] = field(default_factory=list)
    device: str = "cpu"

    def to(self, device: str) -> None:
        self.device = device

    def detect(
        self, pixels: NDArray[np.uint8], prompts: Sequence[str], *, box_threshold: float, text_threshold: float
    ) -> list[Detection]:
        assert pixels.dtype == np.uint8
        height, width, _ = pixels.shape
        self.calls.append(
            {
                "shape": (height, width),
                "prompts": tuple(prompts),
                "box_threshold": box_threshold,
                "text_threshold": text_threshold,
            }
        )
        if self.gate:
            self.gate.wait()
        if (tokens := 1 + sum(len(prompt.split()) + 1 for prompt in prompts)) > MAX_TOKENS:
            raise PromptsError(f"the prompts are {tokens} tokens long, and the model reads {MAX_TOKENS} at once")
        found = grid(prompts, width, height) if self.found is None else self.found
        return [each for each in found if each.score >= box_threshold]


def grid(prompts: Sequence[str], width: int, height: int) -> list[Detection]:
    """One detection for each prompt: cells of a grid, row by row; a person is everywhere, and leaves a cell empty."""
    columns = math.ceil(math.sqrt(len(prompts)))
    wide, high = width / columns, height / math.ceil(len(prompts) / columns)
    found = []
    for number, prompt in enumerate(prompts):
        row, column = divmod(number, columns)
        cell = Box(column * wide, row * high, (column + 1) * wide, (row + 1) * high)
        everywhere = Box(0, 0, width, height)
        found.append(Detection(prompt, round(0.95 - number / 1000, 3), everywhere if is_person(prompt) else cell))
    return found


@dataclass
class FakeSegmenter:
    """Cuts the ellipse out of each box.

    Attributes:
        masks: From a box to its mask instead, of the size of the image.
        gate: Where each call waits.
        calls: The boxes of each call.
    """

    masks: dict[Box, NDArray[np.bool_]] = field(default_factory=dict)
    gate: Gate | None = None
    calls: list[list[Box]] = field(default_factory=list)
    device: str = "cpu"

    def to(self, device: str) -> None:
        self.device = device

    def segment(
        self, pixels: NDArray[np.uint8], boxes: Sequence[Box], *, cancelled: Callable[[], bool] = never_cancelled
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        assert len(boxes) > 0, "a segmenter is called with at least one box"
        self.calls.append(list(boxes))
        if self.gate:
            self.gate.wait()
        shape = pixels.shape[:2]
        cut = np.stack([self.masks[box] if box in self.masks else ellipse(box, *shape) for box in boxes])
        return cut, np.linspace(0.9, 0.8, len(boxes), dtype=np.float32)


def ellipse(box: Box, height: int, width: int) -> NDArray[np.bool_]:
    """The ellipse that touches the sides of a box, in an image of that size."""
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width)[None, :] + 0.5
    x = (columns - (box.left + box.right) / 2) / max((box.right - box.left) / 2, 0.5)
    y = (rows - (box.top + box.bottom) / 2) / max((box.bottom - box.top) / 2, 0.5)
    return x**2 + y**2 <= 1


def fake_backend(detector: FakeDetector | None = None, segmenter: FakeSegmenter | None = None) -> Backend:
    """What a service serves, ready at once and without models."""
    from fashion_crop.web.backend import Backend

    return Backend(
        pipeline=Pipeline(detector or FakeDetector(), segmenter or FakeSegmenter()),
        weights={"groundingdino": DIGEST, "sam2-large": DIGEST},
        phases=dict.fromkeys(("inspect", "import", "build", "load", "other", "prefetch", "ready"), 0.0),
        versions={"weightcache": "0"},
        stand_ins=True,
    )
