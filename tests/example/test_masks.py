"""Masks: whole things without specks and pinholes, and what a bag's handle encloses stays open."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fashion_crop.models.masks import HOLE, PART, clean, soften

Mask = NDArray[np.bool_]
CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))
SIDES = ((-1, 0), (1, 0), (0, -1), (0, 1))


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """Noise, sparse or dense: many parts, many holes."""
    height, width = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    chance = np.random.default_rng(draw(st.integers(0, 10_000)))
    return chance.random((height, width)) < draw(st.sampled_from([0.0, 0.1, 0.4, 0.6, 0.9, 1.0]))


def parts(mask: Mask, steps: tuple[tuple[int, int], ...]) -> list[set[tuple[int, int]]]:
    """The connected parts of a mask, by walking."""
    left, found = {(int(row), int(column)) for row, column in zip(*np.nonzero(mask), strict=True)}, []
    while left:
        edge, part = [left.pop()], set()
        while edge:
            row, column = edge.pop()
            part.add((row, column))
            near = {(row + down, column + right) for down, right in steps} & left
            left -= near
            edge += near
        found.append(part)
    return found


def holes(mask: Mask) -> list[set[tuple[int, int]]]:
    """The parts of what is not mask that do not reach the border."""
    ground = np.pad(~mask, 1, constant_values=True)
    return [part for part in parts(ground, SIDES) if (0, 0) not in part]


@given(masks())
def test_what_is_left_is_every_large_part_without_small_holes(mask: Mask) -> None:
    before = mask.copy()
    tidied = clean(mask)
    assert (mask == before).all()
    assert (tidied.shape, tidied.dtype) == (mask.shape, np.bool_)
    whole = parts(mask, SIDES + CORNERS)
    kept = [part for part in whole if len(part) >= PART * max(map(len, whole))]
    alone = np.zeros_like(mask)
    for place in (place for part in kept for place in part):
        alone[place] = True
    small = [hole for hole in holes(alone) if len(hole) <= HOLE * sum(map(len, kept))]
    for row, column in (place for hole in small for place in hole):
        alone[row - 1, column - 1] = True  # which has a border of one pixel there
    assert (tidied == alone).all()


@given(masks())
def test_to_tidy_again_changes_nothing_but_holes_that_have_become_small(mask: Mask) -> None:
    once = clean(mask)
    twice = clean(once)
    assert (twice & once == once).all()
    assert np.count_nonzero(twice) <= np.count_nonzero(once) * (1 + HOLE)


def test_an_empty_mask_stays_empty() -> None:
    assert not clean(np.zeros((5, 7), bool)).any()


@pytest.mark.parametrize("share", [1.0, 0.6, 0.25, 0.1])
def test_a_pair_in_one_mask_keeps_both(share: float) -> None:
    """Two shoes do not touch; the one behind is in part hidden by the other, or by what hangs over it."""
    mask = np.zeros((40, 60), bool)
    mask[5:25, 5:25] = True
    mask[10:30, 35 : 35 + round(20 * share)] = True
    assert (clean(mask) == mask).all()


@pytest.mark.parametrize(("area", "kept"), [(40, True), (39, False)])
def test_a_part_of_less_than_a_tenth_is_no_part(area: int, kept: bool) -> None:
    mask = np.zeros((20, 120), bool)
    mask[:20, :20] = True
    mask[5, 30 : 30 + area] = True
    assert clean(mask)[5, 30] == kept


def test_specks_go() -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    expected = mask.copy()
    mask[0, 0] = mask[17:20, 17:20] = True
    assert (clean(mask) == expected).all()


@pytest.mark.parametrize(("hole", "filled"), [(1, True), (10, True), (11, False), (30, False)])
def test_a_hole_of_more_than_a_hundredth_is_meant(hole: int, filled: bool) -> None:
    mask = np.ones((10, 101), bool)
    mask[1, 1 : 1 + hole] = False  # leaves 1,000 with a hole of 10
    assert clean(mask).all() == filled
    assert (clean(mask) == mask).all() != filled


def test_what_reaches_the_border_is_no_hole() -> None:
    """Neither in a small mask nor in a large one, around which there is little."""
    for side in (40, 600):
        mask = np.ones((side, side), bool)
        mask[0, 3] = mask[20, side - 1] = False
        assert (clean(mask) == mask).all()


def test_a_hole_ends_at_a_corner() -> None:
    """Pixels of the mask that touch at a corner close the way out."""
    mask = np.ones((40, 40), bool)
    mask[10, 10] = mask[11, 11] = False
    assert clean(mask).all()


def test_a_mask_that_is_part_of_a_larger_one() -> None:
    """As the pipeline has them: neither contiguous nor writable."""
    whole = np.zeros((30, 30), bool)
    whole[5:20, 5:20] = True
    whole.flags.writeable = False
    assert (clean(whole[3:12:1, 3:25]) == whole[3:12, 3:25]).all()


@given(masks())
def test_opacity_is_where_the_mask_is(mask: Mask) -> None:
    before = mask.copy()
    opacity = soften(mask)
    assert (mask == before).all()
    assert (opacity.shape, opacity.dtype) == (mask.shape, np.uint8)
    assert (opacity[mask] >= 85).all()
    far = ~cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)
    assert not opacity[far].any()
    inner = cv2.erode(mask.astype(np.uint8), np.ones((7, 7), np.uint8), borderValue=1).astype(bool)
    assert (opacity[inner] == 255).all()


def test_opacity_is_full_within_and_less_at_a_straight_edge_and_none_beyond() -> None:
    mask = np.zeros((12, 12), bool)
    mask[3:, 3:] = True
    assert soften(mask)[-1].tolist() == [0, 0, 0, 204, 255, 255, 255, 255, 255, 255, 255, 255]
    assert soften(mask)[3, 3] == 97


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_thin_strap_stays(width: int) -> None:
    mask = np.zeros((20, 20), bool)
    mask[:, 8 : 8 + width] = True
    assert soften(mask)[10].max() >= 85 * width


@pytest.mark.parametrize("radius", [12, 40])
def test_an_edge_has_no_steps_when_it_is_enlarged(radius: int) -> None:
    """At four times the size, steps of a mask's pixels would be four pixels high."""
    size = 2 * radius + 8
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    small = soften(rows**2 + columns**2 <= radius**2)
    opacity = np.asarray(Image.fromarray(small).resize((4 * size, 4 * size), Image.Resampling.BICUBIC))
    distances = []
    for angle in np.linspace(0, 2 * np.pi, 720, endpoint=False):
        along = np.arange(4 * size / 2, 0, -0.25) - 4  # inwards, until half of the opacity
        x, y = (np.rint(2 * size - 0.5 + along * each(angle)).astype(int) for each in (np.cos, np.sin))
        distances.append(along[np.argmax(opacity[y, x] >= 128)])
    assert np.std(distances) < 0.9
    assert abs(np.mean(distances) - 4 * radius) < 3
