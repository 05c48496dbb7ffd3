"""Hints that can be followed: in a Modal container they name what a user runs or changes from outside."""

from __future__ import annotations

import ast
import errno
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from support import one
from weightcache import Manifest, ManifestError, NotCachedError, StorageError, ensure
from weightcache._environment import VOLUME_FLAGS, command, in_modal_container, set_variable, token_place

PACKAGE = Path(__file__).parents[1] / "weightcache"
# Commands for a root. In a container nobody can run one, so `command` writes each of them.
ON_A_ROOT = re.compile(r"`weightcache (?:ensure|status|verify|prune|bench|doctor)\b")
OF_A_VARIABLE = re.compile(r"^(?:set|give) .* in the environment|hf auth login|a Modal Secret that|on Modal: a Secret")


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    monkeypatch.delenv(VOLUME_FLAGS, raising=False)


def test_a_command_for_this_machine() -> None:
    assert command("ensure a", "/w", SimpleNamespace(name="v")) == "`weightcache ensure a --root /w`"
    assert command("prune") == "`weightcache prune`"
    assert "hf auth login" in token_place("HF_TOKEN")
    assert set_variable("T") == "set T in the environment (on Modal: a Secret)"


@pytest.mark.usefixtures("container")
def test_a_command_for_outside_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("ensure a", "/w", SimpleNamespace(name="v")) == "`weightcache ensure a --volume v`"
    for nameless in (SimpleNamespace(name=None), SimpleNamespace(name=""), SimpleNamespace(name=print), object()):
        assert command("ensure a", "/w", nameless) == "`weightcache ensure a --volume NAME`"
    assert "secrets=" in set_variable("T")
    assert "`weightcache ensure --volume NAME --secret NAME`" in set_variable("T")
    assert "--secret NAME" in token_place("T")
    monkeypatch.setenv(VOLUME_FLAGS, "--volume v --env e")  # a container of the command line
    assert command("ensure a", "/w") == "`weightcache ensure a --volume v --env e`"
    assert set_variable("T") == "add --secret NAME to the command: a Modal Secret that holds T"
    assert "secrets=" not in token_place("T")


@pytest.mark.parametrize(("name", "value"), [("MODAL_IS_REMOTE", "1"), ("MODAL_TASK_ID", "ta-1")])
def test_either_variable_of_modal_makes_a_container(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not in_modal_container()
    monkeypatch.setenv("MODAL_IS_REMOTE", "0")
    assert not in_modal_container()
    monkeypatch.setenv(name, value)
    assert in_modal_container()


@pytest.mark.usefixtures("container")
def test_the_hints_of_a_container(tmp_path: Path) -> None:
    with pytest.raises(NotCachedError) as caught:
        ensure(one(b"x", "https://h/x"), root=tmp_path / "w", offline=True)
    assert caught.value.hint.startswith(
        "run `weightcache ensure sam2 --volume NAME` with this manifest (-m) on your own"
    )
    with pytest.raises(NotCachedError) as caught:
        ensure(one(b"x"), root=tmp_path / "w")
    assert "run `weightcache publish PATH sam2 --root DIR` where its bytes are" in caught.value.hint
    assert "and then `weightcache push sam2 --volume NAME` there" in caught.value.hint
    (tmp_path / "weights.toml").write_text('[checkpoints.a]\nurls = ["https://h/x"]\n')
    with pytest.raises(ManifestError) as refused:
        Manifest.load(tmp_path / "weights.toml")
    assert refused.value.hint.startswith("run `weightcache pin a -m FILE`")
    assert refused.value.hint.endswith("then deploy the app again")
    full = StorageError.of(OSError(errno.ENOSPC, "No space left on device"), "write", "/w/x")
    assert "`weightcache prune --volume NAME`" in full.hint


def texts(code: str) -> Iterator[str]:
    """Yield the string literals of a module, with ``{}`` for what is filled in, but no docstring."""
    tree = ast.parse(code)
    inner = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inner.add(node.value)
        if isinstance(node, ast.JoinedStr):
            inner.update(value for value in node.values if isinstance(value, ast.Constant))
            yield "".join(str(each.value) if isinstance(each, ast.Constant) else "{}" for each in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inner:
            yield node.value


def unfit(code: str) -> list[str]:
    return [text for text in texts(code) if ON_A_ROOT.search(text) or OF_A_VARIABLE.search(text)]


def test_a_hint_of_the_wrong_kind_is_found() -> None:
    assert len(unfit('x = f"run `weightcache ensure {name} --root {root}` first"\ny = "run `weightcache prune`"')) == 2
    assert len(unfit('x = f"set {name} in the environment"\ny = "TOKEN (or run `hf auth login`)"')) == 2
    assert unfit('"""`weightcache ensure` here."""\nx = f"run {command(1)} first"') == []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_hint_goes_through_it(path: Path) -> None:
    if path.name not in ("_environment.py", "hub_client.py"):  # of the latter nothing runs in a container
        assert unfit(path.read_text(encoding="utf-8")) == []
