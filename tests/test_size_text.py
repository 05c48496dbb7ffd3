"""Sizes: one form for all that are printed, and none that rounds a size to 0.0 MB."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from weightcache._size_text import rate_text, size_text

PACKAGE = Path(__file__).parents[1] / "weightcache"
UNIT = re.compile(r"^ ?[kMGT]B\b")  # after a number; whole bytes and MiB are exact


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (999.6, "1.0 kB"),
        (1000, "1.0 kB"),
        (49_999, "50.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "0.1 MB"),
        (897_952_466, "898.0 MB"),
        (999_949_999, "999.9 MB"),
        (999_950_000, "1.0 GB"),
        (1_240_000_000, "1.2 GB"),
    ],
)
def test_a_size(size: float, text: str) -> None:
    assert size_text(size) == text
    assert rate_text(size) == f"{text}/s"


def test_only_nothing_is_shown_as_nothing() -> None:
    assert [size for size in (*range(1, 2000), 49_999, 50_000, 99_999) if size_text(size).startswith("0.0")] == []


def numbers_with_a_unit(code: str) -> Iterator[str]:
    """Yield each formatted number that a unit of bytes follows."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.JoinedStr):
            for value, following in zip(node.values, node.values[1:], strict=False):
                is_text = isinstance(following, ast.Constant) and UNIT.match(str(following.value))
                if isinstance(value, ast.FormattedValue) and value.format_spec and is_text:
                    yield ast.unparse(node)


def test_a_size_of_the_wrong_kind_is_found() -> None:
    found = list(numbers_with_a_unit("f'{size / 1e6:.1f} MB'\nf'{a:.0f} kB/s'\nf'{n:,} bytes'\nf'{n} MiB'"))
    assert len(found) == 2


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_size_has_that_form(path: Path) -> None:
    code = path.read_text(encoding="utf-8")
    if path.name != "_size_text.py":
        assert list(numbers_with_a_unit(code)) == []
        assert not re.search(r"/ 1e[369]\b|/ 10\*\*[369]\b|/ 1_000_000\b", code), "use size_text"
