"""`publish`: weights that were made here get a place, a receipt and commits, and print as their entry."""

from __future__ import annotations

import inspect
import logging
import os
import pickle
import random
import re
from pathlib import Path
from typing import Any

import pytest

import weightcache._coordination.mount_check
from control_plane import ControlPlane, needs_namespaces
from noting_volume import Volume
from support import change_settings, directory, one, partials, sha256, visible
from trained import DATA, FILES, kinds, receipts, write
from volume_model import Switches, View
from volume_model import Volume as Shared
from weightcache import Checkpoint, Manifest, VolumeError, ensure, publish, status
from weightcache._coordination import lock
from weightcache.cli.commands import COMMANDS

HERE = Path(__file__).parents[2]
PAGE = HERE / "docs/how-to/publish-what-you-trained.md"


# what it does --------------------------------------------------------------------------------------------------


def test_a_file(made: Path, root: Path) -> None:
    checkpoint = publish(made, name="seg", root=root)
    assert Manifest([checkpoint]) == Manifest.load(one(DATA, name="seg", file="model.bin"))
    [path] = visible(root)
    assert path == f"seg/{sha256(DATA)[:16]}/model.bin"
    assert receipts(root) == ["seg"]
    assert partials(root) == []
    assert status(Manifest([checkpoint]), root=root)[0].state == "ready"
    made.write_bytes(b"the next epoch")  # it is a copy
    assert (root / path).read_bytes() == DATA
    assert made.stat().st_nlink == 1


def test_a_directory(folder: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"linked")
    (folder / "linked.txt").symlink_to(tmp_path / "blob")
    (folder / "empty/also").mkdir(parents=True)
    (tmp_path / "latest").symlink_to(folder)
    checkpoint = publish(tmp_path / "latest", name="tag", root=root)
    assert checkpoint == Manifest.load(directory({**FILES, "linked.txt": b"linked"}, name="tag"))["tag"]
    weights = ensure(Manifest([checkpoint]), root=root)
    assert weights.report["tag"].outcome == "hit"
    assert {path: (weights["tag"] / path).read_bytes() for path in FILES} == FILES
    assert not (weights["tag"] / "linked.txt").is_symlink()
    assert not (weights["tag"] / "empty").exists()


def test_the_same_again_writes_nothing(folder: Path, root: Path) -> None:
    first = publish(folder, name="tag", root=root, volume=Volume(root))
    seen = {path: (root / path).stat() for path in visible(root)}
    volume = Volume(root)
    assert publish(folder, name="tag", root=root, volume=volume) == first
    assert {path: (root / path).stat() for path in visible(root)} == seen
    assert kinds(volume) == ["commit", "reload"]  # a prune in another container may have deleted it


def test_a_new_training_has_a_place_of_its_own(made: Path, root: Path) -> None:
    old = publish(made, name="seg", root=root)
    made.write_bytes(b"better")
    new = publish(made, name="seg", root=root)
    assert old.digest != new.digest
    assert [ensure(Manifest([each]), root=root)["seg"].read_bytes() for each in (old, new)] == [DATA, b"better"]


def test_the_order_of_commits(folder: Path, root: Path) -> None:
    volume = Volume(root)
    publish(folder, name="tag", root=root, volume=volume)
    assert volume.calls == ["commit: 4 published, 0 receipts", "commit: 4 published, 1 receipts"]


def test_what_the_root_has_under_another_name_is_linked(made: Path, root: Path, monkeypatch: Any) -> None:
    first = publish(made, name="a", root=root)
    published = ensure(Manifest([first]), root=root)["a"]
    publish(published, name="b", root=root)
    assert published.stat().st_nlink == 2
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no hard links here")))
    publish(made, name="c", root=root)
    assert published.stat().st_nlink == 2
    assert len(visible(root)) == 3
    inode = published.stat().st_ino
    assert publish(published, name="a", root=root) == first  # a published file itself: a hit
    assert published.stat().st_ino == inode


def test_what_lies_in_its_place_is_adopted_or_healed(folder: Path, root: Path) -> None:
    checkpoint = Manifest.load(directory(FILES, name="tag"))["tag"]
    place = write(root / "tag" / checkpoint.version, FILES)
    inodes = {path: (place / path).stat().st_ino for path in FILES}
    assert publish(folder, name="tag", root=root) == checkpoint
    assert {path: (place / path).stat().st_ino for path in FILES} == inodes
    (place / "model.bin").write_bytes(b"cut")
    (place / "config.json").unlink()
    assert status(Manifest([checkpoint]), root=root)[0].state == "damaged"
    publish(folder, name="tag", root=root)
    assert {path: (place / path).read_bytes() for path in FILES} == FILES
    assert status(Manifest([checkpoint]), root=root)[0].state == "ready"


def test_what_is_hinted_where_it_is_missing(made: Path, root: Path, tmp_path: Path) -> None:
    manifest = Manifest([publish(made, name="seg", root=root)])
    with pytest.raises(weightcache.NotCachedError) as caught:
        ensure(manifest, root=tmp_path / "other")
    assert f"weightcache publish PATH seg --root {tmp_path / 'other'}" in caught.value.hint


# the entry -----------------------------------------------------------------------------------------------------

ODD = {"a b/ü'\"#.json": b"x", "[c].bin": b"", "d = e": b"yy", ".hidden": b"z", "日本": b""}


