"""The threat model names a test for each threat, and each of them exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
PAGE = HERE / "docs/security.md"
CITED = re.compile(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)")


@cache
def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8")) if path.exists() else ast.Module([], [])
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_cited_test_exists() -> None:
    cited = CITED.findall(PAGE.read_text("utf-8"))
    assert [each for each in cited if each[0] not in functions(HERE / each[1])] == []
    assert len(set(cited)) > 60


def test_every_threat_names_a_test() -> None:
    parts = [part.split("\n") for part in PAGE.read_text("utf-8").split("\n\n") if part.startswith("| threat |")]
    rows = [row for part in parts for row in part[2:]]
    assert len(rows) > 40
    assert [row for row in rows if not CITED.search(row)] == []


def test_no_test_is_named_without_a_link() -> None:
    assert "`test_" not in CITED.sub("", PAGE.read_text("utf-8"))
