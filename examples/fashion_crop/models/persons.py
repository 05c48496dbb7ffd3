"""Assign garments to persons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from .crops import Cut

PERSON = "person"  # the prompt for persons
WORN = 0.5  # of a garment's mask that must lie in a person's box


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
