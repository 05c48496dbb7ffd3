"""The steps for a photo: detect, remove duplicates, segment, assign garments to persons."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from . import boxes, crops, masks
from .crops import MARGIN, Garment
from .detection import Box, CancelledError, OptionsError, never_cancelled
from .persons import PERSON, Cut, assign_persons, is_person

if TYPE_CHECKING:
    from collections.abc import Callable

    from .detection import Detection, Detector, Segmenter
    from .photo import Photo

GARMENTS = (
    "shirt", "t-shirt", "jacket", "coat", "dress", "skirt", "pants", "shorts", "shoes", "hat", "bag", "scarf", "belt",
)  # fmt: skip
MAX_PERSONS = 20  # that are cut out to assign each garment to one
PERSON_SCORE = 0.35  # of a person to whom garments are assigned, whatever score is asked of the garments


@dataclass(frozen=True)
class Options:
    """What is looked for in a photo.

    Attributes:
        prompts: What to look for.
        box_threshold: The least score of a box, 0 to 1.
        text_threshold: The least score of its label, 0 to 1.
        nms_threshold: How much two boxes of one label may overlap (intersection over union), 0 to 1.
        max_garments: At most so many, the ones with the best scores.

    Raises:
        OptionsError: A value is not one of these; the message names every wrong one.
    """

    prompts: tuple[str, ...] = GARMENTS
    box_threshold: float = 0.35
    text_threshold: float = 0.25
    nms_threshold: float = 0.5
    max_garments: int = 50

    def __post_init__(self) -> None:
        problems = []
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            problems.append(("prompts", "must be words such as shirt and dress, and none of them empty"))
        problems += [
            (field, f"must be from 0 to 1, got {value}")
            for field in ("box_threshold", "text_threshold", "nms_threshold")
            if not 0 <= (value := getattr(self, field)) <= 1  # which NaN is not, either
        ]
        if self.max_garments < 1:
            problems.append(("max_garments", f"must be 1 or more, got {self.max_garments}"))
        if problems:
            raise OptionsError(problems)


class Pipeline:
    """Combines a detector and a segmenter. Results are in pixels of the original photo."""

    def __init__(self, detector: Detector, segmenter: Segmenter) -> None:
        self._detector, self._segmenter = detector, segmenter

    def to(self, device: str) -> None:
        """Move both models to a device, as torch names it: to a GPU, after a memory snapshot taken without one."""
        self._detector.to(device)
        self._segmenter.to(device)

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

    def segment(
        self,
        photo: Photo,
        options: Options,
        *,
        cancelled: Callable[[], bool] = never_cancelled,
        done: Callable[[str], None] = lambda _stage: None,
    ) -> list[Garment]:
        """Find the garments and their masks; `crops.render` makes pictures of them.

        The order is by person from left to right, then from top to bottom; garments without a person come last.
        Garments with an empty mask are left out.

        Args:
            photo: The photo.
            options: What is looked for.
            cancelled: Checked before every step and every garment.
            done: Called with ``"detection"`` and then ``"segmentation"``, each time when that stage has ended.

        Raises:
            PromptsError: The prompts cannot be looked for.
            CancelledError: ``cancelled()`` was true.
        """
        _raise_if_cancelled(cancelled)
        wanted, persons = self._find(photo, options)
        done("detection")
        garments: list[Garment] = []
        if wanted:
            _raise_if_cancelled(cancelled)
            cuts = self._cut(photo, [*wanted, *persons], cancelled)
            assign_persons(cuts)
            shown = sorted((cut for cut in cuts[: len(wanted)] if cut.mask.any()), key=_reading_order)
            for number, cut in enumerate(shown):
                _raise_if_cancelled(cancelled)
                garments.append(_garment(number, cut, photo))
        done("segmentation")
        return garments

    def _find(self, photo: Photo, options: Options) -> tuple[list[Detection], list[Detection]]:
        """Return the requested detections, best first, and the persons; without duplicates."""
        # Always detect persons: the result depends on the whole caption, and both routes must find the same.
        prompts, least = options.prompts, options.box_threshold
        if not any(is_person(prompt) for prompt in prompts):
            prompts, least = (*prompts, PERSON), min(least, PERSON_SCORE)
        found = self._detector.detect(photo.pixels, prompts, box_threshold=least, text_threshold=options.text_threshold)
        height, width = photo.pixels.shape[:2]
        found = [replace(each, box=boxes.clipped(each.box, width, height)) for each in found]
        # Separately: a long coat and its wearer have nearly the same box.
        persons = boxes.without_duplicates((each for each in found if is_person(each.label)), options.nms_threshold)
        garments = boxes.without_duplicates(
            (each for each in found if not is_person(each.label)), options.nms_threshold
        )
        if prompts == options.prompts:
            garments, persons = sorted([*garments, *persons], key=lambda each: -each.score), []
        # The persons do not depend on the threshold of the garments. So a client that leaves out the weaker garments of
        # an answer has the answer to a higher threshold.
        garments = [each for each in garments if each.score >= options.box_threshold]
        persons = [each for each in persons if each.score >= PERSON_SCORE]
        return garments[: options.max_garments], persons[:MAX_PERSONS]

    def _cut(self, photo: Photo, found: list[Detection], cancelled: Callable[[], bool]) -> list[Cut]:
        """Segment all boxes in one call, so that the photo is embedded once."""
        height, width = photo.pixels.shape[:2]
        whole, qualities = self._segmenter.segment(photo.pixels, [each.box for each in found], cancelled=cancelled)
        cuts = []
        for each, mask, quality in zip(found, whole, qualities, strict=True):
            _raise_if_cancelled(cancelled)
            left, top, right, bottom = region = boxes.whole_pixels(boxes.padded(each.box, MARGIN), width, height)
            # Clean only the crop: else a larger patch of the same fabric elsewhere could be the part that stays.
            tidied = masks.clean(mask[top:bottom, left:right])
            cuts.append(Cut(each, region, tidied, min(max(float(quality), 0.0), 1.0)))
        return cuts


def _raise_if_cancelled(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise CancelledError


def _garment(number: int, cut: Cut, photo: Photo) -> Garment:
    """Give a cut the coordinates of the original."""
    x, y = photo.scale
    left, top, right, bottom = (math.floor(each + 0.5) for each in crops.in_original(Box(*cut.region), photo))
    return Garment(
        id=number,
        label=cut.found.label,
        score=cut.found.score,
        mask_score=cut.quality,
        person=cut.person,
        box=crops.in_original(cut.found.box, photo),
        area=round(np.count_nonzero(cut.mask) * x * y),
        mask=masks.soften(cut.mask),
        mask_box=(left, top, right, bottom),
    )


def _reading_order(cut: Cut) -> tuple[float, ...]:
    box = cut.found.box
    return float("inf") if cut.person is None else cut.person, box.top, box.left, -cut.found.score
