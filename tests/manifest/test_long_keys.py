"""Keys of many parts, which tomllib would read for minutes, and text that only looks like one."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightcache.manifest.long_keys import MOST_PARTS, has_long_key

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PARTS = MOST_PARTS + 1


@pytest.mark.parametrize(
    "text",
    [
        ".".join("a" * PARTS) + " = 1",
        ".".join(['"="'] * PARTS) + " = 1",
        ".".join(["'{,'"] * PARTS) + " = 1",
        '"=".a.' * PARTS + "a = 1",
        " . ".join("a" * PARTS) + " = 1",
        "[" + ".".join("a" * PARTS) + "]",
        "[[" + ".".join("a" * PARTS) + "]]",
        "a = {" + ".".join("a" * PARTS) + " = 1}",
        "a = [1, {b = '#', " + ".".join("a" * PARTS) + " = 1}]",
        'a = [{b = """x"""", ' + ".".join("a" * PARTS) + " = 1}]",
        "a = [{b = '''x'''', " + ".".join("a" * PARTS) + " = 1}]",
        'a = "\\"" # "\n' + ".".join("b" * PARTS) + " = 1",
        'a = """\n\\"""\n""\n""" # "\n' + ".".join("b" * PARTS) + " = 1",
    ],
)
def test_a_key_of_many_parts(text: str) -> None:
    tomllib.loads(text)
    assert has_long_key(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        ".".join("a" * MOST_PARTS) + " = 1",
        "# " + "A sentence. " * PARTS,
        "a = 1 # " + "a." * PARTS,
        'a = "' + "a." * PARTS + '"',
        "a = '" + "a." * PARTS + "'",
        'a = """\n' + "a." * PARTS + '\n"""',
        "a = '''" + "a." * PARTS + "'''",
        'a = "\\"' + "a." * PARTS + '"',
        "a = [" + "1.5, " * PARTS + "]",
        '"' + "a." * PARTS + '" = 1',
    ],
)
def test_what_only_looks_like_one(text: str) -> None:
    tomllib.loads(text)
    assert not has_long_key(text.encode())


@given(st.text(st.sampled_from("a.\"'#=\\\n {}[],"), max_size=40))
def test_whatever_it_is_given_it_finds_the_key_that_follows(text: str) -> None:
    """If tomllib reads what is before it, nothing there may hide a key."""
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert has_long_key((text + "\n" + ".".join("b" * PARTS) + " = 1\n").encode())
