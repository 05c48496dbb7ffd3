"""The path of one byte in docs/design.md: every file and function that it names exists, and no folder appears twice."""

from __future__ import annotations

import ast
import re
from itertools import groupby
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
SECTION = (HERE / "docs/design.md").read_text().partition("### The path of one byte")[2]
ROW = re.compile(r"^\| (\d+) \| `([\w/]+\.py)` \| `([\w.]+)` \| (\d+|you) \| ", re.MULTILINE)


def functions(path: Path) -> set[str]:
    """Return the functions and methods that a module defines, methods as ``Class.method``."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            inner = (each for each in node.body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)))
            found |= {f"{node.name}.{each.name}" for each in inner}
    return found


def stops() -> list[tuple[str, str, str, str]]:
    return ROW.findall(SECTION)


def test_every_stop_exists() -> None:
    assert [number for number, *_ in stops()] == [str(each) for each in range(1, len(stops()) + 1)]
    assert len(stops()) == len(re.findall(r"^\| \d+ \|", SECTION, re.MULTILINE)) > 10
    missing = [
        f"{file}: {function}"
        for _, file, function, _ in stops()
        if not (HERE / "weightcache" / file).is_file() or function not in functions(HERE / "weightcache" / file)
    ]
    assert missing == []


def test_the_byte_enters_each_folder_once_but_the_engine() -> None:
    folders = [folder for folder, _ in groupby(file.partition("/")[0] for _, file, _, _ in stops())]
    others = [folder for folder in folders if folder != "_engine"]
    assert sorted(others) == sorted(set(others))
    assert folders.count("_engine") > 1
    layers = re.findall(r'^  "([^"]+)",?$', (HERE / "pyproject.toml").read_text(), re.MULTILINE)
    known = {name for layer in layers for name in re.split(r"\W+", layer)}
    assert {folder.removesuffix(".py") for folder in folders} <= known


def test_the_caller_of_a_stop_is_a_stop_of_the_table() -> None:
    numbers = {number for number, *_ in stops()}
    assert {by for *_, by in stops()} <= numbers | {"you"}


def test_a_function_that_was_renamed_is_missed() -> None:
    found = functions(HERE / "weightcache/_api.py")
    assert {"ensure", "aensure"} <= found
    assert "no_such_function" not in found
    assert "Manifest.load" in functions(HERE / "weightcache/manifest/__init__.py")
