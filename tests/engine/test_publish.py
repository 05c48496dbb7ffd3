"""`publish`: weights that were made here get a place, a receipt and commits, and print as their entry."""

from __future__ import annotations

import errno
import inspect
import json
import logging
import os
import pickle
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import weightcache
from control_plane import ControlPlane, needs_namespaces
from origin import Origin
from support import blob, child, directory, finish, one, partials, sha256, start_together, visible
from test_crash import STEPS
from test_main import run
from test_volume import Volume
from volume_model import Switches, View
from volume_model import Volume as Shared
from weightcache import Checkpoint, Manifest, ManifestError, StorageError, VolumeError, ensure, publish, status
from weightcache._store import files as store_files
from weightcache._store import receipts as store_receipts
from weightcache._store.partials import BLOCK
from weightcache.cli.main import build_parser

HERE = Path(__file__).parents[2]
PAGE = HERE / "docs/how-to/publish-what-you-trained.md"
DATA = blob(2 * BLOCK + 5)
FILES = {"config.json": b"{}", "model.bin": DATA, "vocab/.merges": b"", "vocab/words.txt": b"a b"}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A file, as training leaves it."""
    path = tmp_path / "out" / "model.bin"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory, as training leaves it."""
    return write(tmp_path / "run", FILES)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def receipts(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob(".weightcache/receipts/*/*.json"))


def kinds(volume: Volume) -> list[str]:
    return [call.partition(":")[0] for call in volume.calls]


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
    assert volume.calls == []


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
    command = [sys.executable, "-m", "modal", "run", str(tmp_path / "tagger.py")]
    with ControlPlane(tmp_path / "plane") as plane:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MODAL_")} | plane.env()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/", timeout=120)
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
    assert kinds(volume)[-1] == "commit"
    assert "reload" not in kinds(volume)
    assert (root / path).stat().st_ino == inode
    assert receipts(root) == ["seg"]
    publish(made, name="seg", root=root, volume=(again := Volume(root)))
    assert again.calls == []


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
    monkeypatch.setattr(weightcache._coordination.volume, "MODAL_VOLUMES", f"{os.path.realpath(root.parent)}/")
    with caplog.at_level(logging.WARNING, "weightcache"):
        publish(made, name="seg", root=root)
    assert "no volume= was given" in caplog.text


# what is refused -----------------------------------------------------------------------------------------------


def test_all_that_speaks_against_a_directory_is_said_at_once(folder: Path, root: Path, tmp_path: Path) -> None:
    write(folder, {"a\\b": b"", "new\nline": b"", "Config.json": b"", "sub/.weightcache/receipts/x": b""})
    (folder / os.fsdecode(b"\xff")).write_bytes(b"")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "socket"))
    (folder / "back").symlink_to(folder)
    (folder / "nowhere").symlink_to("nothing")
    with pytest.raises(ManifestError) as caught:
        publish(folder, name="a b", root=root)
    assert caught.value.source == str(folder)
    said = "\n".join(sorted(caught.value.problems))
    assert len(caught.value.problems) == 10, said
    for problem in (
        "'pipe' is not a regular file",
        "'socket' is not a regular file",
        "'back' is a link to a directory",
        "'nowhere' is a symbolic link to nothing",
        "'sub/.weightcache' is the data of a root",
        "checkpoints.'a b': a name is 1 to 100 of",
        "'a\\\\b': holds a backslash",
        "'new\\nline': holds a control",
        "'\\udcff': holds a control or unprintable",
        "differs from 'Config.json' only in case",
    ):
        assert problem in said.replace("differs from 'config.json'", "differs from 'Config.json'"), (problem, said)
    assert "nothing was published" in caught.value.hint
    assert not root.exists()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_nothing_to_publish(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty/also").mkdir(parents=True)
    with pytest.raises(ManifestError, match=r"checkpoints\.x\.files: is empty"):
        publish(tmp_path / "empty", name="x", root=root)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ManifestError, match="'pipe' is not a regular file"):
        publish(tmp_path / "pipe", name="x", root=root)
    for path in ("nothing", "empty/nothing"):
        with pytest.raises(StorageError, match=f"cannot read .*{path}: No such file") as caught:
            publish(tmp_path / path, name="x", root=root)
        assert caught.value.errno == errno.ENOENT
        assert caught.value.hint == "give the path of something that is there"
    assert not root.exists()


