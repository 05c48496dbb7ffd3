"""Masks as people would cut: one piece, without pinholes.

SAM 2's own tidying needs CUDA, and the published package is built without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HOLE = 0.01  # of the mask's area; a button or a print is smaller, and what a bag's handle encloses is larger and stays


def tidy(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest connected part of a mask, its small holes filled.

    Pixels that touch at a corner are connected, so a hole ends there. Of parts of one size always the same one is kept.

    Args:
        mask: Height by width.
    """
    if not mask.any():
        return mask.copy()
    # One pixel more on each side, so that all that is outside is connected.
    part = _largest(np.pad(mask, 1))
    return (part | _small_holes(part))[1:-1, 1:-1]


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    _, numbers, facts, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return numbers == 1 + facts[1:, cv2.CC_STAT_AREA].argmax()  # 0 is what belongs to no part


def _small_holes(part: NDArray[np.bool_]) -> NDArray[np.bool_]:
    _, numbers, facts, _ = cv2.connectedComponentsWithStats((~part).view(np.uint8), connectivity=4)
    small = facts[:, cv2.CC_STAT_AREA] <= HOLE * np.count_nonzero(part)
    small[numbers[0, 0]] = False  # what is outside, as if it were a hole
    return small[numbers]


def soften(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a mask as opacity, 0 to 255, smooth at its edge; outside it is 0, so that nothing of there is seen.

    Args:
        mask: Height by width. Where it ends at a border, it is as if it went on.
    """
    blurred = cv2.blur(mask.astype(np.uint8) * 255, (3, 3), borderType=cv2.BORDER_REPLICATE)
    return np.where(mask, blurred, 0).astype(np.uint8)
