"""The pipeline: each thing is cut out once, belongs to somebody, and has coordinates in pixels of the photo as sent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fakes import FakeDetector, FakeSegmenter, ellipse
from fashion_crop.models.crops import MARGIN, Rendering, crop_box
from fashion_crop.models.detection import Box, CancelledError, Detection
from fashion_crop.models.photo import Photo
from fashion_crop.models.pipeline import GARMENTS, MAX_PERSONS, Options, OptionsError, Pipeline

BLUE = (0, 0, 255)


def photo(width: int = 200, height: int = 100, scale: int = 1, colour: tuple[int, ...] = BLUE) -> Photo:
    """A photo of one colour, ``scale`` times as large as what the models get."""
    pixels = [np.full((height * each, width * each, 3), colour, np.uint8) for each in (1, scale)]
    return Photo(*pixels, "0" * 64)


def found(label: str, score: float, *corners: float) -> Detection:
    return Detection(label, score, Box(*corners))


def pipeline(*detections: Detection, masks: dict[Box, NDArray[np.bool_]] | None = None) -> Pipeline:
    return Pipeline(FakeDetector(detections), FakeSegmenter(masks or {}))


def full(box: Box, width: int = 200, height: int = 100) -> NDArray[np.bool_]:
    """A mask that is all of a box."""
    mask = np.zeros((height, width), bool)
    mask[round(box.top) : round(box.bottom), round(box.left) : round(box.right)] = True
    return mask


SHIRT = found("shirt", 0.8, 20, 10, 60, 50)
PANTS = found("pants", 0.7, 20, 50, 60, 90)
BAG = found("bag", 0.6, 150, 20, 180, 60)
PERSON = found("person", 0.9, 15, 5, 65, 95)
ONLY_BAGS = Options(("bag",))
ONLY_SHOES = Options(("shoes",))


# What is asked for


def test_the_thresholds_reach_the_detector_and_a_person_is_asked_for_too() -> None:
    detector = FakeDetector()
    Pipeline(detector, FakeSegmenter()).segment(
        photo(), Options(("hat", "red bag"), box_threshold=0.1, text_threshold=0.2)
    )
    assert detector.calls == [
        {"shape": (100, 200), "prompts": ("hat", "red bag", "person"), "box_threshold": 0.1, "text_threshold": 0.2}
    ]


@pytest.mark.parametrize("asked", [0.1, 0.25, 0.45])
def test_a_threshold_can_be_raised_afterwards(asked: float) -> None:
    """An answer without its weaker garments is the answer to a higher threshold, with the same persons."""
    weak = found("person", 0.3, 140, 5, 190, 95)

    def garments(threshold: float) -> list[tuple[Any, ...]]:
        cut = pipeline(SHIRT, PANTS, BAG, PERSON, weak).segment(photo(), Options(box_threshold=threshold))
        return [(each.label, each.score, each.person, each.box) for each in cut]

    assert [each for each in garments(asked) if each[1] > 0.65] == garments(0.65)
    assert {label: person for label, _, person, _ in garments(asked)} == {"shirt": 0, "pants": 0, "bag": None}


def test_boxes_alone_are_those_of_the_crops() -> None:
    """What a model finds depends on all it is asked for, so that both must ask for the same."""
    detector = FakeDetector()
    both = Pipeline(detector, FakeSegmenter())
    boxes = both.detect(photo(), Options())
    crops = both.segment(photo(), Options())
    assert detector.calls[0] == detector.calls[1]
    assert {(each.label, each.score, each.box) for each in boxes} == {
        (each.label, each.score, each.box) for each in crops
    }
    assert sorted(each.label for each in boxes) == sorted(GARMENTS)
    assert [each.score for each in boxes] == sorted((each.score for each in boxes), reverse=True)


@pytest.mark.parametrize("word", ["person", " Person "])
def test_a_person_who_is_asked_for_is_asked_for_once_and_cut_out(word: str) -> None:
    detector = FakeDetector([found(word, 0.9, *PERSON.box), SHIRT])
    garments = Pipeline(detector, FakeSegmenter()).segment(photo(), Options(("shirt", word)))
    assert detector.calls[0]["prompts"] == ("shirt", word)
    assert {(each.label, each.person) for each in garments} == {(word, 0), ("shirt", 0)}


def test_persons_who_are_asked_for_come_by_their_score_as_all_else() -> None:
    both = Options(("shirt", "person"))
    assert [each.label for each in pipeline(SHIRT, PERSON).detect(photo(), both)] == ["person", "shirt"]
    one = Options(("shirt", "person"), max_garments=1)
    assert [each.label for each in pipeline(SHIRT, PERSON).segment(photo(), one)] == ["person"]


def test_a_person_is_that_person_whatever_the_mask() -> None:
    beside = {PERSON.box: full(Box(66, 0, 100, 100))}
    (garment,) = pipeline(PERSON, masks=beside).segment(photo(), Options(("person",)))
    assert garment.person == 0


def test_a_person_who_is_not_asked_for_is_no_garment() -> None:
    some = pipeline(PERSON, SHIRT)
    assert [each.label for each in some.segment(photo(), Options())] == ["shirt"]
    assert [each.label for each in some.detect(photo(), Options())] == ["shirt"]


def test_a_coat_that_is_all_that_is_seen_of_a_person_stays() -> None:
    (coat,) = pipeline(PERSON, found("coat", 0.8, *PERSON.box)).segment(photo(), Options())
    assert (coat.label, coat.person) == ("coat", 0)


def test_doubles_are_cut_out_once() -> None:
    double = found("shirt", 0.5, 21, 10, 61, 50)
    segmenter = FakeSegmenter()
    Pipeline(FakeDetector([double, SHIRT]), segmenter).segment(photo(), Options())
    assert segmenter.calls == [[SHIRT.box]]
    apart = found("shirt", 0.5, 40, 10, 80, 50)
    both = pipeline(SHIRT, apart)
    assert len(both.segment(photo(), Options(nms_threshold=0.5))) == 2
    assert len(both.segment(photo(), Options(nms_threshold=0.2))) == 1


def test_of_too_many_garments_the_best_are_kept() -> None:
    some = pipeline(PANTS, SHIRT, BAG)
    assert [each.label for each in some.segment(photo(), Options(max_garments=2))] == ["shirt", "pants"]
    assert [each.label for each in some.detect(photo(), Options(max_garments=1))] == ["shirt"]


def test_all_boxes_are_cut_out_in_one_call() -> None:
    segmenter = FakeSegmenter()
    Pipeline(FakeDetector([BAG, PERSON, SHIRT]), segmenter).segment(photo(), Options())
    assert segmenter.calls == [[SHIRT.box, BAG.box, PERSON.box]]


def test_where_nothing_is_found_nothing_is_cut_out() -> None:
    segmenter = FakeSegmenter()
    for detections in ([], [PERSON]):
        assert Pipeline(FakeDetector(detections), segmenter).segment(photo(), Options()) == []
        assert Pipeline(FakeDetector(detections), segmenter).detect(photo(), Options()) == []
    assert segmenter.calls == []


def test_of_a_crowd_only_some_persons_are_cut_out() -> None:
    crowd = [found("person", 0.9 - each / 100, 8 * each, 0, 8 * each + 8, 100) for each in range(25)]
    segmenter = FakeSegmenter()
    Pipeline(FakeDetector([SHIRT, *crowd]), segmenter).segment(photo(), Options())
    assert len(segmenter.calls[0]) == 1 + MAX_PERSONS


# Where it is


def test_boxes_are_told_in_pixels_of_the_original() -> None:
    (garment,) = pipeline(BAG).segment(photo(scale=3), Options())
    (detection,) = pipeline(BAG).detect(photo(scale=3), Options())
    assert garment.box == detection.box == Box(450, 60, 540, 180)
    assert garment.area == 9 * np.count_nonzero(ellipse(BAG.box, 100, 200))
    assert garment.mask_box == (444, 54, 546, 186)  # a margin of 0.05 * 40, in whole pixels of the models
    assert garment.mask.shape == (44, 34)


def test_what_a_mask_covers_is_told_to_the_nearest_pixel_where_the_scale_is_no_whole_number() -> None:
    small, large = (np.zeros((*size, 3), np.uint8) for size in ((100, 200), (250, 501)))
    (garment,) = pipeline(BAG).segment(Photo(small, large, "0" * 64), Options())
    assert garment.mask_box == (371, 45, 456, 155)  # from 370.74, 45, 455.91, 155
    assert garment.mask.shape == (44, 34)


def test_a_box_beyond_the_border_ends_there() -> None:
    over, outside = found("bag", 0.9, -30, -5, 50, 120), found("hat", 0.9, 210, 0, 260, 50)
    (garment,) = pipeline(over, outside).segment(photo(), Options())
    assert garment.box == Box(0, 0, 50, 100)
    assert garment.mask_box == (0, 0, 55, 100)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(found, st.sampled_from(["bag", "hat", "person"]), st.floats(0.4, 1), *[st.floats(-20, 70)] * 4),
        max_size=8,
    ),
    st.tuples(st.integers(1, 50), st.integers(1, 50), st.integers(1, 4)),
)
def test_whatever_a_detector_says_garments_are_in_the_photo(
    detections: list[Detection], size: tuple[int, int, int]
) -> None:
    picture = photo(*size)
    garments = pipeline(*detections).segment(picture, Options(("bag", "hat")))
    assert [each.id for each in garments] == list(range(len(garments)))
    for each in garments:
        left, top, right, bottom = each.mask_box
        assert (0 <= left < right <= picture.width, 0 <= top < bottom <= picture.height) == (True, True)
        assert each.mask.shape == ((bottom - top) / size[2], (right - left) / size[2])
        assert 0 < each.area <= (right - left) * (bottom - top)
        assert (0 <= each.mask_score <= 1, each.label in ("bag", "hat")) == (True, True)
        if size[2] == 1 and min(each.box.right - each.box.left, each.box.bottom - each.box.top) >= 1:
            shown = crop_box(each.box, *size[:2], Rendering(MARGIN))  # of a box that is rounded to hundredths
            assert all(abs(one - other) <= 1 for one, other in zip(each.mask_box, shown, strict=True))


# What is seen


def test_specks_and_pinholes_are_tidied() -> None:
    mask = full(BAG.box)
    mask[21, 151] = mask[40, 160] = False
    mask[18, 148] = mask[25:55, 181] = True
    mask[25:55, 180] = False
    (garment,) = pipeline(BAG, masks={BAG.box: mask}).segment(photo(), ONLY_BAGS)
    assert garment.area == 30 * 40


def test_a_pair_of_shoes_in_one_box_keeps_both() -> None:
    shoes = found("shoes", 0.8, 20, 60, 100, 90)
    left, right = full(Box(20, 60, 55, 90)), full(Box(70, 62, 100, 88))
    (garment,) = pipeline(shoes, masks={shoes.box: left | right}).segment(photo(), ONLY_SHOES)
    assert garment.area == np.count_nonzero(left | right)


def test_a_pair_of_shoes_in_two_boxes_keeps_both() -> None:
    """Side by side, and one in part behind the other."""
    for right in (found("shoes", 0.7, 60, 60, 95, 90), found("shoes", 0.7, 40, 62, 75, 92)):
        left = found("shoes", 0.8, 20, 60, 55, 90)
        garments = pipeline(left, right).segment(photo(), ONLY_SHOES)
        assert [each.box for each in garments] == [left.box, right.box]


def test_what_is_larger_elsewhere_is_not_what_was_found() -> None:
    """The mask leaks into the other half of the photo, and there is more of it there."""
    mask = full(BAG.box) | full(Box(0, 0, 100, 100))
    (garment,) = pipeline(BAG, masks={BAG.box: mask}).segment(photo(), ONLY_BAGS)
    assert garment.area == 30 * 40


def test_what_the_segmenter_sees_nothing_of_is_left_out() -> None:
    nothing = np.zeros((100, 200), bool)
    garments = pipeline(SHIRT, BAG, masks={SHIRT.box: nothing}).segment(photo(), Options())
    assert [(each.id, each.label) for each in garments] == [(0, "bag")]


@pytest.mark.parametrize(("quality", "told"), [(1.03, 1.0), (-0.1, 0.0), (0.5, 0.5)])
def test_a_mask_score_is_from_0_to_1(monkeypatch: pytest.MonkeyPatch, quality: float, told: float) -> None:
    """SAM 2's estimate of a mask's overlap is not bounded."""
    segmenter = FakeSegmenter()
    monkeypatch.setattr(
        segmenter, "segment", lambda pixels, boxes, cancelled: (full(boxes[0])[None], np.array([quality], np.float32))
    )
    (garment,) = Pipeline(FakeDetector([BAG]), segmenter).segment(photo(), Options())
    assert garment.mask_score == told


# The wearer of each thing


LEFT, RIGHT = found("person", 0.6, 0, 0, 90, 100), found("person", 0.9, 60, 0, 200, 100)


def test_persons_are_numbered_from_the_left_and_garments_from_the_top() -> None:
    garments = pipeline(
        RIGHT, LEFT, PANTS, found("hat", 0.5, 110, 0, 130, 20), found("shoes", 0.9, 110, 80, 130, 99), SHIRT
    ).segment(photo(), Options())
    assert [(each.id, each.label, each.person) for each in garments] == [
        (0, "shirt", 0),
        (1, "pants", 0),
        (2, "hat", 1),
        (3, "shoes", 1),
    ]


def test_what_nobody_wears_comes_last() -> None:
    higher = found("bag", 0.9, 150, 0, 180, 20)
    garments = pipeline(PERSON, higher, PANTS).segment(photo(), Options())
    assert [(each.label, each.person) for each in garments] == [("pants", 0), ("bag", None)]


def test_where_there_are_no_persons_nobody_wears_anything() -> None:
    assert [each.person for each in pipeline(SHIRT, PANTS).segment(photo(), Options())] == [None, None]


@pytest.mark.parametrize(("left_has_it", "person"), [(True, 0), (False, 1)])
def test_of_two_whose_boxes_hold_it_the_one_whose_mask_does(left_has_it: bool, person: int) -> None:
    scarf = found("scarf", 0.5, 62, 40, 88, 60)
    held, other = (LEFT, RIGHT) if left_has_it else (RIGHT, LEFT)
    masks = {held.box: full(held.box), other.box: full(other.box) & ~full(scarf.box)}
    (garment,) = pipeline(LEFT, RIGHT, scarf, masks=masks).segment(photo(), Options())
    assert garment.person == person


def test_a_person_without_a_mask_has_what_is_in_the_box() -> None:
    (garment,) = pipeline(PERSON, SHIRT, masks={PERSON.box: np.zeros((100, 200), bool)}).segment(photo(), Options())
    assert garment.person == 0


@pytest.mark.parametrize(("right", "person"), [(80, 0), (82, None)])
def test_what_lies_outside_by_more_than_half_is_somebody_elses(right: float, person: int | None) -> None:
    case = found("bag", 0.8, 50, 30, right, 60)  # the person ends at 65
    (garment,) = pipeline(PERSON, case, masks={case.box: full(case.box)}).segment(photo(), Options())
    assert garment.person == person


# Stages, and where the models are


@pytest.mark.parametrize("detections", [[SHIRT, BAG], [PERSON], []])
def test_the_end_of_each_stage_is_told(detections: list[Detection], monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    detector, segmenter = FakeDetector(detections), FakeSegmenter()
    for model, name in ((detector, "detect"), (segmenter, "segment")):
        function = getattr(model, name)
        noted = lambda *given, of=(name, function), **more: (steps.append(of[0]), of[1](*given, **more))[1]  # noqa: E731
        monkeypatch.setattr(model, name, noted)
    Pipeline(detector, segmenter).segment(photo(), Options(), done=steps.append)
    assert [step for step in steps if step != "segment"] == ["detect", "detection", "segmentation"]
    assert steps[-2:] == (["segment", "segmentation"] if BAG in detections else ["detection", "segmentation"])


def test_both_models_move_to_a_device() -> None:
    detector, segmenter = FakeDetector(), FakeSegmenter()
    Pipeline(detector, segmenter).to("cuda")
    assert (detector.device, segmenter.device) == ("cuda", "cuda")


# When nobody waits any more


def test_nothing_is_done_for_nobody() -> None:
    detector, segmenter = FakeDetector(), FakeSegmenter()
    for work in (Pipeline(detector, segmenter).segment, Pipeline(detector, segmenter).detect):
        with pytest.raises(CancelledError):
            work(photo(), Options(), cancelled=lambda: True)
    assert (detector.calls, segmenter.calls) == ([], [])


def test_work_stops_before_the_next_step() -> None:
    """Whenever it is asked first to stop: before finding, before cutting, at every mask and at every garment."""
    asked_in_all = 0

    def stop_at(number: int) -> tuple[FakeDetector, FakeSegmenter, bool]:
        nonlocal asked_in_all
        asked, detector, segmenter = 0, FakeDetector([SHIRT, PANTS, BAG]), FakeSegmenter()

        def cancelled() -> bool:
            nonlocal asked
            asked += 1
            return asked == number

        try:
            Pipeline(detector, segmenter).segment(photo(), Options(), cancelled=cancelled)
            return detector, segmenter, True
        except CancelledError:
            return detector, segmenter, False
        finally:
            asked_in_all = asked

    assert stop_at(0)[2]
    assert asked_in_all == 2 + 3 + 3
    for number in range(1, asked_in_all + 1):
        detector, segmenter, finished = stop_at(number)
        assert (len(detector.calls), len(segmenter.calls), finished) == (int(number > 1), int(number > 2), False)
        assert asked_in_all == number


def test_the_segmenter_is_told_too() -> None:
    asked, segmenter = [], FakeSegmenter()
    segment = segmenter.segment
    segmenter.segment = lambda *given, cancelled: (asked.append(cancelled()), segment(*given))[1]  # type: ignore[method-assign]
    Pipeline(FakeDetector([SHIRT]), segmenter).segment(photo(), Options(), cancelled=lambda: False)
    assert asked == [False]


# Options


@pytest.mark.parametrize("field", ["box_threshold", "text_threshold", "nms_threshold"])
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, -math.inf])
def test_a_share_is_from_0_to_1(field: str, value: float) -> None:
    with pytest.raises(OptionsError) as caught:
        Options(**{field: value})
    assert caught.value.problems == [(field, f"must be from 0 to 1, got {value}")]
    assert getattr(Options(**{field: 1}), field) == 1


@pytest.mark.parametrize("prompts", [(), ("",), ("shirt", " ")])
def test_prompts_without_a_word(prompts: tuple[str, ...]) -> None:
    with pytest.raises(OptionsError) as caught:
        Options(prompts)
    assert [field for field, _ in caught.value.problems] == ["prompts"]


def test_all_that_is_wrong_is_told_at_once() -> None:
    wrong: dict[str, Any] = {"prompts": (), "box_threshold": 2, "nms_threshold": -1, "max_garments": 0}
    with pytest.raises(OptionsError) as caught:
        Options(**wrong)
    assert {field for field, _ in caught.value.problems} == set(wrong)
    assert all(field in str(caught.value) for field in wrong)
