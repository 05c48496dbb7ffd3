"""Texts of others in messages, and lists of any length."""

from __future__ import annotations

import pytest

from weightcache._message_text import listed, printable, printable_line, problem_lines


def test_what_others_wrote_is_shown_with_escapes() -> None:
    assert printable("a\x1b[2J\n\u202e\udcffé") == "a\\x1b[2J\n\\u202e\\udcffé"
    assert printable_line("a\nb\r\tc") == r"a\nb\r\tc"


@pytest.mark.parametrize(
    ("items", "shown"),
    [([], ""), (["a"], "a"), (["a", "b"], "a, b"), (["a", "b", "c", "d"], "a, b and 2 more")],
)
def test_a_list_has_an_end(items: list[str], shown: str) -> None:
    assert listed(items, 2) == shown
    assert listed(dict.fromkeys(items), 2) == shown


def test_each_problem_has_a_line_of_its_own() -> None:
    assert problem_lines([]) == ""
    assert problem_lines(["a", "b\nc"]) == "\n  a\n  b\\nc"
    assert problem_lines(["a", "b", "c"], 2) == "\n  a\n  b\n  and 1 more"
