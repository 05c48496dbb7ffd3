"""The comparison with other ways has no figure of its own, and a paragraph for each row of its table."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "comparison.md").read_text()
SOURCES = "".join((DOCS / name).read_text() for name in ("benchmarks.md", "cost.md", "volumes.md"))


def test_every_figure_is_one_of_the_measured_ones() -> None:
    text = re.sub(r"\]\([^)]*\)", "]", PAGE)
    figures = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)(?= (?:s|ms|MB|GiB)\b)", text)
    assert len(figures) > 20
    assert [figure for figure in figures if not re.search(rf"(?<![\w.]){re.escape(figure)}(?![\w.]*\d)", SOURCES)] == []


def test_every_row_has_a_paragraph() -> None:
    rows = re.findall(r"^\| \[(.+?)\]\(#", PAGE, re.MULTILINE)
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert [row.lower() for row in rows] == [heading.lower() for heading in headings]
    assert len(rows) == 6
