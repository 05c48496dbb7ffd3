"""`publish`: what it refuses, and what stays when a disk, a process or another writer gets in its way."""

from __future__ import annotations

import errno
import json
import os
import pickle
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from noting_volume import Volume
from origin import Origin
from support import blob, child, directory, finish, kill_after_every_step, one, partials, start_together, visible
from trained import DATA, FILES, receipts, write
from weightcache import Manifest, ManifestError, StorageError, ensure, publish, status
from weightcache._engine.publish_local_weights import hashed
from weightcache._store import file_operations as store_files
from weightcache._store import receipts as store_receipts
from weightcache._store.partial_directory import BLOCK

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


def test_a_file_that_vanishes_before_it_is_hashed_is_named(folder: Path) -> None:
    class Holder:
        def phase(self, doing: str, total: int = 0) -> None:
            (folder / "config.json").unlink()

        def advance(self, count: int) -> None:
            pass

    with pytest.raises(StorageError, match="changed while it was read") as caught:
        hashed(str(folder), "x", Holder())  # type: ignore[arg-type]
    assert caught.value.path == str(folder / "config.json")


@pytest.mark.parametrize("inner", ["model.bin", "sub/model.bin"])
def test_a_pointer_of_git_lfs_is_refused_wherever_it_lies(inner: str, root: Path, tmp_path: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    write(tmp_path / "clone", {inner: pointer.encode(), "config.json": b"{}"})
    with pytest.raises(ManifestError, match="is a Git LFS pointer") as caught:
        publish(tmp_path / "clone", name="x", root=root)
    assert caught.value.problems == (
        f"{inner!r} is a Git LFS pointer, and not the file itself: run `git lfs pull` in its clone",
    )


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
    def fail(path: Any) -> Any:  # the tests may run as root, which may list all
        if str(path) == str(folder / "vocab"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    real = os.scandir
    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(StorageError, match=f"cannot read {folder}/vocab: Permission denied"):
        publish(folder, name="tag", root=root)


def test_what_is_hinted_to_a_user_who_may_not_read() -> None:
    error = StorageError.of(PermissionError(errno.EACCES, "Permission denied"), "read", "/out/model.bin")
    assert error.hint == "let this user read it"  # the tests may run as root, which may read all


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

    real = store_files.parallel_map
    monkeypatch.setattr(store_files, "parallel_map", meanwhile)
    with pytest.raises(StorageError, match=r"model.*\.bin changed while it was read") as caught:
        publish(folder, name="tag", root=root)
    assert "when whatever writes it has ended" in caught.value.hint
    assert not root.exists()


def test_a_directory_that_cannot_be_read_for_a_moment_is_never_a_file(
    tmp_path: Path, root: Path, monkeypatch: Any
) -> None:
    """Its one file must not become the checkpoint: it would have another digest."""
    write(tmp_path / "made", {"model.bin": DATA})
    looks = 0

    def failing(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        nonlocal looks
        if path == str(tmp_path / "made"):
            looks += 1
            if looks == at:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return real(path, *arguments, **options)

    real = os.stat
    monkeypatch.setattr(os, "stat", failing)
    for at in range(1, 10):  # noqa: B007
        looks, made = 0, None
        with suppress(StorageError):
            made = publish(tmp_path / "made", name="made", root=root)
        assert made is None or made.is_directory
    assert looks < at
    assert made is not None


@pytest.mark.parametrize("what", [change, Path.unlink], ids=["changes", "vanishes"])
def test_a_file_that_changes_while_it_is_copied(what: Any, folder: Path, root: Path, monkeypatch: Any) -> None:
    def meanwhile(*arguments: Any) -> Any:
        what(folder / "model.bin")
        return real(*arguments)

    real = store_receipts.files_by_digest
    with monkeypatch.context() as patch:
        patch.setattr(store_receipts, "files_by_digest", meanwhile)
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


@pytest.mark.crash
def test_a_kill_after_every_second_step(folder: Path, tmp_path: Path) -> None:
    work = 'weightcache.publish(sys.argv[1], name="tag", root=root, volume=Volume())'
    killed = kill_after_every_step(work, str(folder), tmp_path / "roots", stride=2)
    assert len(killed) > 10
    for step, root in killed:
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
