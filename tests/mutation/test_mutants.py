"""The mutants of `make mutants`: which changes of the code are made, and which are left out."""

from __future__ import annotations

from collections import Counter

import pytest
from mutants import FOLDERS, is_valid, mutants_of, path_of, sampled


@pytest.mark.parametrize(
    ("source", "mutants"),
    [
        ("a = b < c", {"a = (b <= c)"}),
        ("a = b and c", {"a = (b or c)"}),
        ("a = not b", {"a = (b)"}),
        ("a = b + 2", {"a = (b - 2)", "a = b + (3)", "a = b + (1)"}),
        ("a = True", {"a = (False)"}),
        ("def a():\n    return b", {"def a():\n    return None"}),
        ("def a(b=1): pass", {"def a(b=(2)): pass", "def a(b=(0)): pass"}),
        ("while a:\n    break", {"while (not (a)):\n    break", "while a:\n    continue"}),
        ("try:\n    a()\nexcept OSError:\n    b()", {
            "try:\n    pass\nexcept OSError:\n    b()",
            "try:\n    a()\nexcept ZeroDivisionError:\n    b()",
            "try:\n    a()\nexcept OSError:\n    pass",
        }),
        ("self.a = b", {"pass"}),
        ("raise ValueError('a')", {"pass"}),
    ],
)  # fmt: skip
def test_what_is_changed(source: str, mutants: set[str]) -> None:
    found = mutants_of("_store/x", source.encode())
    assert {each.applied(source.encode()).decode() for each in found} == mutants


@pytest.mark.parametrize(
    "source",
    [
        '"""A docstring."""',
        "a: Literal['b']",
        "if TYPE_CHECKING:\n    a()",
        "__slots__ = ('a',)",
        "_log.info('a', 1)",
        "a = StorageError('a', 1)",
        "a = 1  # pragma: no cover",
        "a = f'{1}'",
        "a = b / c",
        "class A:\n    def __init__(self):\n        self.a = b",
    ],
)
def test_what_is_left_out(source: str) -> None:
    assert mutants_of("_store/x", source.encode()) == []


def test_a_change_of_a_line_that_is_not_ascii_is_at_its_place() -> None:
    source = "a = 'ä '; b = c < d\n"
    (mutant,) = mutants_of("_store/x", source.encode())
    assert mutant.applied(source.encode()).decode() == "a = 'ä '; b = (c <= d)\n"


def test_a_sample_is_even_valid_and_the_same_for_the_same_seed() -> None:
    mutants = sampled(10, seed=3)
    assert Counter(each.folder for each in mutants) == dict(zip(FOLDERS, (3, 3, 2, 2), strict=True))
    assert mutants == sampled(10, seed=3) != sampled(10, seed=4)
    sources = {each.module: path_of(each.module).read_bytes() for each in mutants}
    assert all(is_valid(each.applied(sources[each.module])) for each in mutants)
    assert all(each.applied(sources[each.module]) != sources[each.module] for each in mutants)


def test_only_what_runs_in_a_call_has_lines() -> None:
    """The lines of an import are those of whatever test comes first."""
    found = mutants_of("_store/x", b"A = 1\ndef a(b=True):\n    return b < 2.0\n")
    assert {(each.operator, each.line, tuple(each.lines)) for each in found} == {
        ("constant", 1, ()),
        ("constant", 2, ()),
        ("constant", 3, (3,)),
        ("compare", 3, (3,)),
        ("return", 3, (3,)),
    }
