"""Who wears what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from .crops import Cut

PERSON = "person"  # what the detector is asked for
WORN = 0.5  # of a garment's mask that must lie in a person's box


def is_person(label: str) -> bool:
    """Tell whether what was found, or is asked for, is a person."""
    return label.strip().lower() == PERSON


def tell_persons(cuts: Iterable[Cut]) -> None:
    """Number the persons among the cuts from the left, and set who wears each of the others.

    That is the person on whose mask, and in whose box, most of it lies. The mask tells apart people who stand close
    together; the box is for a mask that leaves out the clothes, as one of skin and hair does.
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
    """Return what a region shows of a cut's mask."""
    x, y = cut.region[:2]
    left, top, right, bottom = (max(each - start, 0) for each, start in zip(region, (x, y, x, y), strict=True))
    return cut.mask[top:bottom, left:right]
