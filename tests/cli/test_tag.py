"""``weightcache tag`` and the flags ``--tag``, ``--keep`` and ``--no-manifest`` of other commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support import sha256

ONE, TWO = sha256(b"one")[:16], sha256(b"two")[:16]


@pytest.fixture
def root(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEIGHTCACHE_ROOT", str(root))
    return root


@pytest.fixture
def published(run: Any, root: Path) -> None:
    """Two versions, the first of which was tagged first."""
    for data, *keep in (("one", "--keep", "1"), ("two",)):
        Path("model.bin").write_text(data)
        code, out, err = run("publish", "model.bin", "tagger", "--tag", "newest", *keep)
        assert (code, "[checkpoints.tagger]" in out) == (0, True), err


def versions(run: Any, *words: str) -> list[tuple[str, str, bool]]:
    code, out, err = run("tag", *words, "--json")
    assert code == 0, err
    return [(each["version"], each["tag"], each["current"]) for each in json.loads(out)["publications"]]


@pytest.mark.usefixtures("published")
def test_listing_and_rolling_back(run: Any) -> None:
    assert versions(run) == [(TWO, "newest", True), (ONE, "newest", False)]
    code, out, _ = run("tag")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()] == [["tagger", "newest", TWO], ["tagger", "newest", ONE]]
    assert [line.endswith("current, keep 1") for line in out.splitlines()] == [True, False]
    assert versions(run, "tagger", ONE) == [(ONE, "newest", True), (TWO, "newest", False), (ONE, "newest", False)]
    assert versions(run, "tagger", TWO, "--tag", "stable") == [(TWO, "stable", True)]
    assert len(versions(run)) == 4
    assert len(versions(run, "tagger", "--tag", "newest")) == 3
    assert versions(run, "other") == []


@pytest.mark.usefixtures("published")
def test_other_commands_take_a_tag(run: Any, root: Path) -> None:
    place = f"{root}/tagger/{TWO}/model.bin"
    for words in (["ensure"], ["status"], ["verify"]):
        code, out, err = run(*words, "tagger", "--tag", "newest")
        assert (code, place in out) == (0, True), err
        code, _, err = run(*words, "tagger", "--tag", "stable")
        assert (code, "has no publication" in err) == (1, True)
        code, _, err = run(*words, "--tag", "newest")
        assert (code, "--tag needs one NAME" in err) == (2, True)
    code, out, _ = run("ensure", "tagger", "--tag", "newest", "--dry-run")
    assert (code, "keep 1 file" in out) == (0, True)


@pytest.mark.usefixtures("published")
def test_prune_without_a_manifest(run: Any, root: Path) -> None:
    code, _, err = run("prune", "--older-than", "0")
    assert (code, "there is no such file" in err) == (2, True)
    assert run("prune", "--no-manifest")[1] == "nothing to delete\n"  # young
    code, out, err = run("prune", "--no-manifest", "--older-than", "0", "--yes")
    assert (code, f"deleted  {root}/tagger/{ONE}\n" in out) == (0, True), err
    assert [path.parent.name for path in root.glob("tagger/*/*")] == [TWO]
    code, _, err = run("tag", "tagger", ONE)
    assert (code, f"there are: {TWO}" in err) == (1, True)


@pytest.mark.usefixtures("published")
def test_deleting_a_tag(run: Any, root: Path) -> None:
    assert versions(run, "tagger", ONE, "--tag", "canary")[0] == (ONE, "canary", True)
    code, out, err = run("tag", "tagger", "--tag", "canary", "--delete")
    assert (code, out) == (0, "")
    assert "deleted the tag canary of tagger (1 publication(s))" in err
    assert versions(run) == [(TWO, "newest", True), (ONE, "newest", False)]
    code, _, err = run("tag", "tagger", "--tag", "canary", "--delete")
    assert (code, "the tag canary of tagger has no publication" in err) == (1, True)
    for words in (["tagger"], ["--tag", "newest"], ["tagger", ONE, "--tag", "newest"], []):
        code, _, err = run("tag", *words, "--delete")
        assert (code, "--delete needs NAME and --tag TAG" in err) == (2, True)
    assert len(list(root.glob("tagger/*/*"))) == 2


def test_wrong_usage(run: Any, root: Path) -> None:
    Path("model.bin").write_text("one")
    for words, problem in (
        (("publish", "model.bin", "tagger", "--keep", "2"), "give tag= too"),
        (("publish", "model.bin", "tagger", "--tag", "newest", "--keep", "0"), "keep must be"),
        (("publish", "model.bin", "tagger", "--tag", "../x"), "a name is 1 to 100"),
        (("tag", "tagger", "--keep", "2"), "--keep needs a VERSION"),
    ):
        code, _, err = run(*words)
        assert (code, problem in err) == (2, True), err
    assert run("tag")[:2] == (0, "")
    assert not root.exists()
