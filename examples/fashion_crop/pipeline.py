"""The story of a photo: find, keep each thing once, cut everything out, tell who wears what, make pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from . import boxes, crops, masks
from .crops import Cut, Garment
from .detection import CancelledError, never
from .persons import PERSON, is_person, tell_persons

if TYPE_CHECKING:
    from collections.abc import Callable

    from .detection import Detection, Detector, Segmenter
    from .photo import Photo

GARMENTS = (
    "shirt", "t-shirt", "jacket", "coat", "dress", "skirt", "pants", "shorts", "shoes", "hat", "bag", "scarf", "belt",
)  # fmt: skip
BACKGROUNDS = "transparent|white|original|#[0-9a-fA-F]{6}"  # as a regular expression
MAX_PERSONS = 20  # that are cut out to tell who wears what


class OptionsError(ValueError):
    """A request asks for what cannot be.

    Attributes:
        problems: Each field that is wrong, and how.
    """

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {message}" for field, message in problems))
        self.problems = problems


@dataclass(frozen=True)
class Options:
    """What a request asks for.

    Attributes:
        prompts: What to look for.
        box_threshold: The least score of a box, 0 to 1.
        text_threshold: The least score of its label, 0 to 1.
        nms_threshold: How much two boxes of one label may overlap (intersection over union), 0 to 1.
        padding: What a crop shows on each side of its box, as a share of the box's longer side, 0 to 1.
        background: What is not garment: ``"transparent"``, ``"white"``, a colour such as ``"#f4f4f4"``, or
            ``"original"`` for the photo itself.
        max_garments: At most so many, the ones with the best scores.

    Raises:
        OptionsError: A value is none of these; all that are wrong are named.
    """

    prompts: tuple[str, ...] = GARMENTS
    box_threshold: float = 0.35
    text_threshold: float = 0.25
    nms_threshold: float = 0.5
    padding: float = 0.05
    background: str = "transparent"
    max_garments: int = 50

    def __post_init__(self) -> None:
        problems = []
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            problems.append(("prompts", "must be words such as shirt and dress, and none of them empty"))
        problems += [
            (field, f"must be from 0 to 1, got {value}")
            for field in ("box_threshold", "text_threshold", "nms_threshold", "padding")
            if not 0 <= (value := getattr(self, field)) <= 1  # which NaN is not, either
        ]
        if not re.fullmatch(BACKGROUNDS, self.background):
            message = f"must be transparent, white, original or a colour as #rrggbb, got {self.background[:40]!r}"
            problems.append(("background", message))
        if self.max_garments < 1:
            problems.append(("max_garments", f"must be 1 or more, got {self.max_garments}"))
        if problems:
            raise OptionsError(problems)


class Pipeline:
    """A detector and a segmenter, put together. What is in their pixels is given back in those of the original."""

    def __init__(self, detector: Detector, segmenter: Segmenter) -> None:
        self._detector, self._segmenter = detector, segmenter

    def detect(self, photo: Photo, options: Options, *, cancelled: Callable[[], bool] = never) -> list[Detection]:
        """Find the garments, best first.

        Raises:
            PromptsError: The prompts cannot be looked for.
            CancelledError: ``cancelled()`` was true.
        """
        _stop_if(cancelled)
        wanted, _ = self._find(photo, options)
        return [replace(each, box=crops.in_original(each.box, photo)) for each in wanted]

    def crop(self, photo: Photo, options: Options, *, cancelled: Callable[[], bool] = never) -> list[Garment]:
        """Find the garments and cut them out.

        They are in order of their persons, from left to right, and of each person from top to bottom; last comes what
        nobody wears. What the segmenter sees nothing of is left out.

        Raises:
            PromptsError: The prompts cannot be looked for.
            CancelledError: ``cancelled()`` was true; it is asked before every step and every garment.
        """
        _stop_if(cancelled)
        wanted, persons = self._find(photo, options)
        if not wanted:
            return []
        _stop_if(cancelled)
        cuts = self._cut(photo, [*wanted, *persons], options.padding, cancelled)
        tell_persons(cuts)
        shown = sorted((cut for cut in cuts[: len(wanted)] if cut.mask.any()), key=_reading_order)
        garments = []
        for number, cut in enumerate(shown):
            _stop_if(cancelled)
            garments.append(crops.garment(number, cut, photo, options.background))
        return garments

    def _find(self, photo: Photo, options: Options) -> tuple[list[Detection], list[Detection]]:
        """Return what is asked for, best first, and the persons beside; each thing once."""
        # Persons are always looked for: what is found depends on the whole sentence, and should not on who asks.
        prompts = options.prompts
        if not any(is_person(prompt) for prompt in prompts):
            prompts = (*prompts, PERSON)
        found = self._detector.detect(
            photo.pixels, prompts, box_threshold=options.box_threshold, text_threshold=options.text_threshold
        )
        height, width = photo.pixels.shape[:2]
        found = [replace(each, box=boxes.within(each.box, width, height)) for each in found]
        # Apart from the rest, since a long coat has nearly the box of who wears it.
        persons = boxes.tidy((each for each in found if is_person(each.label)), options.nms_threshold)
        garments = boxes.tidy((each for each in found if not is_person(each.label)), options.nms_threshold)
        if prompts == options.prompts:
            garments, persons = sorted([*garments, *persons], key=lambda each: -each.score), []
        return garments[: options.max_garments], persons[:MAX_PERSONS]

    def _cut(self, photo: Photo, found: list[Detection], padding: float, cancelled: Callable[[], bool]) -> list[Cut]:
        """Cut everything out at once, so that the photo is embedded once."""
        height, width = photo.pixels.shape[:2]
        whole, qualities = self._segmenter.segment(photo.pixels, [each.box for each in found], cancelled=cancelled)
        cuts = []
        for each, mask, quality in zip(found, whole, qualities, strict=True):
            _stop_if(cancelled)
            left, top, right, bottom = region = boxes.outward(boxes.padded(each.box, padding), width, height)
            # Only what the crop shows, else a larger patch of the same fabric elsewhere would be the part that is kept.
            tidied = masks.tidy(mask[top:bottom, left:right])
            cuts.append(Cut(each, region, tidied, min(max(float(quality), 0.0), 1.0)))
        return cuts


def _stop_if(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise CancelledError


def _reading_order(cut: Cut) -> tuple[float, ...]:
    box = cut.found.box
    return float("inf") if cut.person is None else cut.person, box.top, box.left, -cut.found.score
