"""The steps for a photo: detect, remove duplicates, segment, assign garments to persons, make the crops."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from . import boxes, crops, masks
from .crops import Cut, Garment
from .detection import CancelledError, never_cancelled
from .persons import PERSON, assign_persons, is_person

if TYPE_CHECKING:
    from collections.abc import Callable

    from .detection import Detection, Detector, Segmenter
    from .photo import Photo

GARMENTS = (
    "shirt", "t-shirt", "jacket", "coat", "dress", "skirt", "pants", "shorts", "shoes", "hat", "bag", "scarf", "belt",
)  # fmt: skip
BACKGROUNDS = "transparent|white|original|#[0-9a-fA-F]{6}"  # as a regular expression
MAX_PERSONS = 20  # that are cut out to assign each garment to one


class OptionsError(ValueError):
    """Options of a request are invalid.

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
        OptionsError: A value is not one of these; the message names every wrong one.
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
    """Combines a detector and a segmenter. Results are in pixels of the original photo."""

    def __init__(self, detector: Detector, segmenter: Segmenter) -> None:
        self._detector, self._segmenter = detector, segmenter

    def detect(
        self, photo: Photo, options: Options, *, cancelled: Callable[[], bool] = never_cancelled
    ) -> list[Detection]:
        """Find the garments, best first.

        Raises:
            PromptsError: The prompts cannot be looked for.
            CancelledError: ``cancelled()`` was true.
        """
        _raise_if_cancelled(cancelled)
        wanted, _ = self._find(photo, options)
        return [replace(each, box=crops.in_original(each.box, photo)) for each in wanted]

    def crop(self, photo: Photo, options: Options, *, cancelled: Callable[[], bool] = never_cancelled) -> list[Garment]:
        """Find the garments and cut them out.

        The order is by person from left to right, then from top to bottom; garments without a person come last.
        Garments with an empty mask are left out.

        Raises:
            PromptsError: The prompts cannot be looked for.
            CancelledError: ``cancelled()`` was true; it is checked before every step and every garment.
        """
        _raise_if_cancelled(cancelled)
        wanted, persons = self._find(photo, options)
        if not wanted:
            return []
        _raise_if_cancelled(cancelled)
        cuts = self._cut(photo, [*wanted, *persons], options.padding, cancelled)
        assign_persons(cuts)
        shown = sorted((cut for cut in cuts[: len(wanted)] if cut.mask.any()), key=_reading_order)
        garments = []
        for number, cut in enumerate(shown):
            _raise_if_cancelled(cancelled)
            garments.append(crops.garment(number, cut, photo, options.background))
        return garments

    def _find(self, photo: Photo, options: Options) -> tuple[list[Detection], list[Detection]]:
        """Return the requested detections, best first, and the persons; without duplicates."""
        # Always detect persons: the result depends on the whole caption, and both routes must find the same.
        prompts = options.prompts
        if not any(is_person(prompt) for prompt in prompts):
            prompts = (*prompts, PERSON)
        found = self._detector.detect(
            photo.pixels, prompts, box_threshold=options.box_threshold, text_threshold=options.text_threshold
        )
        height, width = photo.pixels.shape[:2]
        found = [replace(each, box=boxes.clipped(each.box, width, height)) for each in found]
        # Separately: a long coat and its wearer have nearly the same box.
        persons = boxes.without_duplicates((each for each in found if is_person(each.label)), options.nms_threshold)
        garments = boxes.without_duplicates(
            (each for each in found if not is_person(each.label)), options.nms_threshold
        )
        if prompts == options.prompts:
            garments, persons = sorted([*garments, *persons], key=lambda each: -each.score), []
        return garments[: options.max_garments], persons[:MAX_PERSONS]

    def _cut(self, photo: Photo, found: list[Detection], padding: float, cancelled: Callable[[], bool]) -> list[Cut]:
        """Segment all boxes in one call, so that the photo is embedded once."""
        height, width = photo.pixels.shape[:2]
        whole, qualities = self._segmenter.segment(photo.pixels, [each.box for each in found], cancelled=cancelled)
        cuts = []
        for each, mask, quality in zip(found, whole, qualities, strict=True):
            _raise_if_cancelled(cancelled)
            left, top, right, bottom = region = boxes.whole_pixels(boxes.padded(each.box, padding), width, height)
            # Clean only the crop: else a larger patch of the same fabric elsewhere could be the part that stays.
            tidied = masks.clean(mask[top:bottom, left:right])
            cuts.append(Cut(each, region, tidied, min(max(float(quality), 0.0), 1.0)))
        return cuts


def _raise_if_cancelled(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise CancelledError


def _reading_order(cut: Cut) -> tuple[float, ...]:
    box = cut.found.box
    return float("inf") if cut.person is None else cut.person, box.top, box.left, -cut.found.score
