"""Assign garments to persons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from .detection import Detection

PERSON = "person"  # the prompt for persons
WORN = 0.5  # of a garment's mask that must lie in a person's box


@dataclass
class Cut:
    """A detection and its mask.

    Attributes:
        found: What was found, its box in pixels of `Photo.pixels`.
        region: The box with a margin, in whole pixels of the same: left, top, right, bottom.
        mask: Of the region: height by width.
        quality: How good the segmenter thinks the mask is, 0 to 1.
        person: The person that wears it, numbered from the left; ``None`` if none was found.
    """

    found: Detection
    region: tuple[int, int, int, int]
    mask: NDArray[np.bool_]
    quality: float
    person: int | None = None


def is_person(label: str) -> bool:
    """Whether a label or prompt means a person."""
    return label.strip().lower() == PERSON


def assign_persons(cuts: Iterable[Cut]) -> None:
    """Number the persons from the left, and set the person of each garment.

    A garment belongs to the person whose mask and box contain most of its pixels. Masks separate persons that stand
    close together; boxes help if the mask of a person contains only skin and hair.
    """
    cuts = list(cuts)
    persons = [cut for cut in cuts if is_person(cut.found.label)]
    persons.sort(key=lambda cut: (cut.found.box.left + cut.found.box.right, cut.found.box.top))
    for number, person in enumerate(persons):
        person.person = number
    for cut in cuts:
        if cut.person is None:
            cut.person = _wearer(cut, persons)


def _wearer(cut: Cut, persons: list[Cut]) -> int | None:
    most, wearer = 0, None
    area = np.count_nonzero(cut.mask)
    for person in persons:
        in_box = np.count_nonzero(_part(cut, [round(each) for each in person.found.box]))
        on_mask = np.count_nonzero(_part(cut, person.region) & _part(person, cut.region))
        if in_box >= WORN * area and in_box + on_mask > most:
            most, wearer = in_box + on_mask, person.person
    return wearer


def _part(cut: Cut, region: Sequence[int]) -> NDArray[np.bool_]:
    """Return the part of a cut's mask inside a region."""
    x, y = cut.region[:2]
    left, top, right, bottom = (max(each - start, 0) for each, start in zip(region, (x, y, x, y), strict=True))
    return cut.mask[top:bottom, left:right]
