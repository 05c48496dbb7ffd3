"""The types of the pipeline: boxes, detections, and the protocols of a detector and a segmenter.

This module knows no model. To use another model, write a class with the methods of its protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

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
    """The client no longer waits for the result."""


class OptionsError(ValueError):
    """Options of a request are invalid.

    Attributes:
        problems: Each field that is wrong, and how.
    """

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {message}" for field, message in problems))
        self.problems = problems

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)  # else it cannot leave the process that raised it


def never_cancelled() -> bool:
    """The default for ``cancelled``: always False."""
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
    """Finds objects that are described by words."""

    def to(self, device: str) -> None:
        """Move the model to a device, as torch names it."""

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
            Detections with boxes inside the image, in any order; one object may have several.

        Raises:
            PromptsError: The prompts are too long for the model.
        """


class Segmenter(Protocol):
    """Finds which pixels belong to the object in a box."""

    def to(self, device: str) -> None:
        """Move the model to a device, as torch names it."""

    def segment(
        self, pixels: NDArray[np.uint8], boxes: Sequence[Box], *, cancelled: Callable[[], bool] = never_cancelled
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Return the mask of the object in each box.

        Args:
            pixels: Height by width by 3, RGB.
            boxes: At least one.
            cancelled: Checked regularly; if true, the call ends.

        Returns:
            Masks, boxes by height by width, and how good the model thinks each one is, 0 to 1.

        Raises:
            CancelledError: ``cancelled()`` was true.
        """
