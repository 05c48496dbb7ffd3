"""The style of the pictures: every colour changes on a dark page, and a screen reader gets the figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import cost
from picture_style import COLOURS, WIDTH, Bar, bars, figure, legend, save

DOCS = Path(__file__).parents[2] / "docs"
ROWS = [
    Bar("usual <way>", {"build": 2.0, "load": 3.0}, ours=False, total="5 s"),
    Bar("ours", {"build": 1.0}, True, "1 s"),
]


def draw(path: Path) -> str:
    with figure(2) as (drawn, axes):
        bars(axes, ROWS)
        legend(axes, ["build", "load"])
        save(drawn, path, title="Build & load", description="usual: 5 s; ours: 1 s")
    return path.read_text()


def test_the_same_figures_are_the_same_bytes(tmp_path: Path) -> None:
    assert draw(tmp_path / "one.svg") == draw(tmp_path / "two.svg")


def test_it_has_a_title_and_a_description(tmp_path: Path) -> None:
    text = draw(tmp_path / "one.svg")
    assert 'role="img" aria-labelledby="title desc"' in text
    assert '<title id="title">Build &amp; load</title>' in text
    assert '<desc id="desc">usual: 5 s; ours: 1 s</desc>' in text


def test_a_colour_that_would_not_change_is_refused(tmp_path: Path) -> None:
    with figure(2) as (drawn, axes):
        axes.barh(0, 1, color="#123456")
        with pytest.raises(ValueError, match=r"one\.svg has colours .*'#123456'"):
            save(drawn, tmp_path / "one.svg", title="", description="")


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.svg")), ids=lambda path: path.name)
def test_a_picture_of_the_docs(path: Path) -> None:
    text = path.read_text()
    assert re.search(r"<title id=\"title\">[^<]+</title>\n<desc id=\"desc\">[^<]+</desc>", text)
    assert "@media (prefers-color-scheme: dark)" in text
    style = re.findall(r"<style>.*?</style>", text, re.DOTALL)
    assert len(style) == 1
    assert not re.findall(r"#[0-9a-f]{6}\b", text.replace(style[0], ""))
    used, light, dark = (
        set(re.findall(pattern, part))
        for pattern, part in (
            (r"var\(--([\w-]+)\)", text),
            (r"--([\w-]+):", style[0].partition("@media")[0]),
            (r"--([\w-]+):", style[0].partition("@media")[2]),
        )
    )
    assert used == light == dark
    assert used <= {*COLOURS}
    assert float(re.findall(r'width="([\d.]+)pt"', text)[0]) == 72 * WIDTH
    sizes = re.findall(r"font-size: ([\d.]+)px", text)
    assert sizes
    assert min(map(float, sizes)) * 358 / (72 * WIDTH) >= 11  # on a phone


def test_the_picture_of_costs(tmp_path: Path) -> None:
    cost.picture(tmp_path / "cost.svg", cost.App(), cost.Visit(), "L4")
    assert (tmp_path / "cost.svg").read_bytes() == (DOCS / "cost.svg").read_bytes()