def test_what_a_programmer_gets_wrong(made: Path, root: Path, tmp_path: Path) -> None:
    wrong: Any
    for wrong in (7, b"bytes", None):
        with pytest.raises(TypeError, match="path must be a path, not"):
            publish(wrong, name="x", root=root)
    for wrong in ("", "a\0b"):
        with pytest.raises(ValueError, match="path must be the path of a file or a directory, got"):
            publish(wrong, name="x", root=root)
    with pytest.raises(TypeError, match="name must be a string, not"):
        publish(made, name=7, root=root)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"volume must have commit\(\) and reload\(\)"):
        publish(made, name="x", root=root, volume=object())  # type: ignore[arg-type]
    assert not root.exists()
    publish(made, name="x", root=root)
    (tmp_path / "mount").symlink_to(root)
    for wrong in (root, tmp_path, tmp_path / "mount", "/"):
        with pytest.raises(ValueError, match="contains the root"):
            publish(wrong, name="x", root=root)
    with pytest.raises(ValueError, match="where files are not verified yet"):
        publish(root / ".weightcache/partial", name="x", root=root)
    assert len(visible(root)) == 1


def test_what_cannot_be_read(root: Path) -> None:
    with pytest.raises(StorageError, match="cannot read /proc/self/mem: Input/output error") as caught:
        publish("/proc/self/mem", name="x", root=root)
    assert caught.value.errno == errno.EIO
    with pytest.raises(StorageError, match="/proc/version changed while it was read"):
        publish("/proc/version", name="x", root=root)  # whose size is not that of its bytes
    assert visible(root) == []
    assert partials(root) == []


