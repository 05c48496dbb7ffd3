"""What the parts of the pipeline hand to each other: boxes, detections, and what a detector and a segmenter do.

Nothing here knows a model. Another detector or segmenter is a class with the method below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray


class Box(NamedTuple):
    """A rectangle in pixels: left, top, right, bottom, the origin at the upper left; right and bottom lie outside."""

    left: float
    top: float
    right: float
    bottom: float


class CancelledError(Exception):
    """Nobody waits for the result any more."""


def never() -> bool:
    """Tell that somebody waits."""
    return False


@dataclass(frozen=True)
class Detection:
    """Something that was found.

    Attributes:
        label: One of the prompts, as it was asked for.
        score: How sure the detector is, 0 to 1.
        box: Where it is.
    """

    label: str
    score: float
    box: Box


class Detector(Protocol):
    """Finds what is asked for in words."""

    def detect(
        self, pixels: NDArray[np.uint8], prompts: Sequence[str], *, box_threshold: float, text_threshold: float
    ) -> list[Detection]:
        """Find the prompts in an image.

        Args:
            pixels: Height by width by 3, RGB.
            prompts: What to look for, such as ``"shirt"``.
            box_threshold: The least score of a box, 0 to 1.
            text_threshold: The least score of a box's label, 0 to 1.

        Returns:
            What was found, boxes within the image, in no order; the same thing may be found several times.

        Raises:
            PromptsError: The prompts are more than the model can read at once.
        """


class Segmenter(Protocol):
    """Tells which pixels belong to what is in a box."""

    def segment(
        self, pixels: NDArray[np.uint8], boxes: Sequence[Box], *, cancelled: Callable[[], bool] = never
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Cut out what each box is about.

        Args:
            pixels: Height by width by 3, RGB.
            boxes: At least one.
            cancelled: Asked now and then, if it takes long.

        Returns:
            Masks, boxes by height by width, and how good the model thinks each one is, 0 to 1.

        Raises:
            CancelledError: ``cancelled()`` was true.
        """
