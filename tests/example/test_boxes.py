"""Boxes: each thing once, whatever the order in which a detector names it."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fashion_crop.models.boxes import (
    SIMILAR,
    WITHIN,
    area,
    clipped,
    intersections,
    padded,
    whole_pixels,
    without_duplicates,
)
from fashion_crop.models.detection import Box, Detection

WIDTH, HEIGHT = 12, 9  # small, so that boxes overlap, repeat and touch the border

sides = st.integers(0, WIDTH)
boxes = st.builds(Box, sides, sides, sides, sides)
detections = st.lists(
    st.builds(Detection, st.sampled_from(["coat", "jacket", "belt"]), st.sampled_from([0.3, 0.5, 0.5, 0.9]), boxes),
    max_size=25,
)
thresholds = st.sampled_from([0.0, 0.3, 0.5, 1.0])


def pixels(box: Box) -> set[tuple[int, int]]:
    return {(x, y) for x in range(int(box.left), int(box.right)) for y in range(int(box.top), int(box.bottom))}


def overlap(one: Box, other: Box) -> float:
    """Intersection over union, by counting the pixels of both."""
    return len(pixels(one) & pixels(other)) / len(pixels(one) | pixels(other))


def are_one_thing(one: Box, other: Box) -> bool:
    """Whether one lies in the other and is not much smaller, by counting pixels."""
    smaller, larger = sorted((pixels(one), pixels(other)), key=len)
    return len(smaller & larger) > WITHIN * len(smaller) and len(smaller) > SIMILAR * len(larger)


def found(label: str, score: float, *corners: float) -> Detection:
    return Detection(label, score, Box(*corners))


@given(detections, thresholds)
def test_no_two_of_a_label_overlap_more_than_the_threshold(given: list[Detection], threshold: float) -> None:
    kept = without_duplicates(given, threshold)
    for index, one in enumerate(kept):
        for other in kept[:index]:
            if one.label == other.label:
                assert overlap(one.box, other.box) <= threshold + 1e-9
            assert not are_one_thing(one.box, other.box)


@given(detections, thresholds)
def test_what_goes_has_a_better_double(given: list[Detection], threshold: float) -> None:
    """And what is kept is as it was given."""
    kept = without_duplicates(given, threshold)
    assert all(each in given for each in kept)
    for gone in (each for each in given if each not in kept and area(each.box) > 0):
        assert any(
            other.score >= gone.score
            and (
                (other.label == gone.label and overlap(other.box, gone.box) > threshold)
                or are_one_thing(other.box, gone.box)
            )
            for other in given
        )


@given(detections, thresholds, st.randoms(use_true_random=False))
def test_the_order_does_not_matter(given: list[Detection], threshold: float, chance: random.Random) -> None:
    kept = without_duplicates(given, threshold)
    chance.shuffle(given)
    assert without_duplicates(given, threshold) == kept


def test_of_two_that_differ_in_nothing_but_the_label_always_the_same_one_stays() -> None:
    pair = [found(label, 0.5, 0, 0, 9, 9) for label in ("coat", "jacket")]
    assert without_duplicates(pair, 0.5) == without_duplicates(pair[::-1], 0.5) == pair[:1]


@given(detections, thresholds)
def test_to_tidy_again_changes_nothing(given: list[Detection], threshold: float) -> None:
    kept = without_duplicates(given, threshold)
    assert without_duplicates(kept, threshold) == kept


@given(detections, thresholds)
def test_the_best_is_always_kept_and_comes_first(given: list[Detection], threshold: float) -> None:
    kept = without_duplicates(given, threshold)
    best = max((each.score for each in given if area(each.box) > 0), default=None)
    assert (kept[0].score if kept else None) == best
    assert [each.score for each in kept] == sorted((each.score for each in kept), reverse=True)


@pytest.mark.parametrize("corners", [(5, 5, 5, 9), (5, 5, 9, 5), (9, 9, 5, 5), (9, 5, 5, 9), (math.nan, 0, 5, 5)])
def test_a_box_without_an_area_is_none(corners: tuple[float, ...]) -> None:
    assert without_duplicates([found("coat", 0.9, *corners)], 0.5) == []


def test_the_same_box_under_two_labels_is_one_thing() -> None:
    coat = found("coat", 0.6, 10, 10, 110, 210)
    assert without_duplicates([found("jacket", 0.5, 12, 11, 108, 209), coat], 0.5) == [coat]


@pytest.mark.parametrize("better", ["coat", "jacket"])
def test_of_a_box_in_a_box_of_like_size_the_better_one_is_kept(better: str) -> None:
    pair = [
        found("coat", 0.6 if better == "coat" else 0.4, 10, 10, 110, 210),
        found("jacket", 0.5, 15, 10, 105, 160),
    ]
    assert without_duplicates(pair, 0.5) == [each for each in pair if each.label == better]


def test_a_box_that_mostly_lies_elsewhere_stays() -> None:
    """They are alike in size, and share seven eighths."""
    pair = [found("coat", 0.6, 0, 0, 80, 100), found("bag", 0.5, 10, 0, 90, 100)]
    assert without_duplicates(pair, 0.5) == pair


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(found("belt", 0.5, 10, 100, 110, 120), id="a belt on it"),
        pytest.param(found("skirt", 0.5, 10, 95, 110, 210), id="its lower part"),
        pytest.param(found("bag", 0.5, 60, 10, 160, 210), id="beside it"),
    ],
)
def test_other_things_stay(other: Detection) -> None:
    dress = found("dress", 0.6, 10, 10, 110, 210)
    assert without_duplicates([dress, other], 0.5) == [dress, other]


def test_two_of_a_label_that_overlap_by_the_threshold_both_stay() -> None:
    """Intersection over union is exactly a half; more would be too much."""
    pair = [found("shoes", 0.9, 0, 0, 3, 1), found("shoes", 0.8, 1, 0, 4, 1)]
    assert without_duplicates(pair, 0.5) == pair
    assert without_duplicates(pair, 0.49) == pair[:1]


def test_a_double_of_a_double_stays() -> None:
    """The middle one goes because of the first, and so the last one has nothing to go for."""
    row = [found("shoes", 0.9 - each / 10, each, 0, each + 3, 1) for each in range(3)]
    assert without_duplicates(row, 0.4) == [row[0], row[2]]


@given(boxes, boxes)
def test_intersections_are_what_is_counted(one: Box, other: Box) -> None:
    shared = intersections([one, other])
    straight = [Box(*sorted(box[::2]), *sorted(box[1::2])) for box in (one, other)]
    straight = [Box(left, top, right, bottom) for left, right, top, bottom in straight]
    if [one, other] == straight:
        union = area(one) + area(other) - shared[0, 1]
        assert shared[0, 1] == pytest.approx(overlap(one, other) * union if union else 0)
    assert (shared == shared.T).all()
    assert np.diag(shared).tolist() == [area(one), area(other)]


corner = st.floats(-3, 15)


@given(st.builds(Box, corner, corner, corner, corner))
def test_a_box_is_cut_at_the_borders(box: Box) -> None:
    inner = clipped(box, WIDTH, HEIGHT)
    assert clipped(inner, WIDTH, HEIGHT) == inner
    assert (0 <= inner.left <= WIDTH, 0 <= inner.bottom <= HEIGHT) == (True, True)
    if min(box) >= 0 and max(box.left, box.right) <= WIDTH and max(box.top, box.bottom) <= HEIGHT:
        assert inner == box


@given(st.builds(Box, corner, corner, corner, corner))
def test_whole_pixels_are_in_the_image_and_hold_the_box(box: Box) -> None:
    left, top, right, bottom = whole_pixels(box, WIDTH, HEIGHT)
    assert (0 <= left < right <= WIDTH, 0 <= top < bottom <= HEIGHT) == (True, True)
    inner = clipped(box, WIDTH, HEIGHT)
    if area(inner) > 0:
        assert (left <= inner.left < left + 1, right - 1 < inner.right <= right) == (True, True)
        assert (top <= inner.top < top + 1, bottom - 1 < inner.bottom <= bottom) == (True, True)


def test_padding_is_a_share_of_the_longer_side() -> None:
    assert padded(Box(100, 100, 140, 200), 0.1) == Box(90, 90, 150, 210)
    assert padded(Box(1, 2, 3, 4), 0) == Box(1, 2, 3, 4)