def test_a_directory_that_cannot_be_listed(folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Any) -> Any:  # who runs the tests is root, and may list all
        if str(path) == str(folder / "vocab"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    real = os.scandir
    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(StorageError, match=f"cannot read {folder}/vocab: Permission denied"):
        publish(folder, name="tag", root=root)


def test_what_is_hinted_to_a_user_who_may_not_read() -> None:
    error = StorageError.of(PermissionError(errno.EACCES, "Permission denied"), "read", "/out/model.bin")
    assert error.hint == "let this user read it"  # who runs the tests is root, and may read all


def change(path: Path) -> None:
    """Other bytes, and by size and time the same file."""
    seen = path.stat()
    with open(path, "rb+") as stream:
        stream.write(b"changed")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


@pytest.mark.parametrize("what", ["append", "replace", "add", "remove"])
def test_files_that_change_while_they_are_hashed(what: str, folder: Path, root: Path, monkeypatch: Any) -> None:
    def meanwhile(*arguments: Any) -> Any:
        digests = real(*arguments)
        if what == "append":
            with open(folder / "model.bin", "ab") as stream:
                stream.write(b"more")
        elif what == "replace":
            (folder / "other").write_bytes(DATA)
            os.replace(folder / "other", folder / "model.bin")
        elif what == "add":
            (folder / "model-2.bin").write_bytes(b"")
        else:
            (folder / "model.bin").unlink()
        return digests

    real = store_files.in_parallel
    monkeypatch.setattr(store_files, "in_parallel", meanwhile)
    with pytest.raises(StorageError, match=r"model.*\.bin changed while it was read") as caught:
        publish(folder, name="tag", root=root)
    assert "when whatever writes it has ended" in caught.value.hint
    assert not root.exists()


@pytest.mark.parametrize("what", [change, Path.unlink], ids=["changes", "vanishes"])
def test_a_file_that_changes_while_it_is_copied(what: Any, folder: Path, root: Path, monkeypatch: Any) -> None:
    def meanwhile(*arguments: Any) -> Any:
        what(folder / "model.bin")
        return real(*arguments)

    real = store_receipts.held_files
    with monkeypatch.context() as patch:
        patch.setattr(store_receipts, "held_files", meanwhile)
        with pytest.raises(StorageError, match=r"model\.bin"):
            publish(folder, name="tag", root=root)
    assert visible(root) == []  # none of the other files either
    assert partials(root) == []
    (folder / "model.bin").write_bytes(DATA)
    publish(folder, name="tag", root=root)
    assert len(visible(root)) == 4


# the disk ------------------------------------------------------------------------------------------------------


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    root = small_disk / "root"
    folder = write(tmp_path / "big", {"1": b"small", "2": blob(5_000_000), "3": blob(5_000_000, 1)})
    with pytest.raises(StorageError, match="the disk is full") as caught:
        publish(folder, name="big", root=root)
    assert caught.value.errno == errno.ENOSPC
    assert visible(root) == []
    assert partials(root) == []  # nobody could use it, and it is in the way
    publish(folder / "2", name="fits", root=root)
    assert len(visible(root)) == 1
    subprocess.run(["dd", "if=/dev/zero", f"of={small_disk}/filler", "bs=4k"], capture_output=True, check=False)
    with pytest.raises(StorageError, match="the disk is full"):
        publish(folder / "1", name="none", root=root)
    assert partials(root) == []  # not even with an empty journal


def test_a_read_only_root(small_disk: Path, folder: Path, tmp_path: Path) -> None:
    root = small_disk / "root"
    checkpoint = publish(folder, name="tag", root=root)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    try:
        assert publish(folder, name="tag", root=root) == checkpoint
        with pytest.raises(StorageError, match=f"cannot publish to {root}: it is read-only here") as caught:
            publish(folder, name="other", root=root)
        assert caught.value.hint == "publish from a container that mounts the Volume for writing"
    finally:
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_disk_that_fails(call: str, made: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        if call == "replace" and not str(arguments[0]).startswith(str(root)):  # a note on the container's own disk
            return real(*arguments)
        if call == "write" and len(arguments[1]) < BLOCK:
            return real(*arguments)
        raise OSError(errno.EIO, "Input/output error")

    real = getattr(os, call)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError, match=r"cannot (write to|publish) .*Input/output error") as caught:
            publish(made, name="seg", root=root)
    assert caught.value.errno == errno.EIO
    assert visible(root) == []
    assert partials(root) == []
    publish(made, name="seg", root=root)
    assert len(visible(root)) == 1


# the end of a process ------------------------------------------------------------------------------------------

INTERRUPTED = """
import signal
from weightcache import publish
count, real = 0, os.write
def write(descriptor, data):
    global count
    count += len(data) > 1000
    if count == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return real(descriptor, data)
os.write = write
try:
    publish(sys.argv[1], name="tag", root=sys.argv[2])
except KeyboardInterrupt:
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if os.path.lexists(link)]
    print(json.dumps([target for target in targets if target.startswith(sys.argv[2])]))
"""


def test_a_keyboard_interrupt_leaves_nothing(folder: Path, root: Path) -> None:
    assert json.loads(finish(child(INTERRUPTED, str(folder), str(root)))) == []
    assert visible(root) == []
    assert partials(root) == []
    publish(folder, name="tag", root=root)
    assert len(visible(root)) == 4


KILLED = STEPS.partition("weights = ensure")[0] + (
    'weightcache.publish(sys.argv[1], name="tag", root=sys.argv[2], volume=Volume())\nprint(steps)\n'
)


@pytest.mark.crash
def test_a_kill_after_every_second_step(folder: Path, tmp_path: Path) -> None:
    code = "import weightcache\n" + KILLED
    steps = int(finish(child(code, str(folder), str(tmp_path / "whole"), "0")))
    assert steps > 20
    for start in range(1, steps + 1, 8):  # four at once
        batch = range(start, min(start + 8, steps + 1), 2)
        processes = [child(code, str(folder), str(tmp_path / f"r{step}"), str(step)) for step in batch]
        for step, process in zip(batch, processes, strict=True):
            _, err = process.communicate(timeout=60)
            assert process.returncode == -signal.SIGKILL, err
            root = tmp_path / f"r{step}"
            assert all((root / path).read_bytes() in FILES.values() for path in visible(root))
            volume = Volume(root)
            checkpoint = publish(folder, name="tag", root=root, volume=volume)
            assert ensure(Manifest([checkpoint]), root=root).report["tag"].outcome == "hit"
            assert {path.partition("/")[2].partition("/")[2] for path in visible(root)} == set(FILES)
            leftover = [path for path in partials(root) if path.name.startswith(checkpoint.digest)]
            assert leftover == [], step


# many at once --------------------------------------------------------------------------------------------------

PUBLISH = """
if os.environ.get("NO_FLOCK"):
    import fcntl
    fcntl.flock = lambda *_: None
from weightcache import publish
print("ready", flush=True)
sys.stdin.readline()
print(publish(sys.argv[1], name="tag", root=sys.argv[2]).digest)
"""


@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_four_processes_publish_the_same(locks: str, folder: Path, root: Path) -> None:
    env = {"NO_FLOCK": "1"} if locks == "no locks" else {}
    processes = [child(PUBLISH, str(folder), str(root), env=env, stdin=subprocess.PIPE) for _ in range(4)]
    start_together(processes)
    expected = Manifest.load(directory(FILES, name="tag"))
    assert {finish(each).strip() for each in processes} == {expected["tag"].digest}
    assert status(expected, root=root)[0].state == "ready"
    assert partials(root) == []


def test_beside_ensure(folder: Path, made: Path, root: Path, origin: Origin) -> None:
    other = blob(3 * BLOCK, 9)
    origin.put("/a", other, rate=50e6)
    together = threading.Barrier(6)

    def work(number: int) -> bytes:
        together.wait()
        if number % 2:
            return ensure(one(other, origin.url("/a")), root=root, progress=False)["sam2"].read_bytes()
        path = folder if number else made
        return publish(path, name="tag" if number else "seg", root=root).digest.encode()

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(work, range(6)))
    assert found[1::2] == [other] * 3
    assert found[2] == found[4]
    assert receipts(root) == ["sam2", "seg", "tag"]
    assert partials(root) == []


