"""Clean masks: keep large parts, remove specks, fill small holes.

SAM 2 has a function for this, but it needs CUDA, and the published package is built without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PART = 0.1  # of the largest part's area: the other shoe of a pair is larger, also behind the first; a speck is smaller
HOLE = 0.01  # of the mask's area; a button or a print is smaller, and what a bag's handle encloses is larger and stays


def clean(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the large connected parts of a mask, their small holes filled.

    A pair of shoes in one box has two parts, and so has a coat behind a bag's strap. A part is kept if it has at least
    `PART` of the largest one's area. Pixels that touch at a corner are connected, so a hole ends there.

    Args:
        mask: Height by width.
    """
    if not mask.any():
        return mask.copy()
    # One pixel more on each side, so that all that is outside is connected.
    parts = _large_parts(np.pad(mask, 1))
    return (parts | _small_holes(parts))[1:-1, 1:-1]


def _large_parts(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    _, numbers, facts, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    areas = facts[:, cv2.CC_STAT_AREA]
    large = areas >= PART * areas[1:].max()
    large[0] = False  # what belongs to no part
    return large[numbers]


def _small_holes(parts: NDArray[np.bool_]) -> NDArray[np.bool_]:
    _, numbers, facts, _ = cv2.connectedComponentsWithStats((~parts).view(np.uint8), connectivity=4)
    small = facts[:, cv2.CC_STAT_AREA] <= HOLE * np.count_nonzero(parts)
    small[numbers[0, 0]] = False  # what is outside, as if it were a hole
    return small[numbers]


def soften(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a mask as opacity, 0 to 255, smooth at its edge, so that it has no steps when it is enlarged.

    A straight edge is soft on its inner side only: on the outer side the pixels have the colours of the background.

    Args:
        mask: Height by width. Where it ends at a border, it is as if it went on.
    """
    blurred = cv2.GaussianBlur(mask.astype(np.float32), (7, 7), 1.0, borderType=cv2.BORDER_REPLICATE)
    # A straight edge has 0.3 in its outermost row and 0.7 in its innermost one. A strap of one pixel has less than the
    # row at an edge, and would vanish.
    opacity = np.maximum((blurred - 0.3) / 0.5, mask / np.float32(3))
    return np.rint(255 * np.clip(opacity, 0, 1)).astype(np.uint8)
