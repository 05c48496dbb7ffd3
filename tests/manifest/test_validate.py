"""Without a home directory all works, and a ``~`` is an error instead of a directory of that name."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from origin import Origin
from support import blob, one, sha256
from weightcache import Manifest, StorageError, ensure, prune, publish, status, verify
from weightcache._transfer.auth import hub_token
from weightcache.manifest.validate import user_path
from weightcache.modal import WeightVolume

DATA = blob(1000)


@pytest.fixture(params=[None, "GONE", "/dev/null", "home"])
def homeless(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """A container with a random user id: no entry in passwd, and a HOME that is not set, or names no directory."""

    def nobody(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found: 4242")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(pwd, "getpwnam", nobody)
    for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    home: str | None = request.param
    if home == "GONE":
        home = str(tmp_path / "gone")  # not a fixed path, which root could make
    if home is not None:
        monkeypatch.setenv("HOME", home)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return home


@pytest.fixture
def manifest(origin: Origin) -> dict[str, Any]:
    origin.put("/w.pt", DATA)
    return one(DATA, origin.url("/w.pt"))


@pytest.mark.usefixtures("homeless")
def test_it_works_without_a_home(manifest: dict[str, Any], root: Path, tmp_path: Path) -> None:
    weights = ensure(manifest, root=root, progress=False)
    assert weights["sam2"].read_bytes() == DATA
    assert weights.link({"sam2": tmp_path / "app" / "w.pt"})["sam2"].read_bytes() == DATA
    assert publish(weights["sam2"], name="mine", root=root).digest == sha256(DATA)
    assert [each.state for each in status(manifest, root=root)] == ["ready"]
    assert hub_token() is None
    assert os.listdir() == []


@pytest.mark.parametrize(
    "use",
    [
        lambda manifest, _: ensure(manifest, root="~/weights", progress=False),
        lambda manifest, _: status(manifest, root="~"),
        lambda manifest, _: verify(manifest, root="~/weights"),
        lambda manifest, _: prune(manifest, root="~/weights"),
        lambda _, root: ensure("~/weights.toml", root=root),
        lambda *_: Manifest.load("~nobody-of-this-name/weights.toml"),
        lambda *_: WeightVolume("~/weights.toml", name="w", path="/w"),
        lambda _, root: publish("~/model.pt", name="m", root=root),
        lambda manifest, root: ensure(manifest, root=root, progress=False).link({"sam2": "~/models/sam2.pt"}),
        lambda manifest, root: ensure(manifest, root=root, progress=False).hf_cache("~/hub"),
    ],
)
@pytest.mark.usefixtures("homeless")
def test_a_tilde_that_leads_nowhere_is_an_error(
    use: Callable[[Any, Path], object], manifest: dict[str, Any], root: Path
) -> None:
    with pytest.raises(StorageError, match=r"cannot expand ~[a-z-]* in ~") as caught:
        use(manifest, root)
    assert "absolute path" in caught.value.hint
    assert os.listdir() == []


@pytest.mark.parametrize(
    "words",
    [
        ["publish", "x", "m", "--root", "~/weights"],
        ["status", "--root", "/tmp", "-m", "~/w.toml"],
        ["add", "w", "https://weights.invalid/w.pt", "-m", "~/w.toml"],
        ["add", "--from-dir", "~/old"],
        ["pin", "-m", "~/w.toml"],
    ],
)
def test_the_command_line_says_it(words: list[str], homeless: str | None, run: Any) -> None:
    code, out, err = run(*words)
    assert (code, out) == (5, "")
    assert "cannot expand ~ in ~/" in err
    assert ("HOME is not set" if homeless is None else f"HOME is {homeless!r}, which is not a directory") in err


@pytest.mark.usefixtures("homeless")
def test_a_directory_called_tilde_is_had_by_another_way_to_write_it(manifest: dict[str, Any]) -> None:
    Path("~").mkdir()
    Path("~/token").write_text("hf_thisIsNoTokenOfThisUser")
    assert hub_token() is None
    weights = ensure(manifest, root="./~", progress=False)
    assert weights["sam2"].is_relative_to(Path("~").absolute())


def test_a_home_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~") == str(tmp_path)
    assert user_path("~/a b") == f"{tmp_path}/a b"
    assert user_path("a/~") == "a/~"
    assert user_path(f"~{pwd.getpwuid(os.getuid()).pw_name}/x") == f"{pwd.getpwuid(os.getuid()).pw_dir}/x"


def test_an_empty_home_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")  # of which expanduser makes /weights
    with pytest.raises(StorageError, match="HOME is '', which is not a directory"):
        user_path("~/weights")