@pytest.mark.parametrize("name", ["tag", "7", "a-b_c", "sam2.1"])
def test_it_prints_as_its_entry(name: str, folder: Path, root: Path, tmp_path: Path) -> None:
    files = publish(write(tmp_path / "odd", ODD), name=name, root=root)
    single = publish(tmp_path / "odd" / "a b" / "ü'\"#.json", name="single", root=root)
    (tmp_path / "weights.toml").write_text(f"{files}\n{single}\n", encoding="utf-8")
    manifest = Manifest.load(tmp_path / "weights.toml")
    assert manifest.checkpoints == (files, single)
    assert [each.outcome for each in ensure(manifest, root=root).report.values()] == ["hit", "hit"]
    assert f"{single}".splitlines() == [
        "[checkpoints.single]",
        "urls = []",
        'file = "ü\'\\"#.json"',
        f'sha256 = "{sha256(b"x")}"',
        "size = 1",
    ]


# training here, serving there ----------------------------------------------------------------------------------

SWITCHES = {
    "as the guide has it": Switches(),
    "a reload discards": Switches(reload_over="discard"),
    "no times are kept, any order": Switches(keeps_mtime=False, shuffle=random.Random(7)),
}


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_one_container_publishes_and_others_serve(switches: Switches, tmp_path: Path) -> None:
    shared = Shared(tmp_path / "server", switches=switches)
    training, early = View(shared, tmp_path / "training"), View(shared, tmp_path / "early")
    out = write(training.root / "runs/7", FILES)  # on the Volume itself, and no commit has taken it
    checkpoint = publish(out, name="tag", root=training.root, volume=training)
    assert {path: (out / path).read_bytes() for path in FILES} == FILES
    sent = pickle.loads(pickle.dumps(checkpoint))  # as Modal sends it to another function
    entry = tmp_path / "weights.toml"
    entry.write_text(f"version = 1\n\n{checkpoint}\n")
    for manifest in (Manifest([sent]), entry):
        late = View(shared, tmp_path / f"late-{type(manifest).__name__}")
        weights = ensure(manifest, root=late.root, volume=None)
        assert weights.report["tag"].outcome == "hit"
        assert {path: (weights["tag"] / path).read_bytes() for path in FILES} == FILES
    weights = ensure(Manifest([sent]), root=early.root, volume=early, lease=None)  # it must reload to see it
    assert (weights["tag"] / "model.bin").read_bytes() == DATA


def test_the_how_to_runs(tmp_path: Path) -> None:
    needs_namespaces()
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    [entry] = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "tagger.py").write_text(code)
    with ControlPlane(tmp_path / "plane") as plane:
        done = plane.client("-m", "modal", "run", str(tmp_path / "tagger.py"))
        [volume] = plane.volumes.values()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "['config.json', 'model.safetensors']\n" + entry in done.stdout
    assert len([path for path in volume.files if path.startswith("tagger/")]) == 2


# the volume ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("good", "left"), [(0, []), (1, ["seg"])], ids=["the data", "the receipt"])
def test_what_no_commit_took_is_an_error_and_the_next_call_makes_it_good(
    good: int, left: list[str], made: Path, root: Path
) -> None:
    class Failing(Volume):
        def commit(self) -> None:
            super().commit()
            if len(self.calls) > good:
                raise RuntimeError("no quorum")

    with pytest.raises(VolumeError, match=r"perhaps only in this container: commit .* failed: .*no quorum") as caught:
        publish(made, name="seg", root=root, volume=Failing(root))
    assert caught.value.operation == "commit"
    assert "call publish again" in caught.value.hint
    assert receipts(root) == left  # never before its data
    [path] = visible(root)
    inode = (root / path).stat().st_ino
    if good:
        with pytest.raises(VolumeError, match="only in this container"):  # it was a hit, and is still not committed
            publish(made, name="seg", root=root, volume=Volume(root, commit=3))
    volume = Volume(root)
    publish(made, name="seg", root=root, volume=volume)
    assert kinds(volume) == (["commit", "reload"] if good else ["commit", "commit"])  # never a reload first
    assert (root / path).stat().st_ino == inode
    assert receipts(root) == ["seg"]


def test_nothing_of_ours_is_open_at_a_commit(folder: Path, root: Path) -> None:
    held: list[str] = []

    class Watching(Volume):
        def commit(self) -> None:
            super().commit()
            links = [f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd")]
            targets = [os.readlink(link) for link in links if os.path.lexists(link)]
            held.extend(each for each in targets if each.startswith((f"{root}/", f"{folder}/")))

    publish(folder, name="tag", root=root, volume=(volume := Watching(root)))
    assert len(volume.calls) == 2
    assert held == []


def test_a_volume_that_was_forgotten(
    made: Path, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(weightcache._coordination.mount_check, "MODAL_VOLUMES", f"{os.path.realpath(root.parent)}/")
    with caplog.at_level(logging.WARNING, "weightcache"):
        publish(made, name="seg", root=root)
    assert "no volume= was given" in caplog.text


# the documentation ---------------------------------------------------------------------------------------------


def test_the_documented_signature() -> None:
    signature = inspect.signature(publish)
    first, *rest = signature.parameters.values()
    assert first.kind is first.POSITIONAL_OR_KEYWORD
    assert all(each.kind is each.KEYWORD_ONLY for each in rest)
    shown = str(signature.replace(parameters=[each.replace(annotation=each.empty) for each in (first, *rest)]))
    assert f"publish{shown.replace(chr(39), '')}" in (HERE / "docs/reference/api.md").read_text()
    assert signature.return_annotation == Checkpoint.__name__
    assert "publish" in [command.name for command in COMMANDS]


def test_hashing_is_progress_to_who_waits(made: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[tuple[str, int]] = []
    change_settings(monkeypatch, lock_beat=0.0)
    monkeypatch.setattr(lock.Holder, "_write", lambda self: noted.append((self._doing, self._done)))
    publish(made, name="seg", root=root)
    assert max(done for doing, done in noted if doing == "hashing the files to publish") > 0
