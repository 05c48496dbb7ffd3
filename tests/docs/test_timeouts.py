"""Every snippet that calls `ensure` in a Modal app sets the timeout that a first download needs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2]
PAGES = [HERE / "README.md", *sorted((HERE / "docs").rglob("*.md")), *sorted((HERE / "examples").rglob("*.md"))]
PROGRAMS = sorted((HERE / "examples").rglob("*.py"))
LEAST = 600  # seconds; without an argument it is 300


def apps(code: str) -> Iterator[tuple[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, ast.Call]]:
    """Yield what ``@app.cls`` or ``@app.function`` decorates, if it calls `ensure`, with that decorator."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        used = {each.attr if isinstance(each, ast.Attribute) else getattr(each, "id", "") for each in ast.walk(node)}
        for decorator in node.decorator_list:
            is_app = isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in ("app.cls", "app.function")
            if is_app and used & {"ensure", "aensure"}:
                assert isinstance(decorator, ast.Call)
                yield node, decorator


def problems(code: str) -> list[str]:
    found = []
    for node, decorator in apps(code):
        starts = isinstance(node, ast.ClassDef) or "asgi_app" in ast.unparse(node) or "web_server" in ast.unparse(node)
        wanted = "startup_timeout" if starts else "timeout"
        values = {each.arg: ast.unparse(each.value) for each in decorator.keywords}
        if not values.get(wanted, "").isdigit() or int(values[wanted]) < LEAST:
            found.append(f"{node.name}: {wanted} is {values.get(wanted)}")
    return found


def snippets(page: Path) -> list[str]:
    if page.suffix == ".py":
        return [page.read_text()]
    found = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [code for code in found if "@app." in code]


@pytest.mark.parametrize("page", [*PAGES, *PROGRAMS], ids=lambda page: str(page.relative_to(HERE)))
def test_a_first_download_has_the_time_that_it_needs(page: Path) -> None:
    assert [problem for code in snippets(page) for problem in problems(code)] == []


def test_the_check_sees_the_snippets() -> None:
    checked = {page.name for page in [*PAGES, *PROGRAMS] for code in snippets(page) if list(apps(code))}
    assert {"README.md", "quickstart.md", "api.md", "use-it-in-your-modal-app.md", "app.py"} <= checked
    assert problems("@app.cls()\nclass A:\n    def load(self): cache.ensure()") == ["A: startup_timeout is None"]
    assert problems("@app.function(timeout=300)\ndef f(): ensure(m)") == ["f: timeout is 300"]