# the command ---------------------------------------------------------------------------------------------------


def test_the_command(folder: Path, made: Path, root: Path, tmp_path: Path, capsys: Any) -> None:
    code, out, err = run(capsys, "publish", folder, "tag", "--root", root)
    assert code == 0
    checkpoint = Manifest.load(directory(FILES, name="tag"))["tag"]
    assert out == f"\n{checkpoint}\n"  # a file that lacks its last line end can be appended to as well
    assert err == f"weightcache: tag is at {root}/tag/{checkpoint.version}\n"
    code, more, err = run(capsys, "publish", made, "seg", "--root", root, "--json")
    assert (code, err) == (0, "")
    told = json.loads(more)
    assert set(told) == {"name", "path", "digest", "files", "warnings", "entry"}
    assert (told["name"], told["digest"]) == ("seg", sha256(DATA))
    assert told["files"] == {"model.bin": {"sha256": sha256(DATA), "size": len(DATA)}}
    assert Path(told["path"]).read_bytes() == DATA
    (tmp_path / "weights.toml").write_text(f"version = 1{out}{told['entry']}")  # as `>> weights.toml` has it
    assert run(capsys, "status", "-m", tmp_path / "weights.toml", "--root", root)[0] == 0


def test_the_exit_codes_of_the_command(made: Path, root: Path, capsys: Any, monkeypatch: Any) -> None:
    assert run(capsys, "publish", made, "a b", "--root", root)[0] == 2
    assert run(capsys, "publish", root.parent, "a", "--root", root)[0] == 2
    assert run(capsys, "publish", made, "--root", root)[0] == 2
    assert run(capsys, "publish", made, "a")[0] == 2
    code, out, _ = run(capsys, "publish", root / "nothing", "a", "--root", root, "--json")
    assert (code, json.loads(out)["error"]) == (5, "StorageError")
    monkeypatch.setenv("WEIGHTCACHE_ROOT", str(root))
    assert run(capsys, "publish", made, "a")[0] == 0


# the documentation ---------------------------------------------------------------------------------------------


def test_the_documented_signature() -> None:
    signature = inspect.signature(publish)
    first, *rest = signature.parameters.values()
    assert first.kind is first.POSITIONAL_OR_KEYWORD
    assert all(each.kind is each.KEYWORD_ONLY for each in rest)
    shown = str(signature.replace(parameters=[each.replace(annotation=each.empty) for each in (first, *rest)]))
    assert f"publish{shown.replace(chr(39), '')}" in (HERE / "docs/reference/api.md").read_text()
    assert signature.return_annotation == Checkpoint.__name__
    assert "publish" in next(action.choices for action in build_parser()._actions if action.choices)
