"""Operations on boxes: remove duplicate detections, clip, pad, round to pixels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .detection import Box

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from .detection import Detection

# A jacket that was found as a coat too: a box that lies in the other but for a little, and is not much smaller. What is
# smaller is another thing, as a belt on a coat is, or the lower half of a dress that is a skirt.
WITHIN = 0.9  # of the smaller one of two boxes, shared with the larger
SIMILAR = 0.6  # of the larger one's area


def without_duplicates(detections: Iterable[Detection], nms_threshold: float) -> list[Detection]:
    """Return the detections without duplicates, best first; boxes without an area are removed.

    A box is removed if a better one with the same label overlaps it by more than ``nms_threshold`` (intersection over
    union). Then a box is removed, whatever its label, if it contains a better one or lies in it and their sizes are
    similar. Much smaller boxes stay. For equal scores, the box further up, then further left, is better.
    """
    ordered = sorted((each for each in detections if area(each.box) > 0), key=_rank)
    if not ordered:
        return []
    shared = intersections([each.box for each in ordered])
    areas = np.array([area(each.box) for each in ordered])
    labels = np.array([each.label for each in ordered])
    same_label = labels[:, None] == labels
    unions = areas[:, None] + areas - shared
    once = _keep_best(same_label & (shared > nms_threshold * unions), range(len(ordered)))
    smaller, larger = np.minimum(areas[:, None], areas), np.maximum(areas[:, None], areas)
    once = _keep_best((shared > WITHIN * smaller) & (smaller > SIMILAR * larger), once)
    return [ordered[index] for index in once]


def area(box: Box) -> float:
    """Return square pixels, 0 for a box that is inside out."""
    return max(0.0, box.right - box.left) * max(0.0, box.bottom - box.top)


def clipped(box: Box, width: int, height: int) -> Box:
    """Return the part of a box that lies in an image of that size."""
    left, right = (min(max(each, 0.0), float(width)) for each in (box.left, box.right))
    top, bottom = (min(max(each, 0.0), float(height)) for each in (box.top, box.bottom))
    return Box(left, top, right, bottom)


def padded(box: Box, padding: float) -> Box:
    """Return a box that is larger on each side, by a share of its own longer side."""
    margin = padding * max(box.right - box.left, box.bottom - box.top)
    return Box(box.left - margin, box.top - margin, box.right + margin, box.bottom + margin)


def whole_pixels(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the whole pixels that a box touches in an image of that size, at least one."""
    left = min(max(math.floor(box.left), 0), width - 1)
    top = min(max(math.floor(box.top), 0), height - 1)
    return left, top, min(max(math.ceil(box.right), left + 1), width), min(max(math.ceil(box.bottom), top + 1), height)


def intersections(boxes: Sequence[Box]) -> NDArray[np.float64]:
    """Return the square pixels that each two boxes share, as a square matrix."""
    corners = np.asarray(boxes, dtype=np.float64)
    start = np.maximum(corners[:, None, :2], corners[:, :2])
    end = np.minimum(corners[:, None, 2:], corners[:, 2:])
    return np.clip(end - start, 0.0, None).prod(axis=2)


def _rank(detection: Detection) -> tuple[object, ...]:
    box = detection.box
    return -detection.score, box.top, box.left, box.bottom, box.right, detection.label


def _keep_best(doubles: NDArray[np.bool_], candidates: Iterable[int]) -> list[int]:
    """Go through the candidates, best first, and keep what is no double of one that was kept."""
    kept: list[int] = []
    for index in candidates:
        if not doubles[index, kept].any():
            kept.append(index)
    return kept
