"""What is published shares its bytes with no file that is written to; a receipt counts what was hashed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import weightcache
from origin import Origin, broken
from origin import status as answer
from support import blob, child, directory, finish, in_gvisor, one, partials, quiet, sha256, skip_in_gvisor, visible
from weightcache import DownloadError, Manifest, StorageError, status, verify
from weightcache._runtime.unannounced_write_check import announce_writing
from weightcache._runtime.writer_identity import Writer, container_id
from weightcache._store import file_operations as store_files
from weightcache._store import partial_file
from weightcache._store import receipts as store_receipts
from weightcache._store.layout import Layout
from weightcache._store.partial_directory import BLOCK, STALE, stale_partials
from weightcache._store.partial_file import VanishedError

DATA = blob(3 * BLOCK + 100)
WRONG = blob(len(DATA), 9)


def twins(url: str, *, size: bool = True) -> dict[str, Any]:
    """Two checkpoints with one digest."""
    manifest = one(DATA, url, name="a", size=size)
    manifest["checkpoints"]["b"] = manifest["checkpoints"]["a"]
    return manifest


KILLED = """
real = os.replace
def replace(source, target, **options):
    if "/a/" in target or "/b/" in target:
        if not int(sys.argv[3]):
            os.kill(os.getpid(), 9)
        sys.argv[3] = str(int(sys.argv[3]) - 1)
    return real(source, target, **options)
os.replace = replace
ensure(json.loads(sys.argv[1]), root=sys.argv[2], progress=False)
"""


@pytest.mark.parametrize("published", [0, 1], ids=["before the first place", "between the two places"])
@pytest.mark.parametrize("torn", [False, True], ids=["journal whole", "journal lost"])
@pytest.mark.parametrize("size", [False, True], ids=["no size", "size declared"])
def test_a_kill_between_two_places(published: int, torn: bool, size: bool, origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    manifest = twins(origin.url("/a"), size=size)
    killed = child(KILLED, json.dumps(manifest), str(root), str(published))
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    for partial in partials(root):
        assert all(each.stat().st_nlink == 1 for each in partial.iterdir() if each.name == sha256(DATA))
        if torn and (partial / "journal").exists():
            os.truncate(partial / "journal", 100)
    origin.put("/a", WRONG)
    # One place is there, and the other is copied from it; or nothing is, and the mirror is found out.
    if published or (size and not torn):
        quiet(manifest, root)
    else:
        with pytest.raises(weightcache.IntegrityError):
            quiet(manifest, root)
    assert all((root / path).read_bytes() == DATA for path in visible(root))
    origin.put("/a", DATA)
    weights = quiet(manifest, root)
    assert weights["a"].read_bytes() == weights["b"].read_bytes() == DATA


def test_a_place_that_cannot_be_written_keeps_no_other_one_from_its_file(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    manifest = twins(origin.url("/a"), size=False)
    root.mkdir()
    (root / "a").write_bytes(b"somebody's file")
    with pytest.raises(StorageError, match="/a/"):
        quiet(manifest, root)
    assert [each.state for each in status(manifest, root=root)] == ["missing", "ready"]
    before = quiet(manifest, root, only=["b"], offline=True)["b"]
    assert before.stat().st_nlink == 1
    with open(before, "rb") as reader:
        (root / "a").unlink()
        origin.put("/a", WRONG)
        assert quiet(manifest, root)["a"].read_bytes() == DATA  # from the root
        assert reader.read() == DATA


def test_what_a_dead_writer_linked_is_not_written_to(origin: Origin, root: Path) -> None:
    """A partial whose data file has another name, as an earlier version left it, or as somebody plants it."""
    origin.put("/a", DATA, faults=[broken(2 * BLOCK)], always=answer(404))
    with pytest.raises(DownloadError):
        quiet(one(DATA, origin.url("/a")), root)
    [partial] = partials(root)
    precious = root.parent / "precious"
    os.link(partial / sha256(DATA), precious)
    before = precious.read_bytes()
    origin.files["/a"].always = None
    assert quiet(one(DATA, origin.url("/a")), root).report["sam2"].outcome == "resumed"
    assert precious.read_bytes() == before
    assert partials(root) == []


def test_a_copy_that_was_not_published_is_not_written_to(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = root.parent / "source"
    root.mkdir()
    source.write_bytes(DATA)
    os.link(source, root / "0.copy")
    monkeypatch.setattr(os, "link", no_links)
    other = root.parent / "other"
    other.write_bytes(WRONG)
    assert store_files.link_or_copy(str(other), str(root / "0.copy"), sha256(WRONG), lambda: None)
    assert source.read_bytes() == DATA


def no_links(*arguments: Any, **options: Any) -> None:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("size", [False, True])
def test_a_receipt_has_the_size_that_was_hashed(
    size: bool, origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody cuts the published file before its receipt is written: it is no hit, and healed."""
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"), size=size)
    real, cuts = store_receipts.write_receipt, []

    def cut(layout: Any, checkpoint: Any, *arguments: Any) -> None:
        if not cuts:
            cuts.append(layout.file(checkpoint, checkpoint.files[0]))
            os.truncate(cuts[0], 0)
        real(layout, checkpoint, *arguments)

    monkeypatch.setattr(store_receipts, "write_receipt", cut)
    weights = quiet(manifest, root)
    assert cuts
    assert weights["sam2"].read_bytes() == DATA
    [receipt] = (root / ".weightcache/receipts/sam2").iterdir()
    assert json.loads(receipt.read_text())["files"]["weights.pt"]["size"] == len(DATA)
    os.truncate(weights["sam2"], 0)
    assert status(manifest, root=root)[0].state == "damaged"


def test_a_healed_directory_keeps_the_sizes_of_what_was_right(origin: Origin, root: Path) -> None:
    files = {"x": DATA, "y": b"small"}
    for path, data in files.items():
        origin.put(f"/d/{path}", data)
    manifest = directory(files, origin.url("/d"))
    for pin in manifest["checkpoints"]["bert"]["files"].values():
        del pin["size"]
    place = quiet(manifest, root)["bert"]
    (place / "y").unlink()
    assert quiet(manifest, root).report["bert"].outcome == "healed"
    [receipt] = (root / ".weightcache/receipts/bert").iterdir()
    sizes = {path: entry["size"] for path, entry in json.loads(receipt.read_text())["files"].items()}
    assert sizes == {"x": len(DATA), "y": 5}
    assert verify(manifest, root=root)[0].state == "ready"


# One partial for one digest ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_connection")
def test_two_checkpoints_of_one_digest_keep_what_a_failed_download_has(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, faults=[broken(2 * BLOCK + 500)], always=answer(404))
    manifest = twins(origin.url("/a"))
    with pytest.raises(DownloadError):
        quiet(manifest, root)
    assert len(partials(root)) == 1
    origin.files["/a"].always = None
    origin.requests.clear()
    weights = quiet(manifest, root)
    assert origin.sent() == len(DATA) - 2 * BLOCK
    assert weights["a"].read_bytes() == weights["b"].read_bytes() == DATA
    assert partials(root) == []


# A living writer that is taken for dead -------------------------------------------------------------------------


@pytest.fixture
def living(origin: Origin, root: Path) -> Any:
    """A process that has two blocks of wrong bytes in an open partial, and writes on when it is given a line."""
    (root / ".weightcache/partial").mkdir(parents=True)
    code = """
    from weightcache._runtime.writer_identity import Writer
    from weightcache._store.layout import Layout
    from weightcache._store.partial_directory import Partial
    from weightcache.manifest import Manifest
    [checkpoint] = Manifest.load(json.loads(sys.argv[1]))
    with Writer.new(sys.argv[2]) as writer, Partial(Layout(sys.argv[2]), checkpoint, writer) as partial:
        file = partial.file(checkpoint.files[0])
        file.open()
        for block in (0, 1):
            file.write(block, memoryview(b"?" * (1 << 20)))
        print("ready", flush=True)
        sys.stdin.readline()
        file.write(2, memoryview(b"?" * (1 << 20)))
        file.reset()
        file.write(0, memoryview(b"?" * (1 << 20)))
    """
    process = child(code, json.dumps(one(DATA, origin.url("/a"))), str(root), stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait(10)


@pytest.mark.parametrize("leases", [True, False], ids=["leases", "no leases"])
def test_a_living_writer_that_is_taken_for_dead_changes_nothing_that_is_published(
    leases: bool, living: Any, origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("/a", DATA)
    monkeypatch.setattr(Writer, "is_dead_here", lambda writer, root: True)
    if not leases:
        monkeypatch.setattr(partial_file.fcntl, "fcntl", lambda *arguments: no_leases())
    path = quiet(one(DATA, origin.url("/a")), root)["sam2"]
    living.communicate("go\n", timeout=60)
    assert path.read_bytes() == DATA


def no_leases() -> None:
    raise OSError(22, "Invalid argument")


def test_a_dead_writers_file_is_taken_over_and_not_copied(origin: Origin, root: Path) -> None:
    """The disk holds the file once. The writer must be dead: this process has none of its descriptors open."""
    skip_in_gvisor("there are no leases; tests/system/test_gvisor.py does this as on Modal")
    code = """
    try:
        ensure(json.loads(sys.argv[1]), root=sys.argv[2], progress=False)
    except Exception:
        pass
    """
    origin.put("/a", DATA, faults=[broken(2 * BLOCK)], always=answer(404))
    manifest = one(DATA, origin.url("/a"))
    finish(child(code, json.dumps(manifest), str(root)))
    [partial] = partials(root)
    inode = (partial / sha256(DATA)).stat().st_ino
    origin.files["/a"].always = None
    assert quiet(manifest, root)["sam2"].stat().st_ino == inode


@pytest.mark.parametrize("on_modal", [True, False])
def test_without_leases_only_modal_is_trusted(on_modal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x")
    assert partial_file._is_exclusively_ours(str(path)) or in_gvisor()
    monkeypatch.setattr(partial_file.fcntl, "fcntl", lambda *arguments: no_leases())
    monkeypatch.delenv("MODAL_IS_REMOTE", raising=False)
    monkeypatch.delenv("MODAL_TASK_ID", raising=False)
    if on_modal:
        monkeypatch.setenv("MODAL_TASK_ID", "ta-1")
    assert partial_file._is_exclusively_ours(str(path)) is on_modal


# Which writer is alive -------------------------------------------------------------------------------------------

IDENTITY = """
import os, sys
real = os.readlink
os.readlink = lambda path, **options: f"pid:[{os.getpid()}]" if str(path).endswith("/ns/pid") else real(path, **options)
from weightcache._runtime.writer_identity import container_id
print(container_id(sys.argv[1]))
"""


def test_processes_of_one_container_have_one_identity_where_each_has_another_namespace_link(root: Path) -> None:
    """As gVisor before 2025-06 has it, where a dead writer was never recognised."""
    said = {
        subprocess.run([sys.executable, "-c", IDENTITY, str(root)], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    }
    assert said == {f"{container_id(str(root))}\n"}


@pytest.mark.parametrize("what", ["boot", "host", "namespace", "task"])
def test_two_hosts_with_one_temporary_directory_differ(what: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weightcache._runtime import writer_identity

    before = container_id(str(root))
    if what == "boot":
        monkeypatch.setattr(writer_identity, "_boot_id", lambda: "another")
    elif what == "host":
        monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "another", "", "", "")))
    elif what == "namespace":
        monkeypatch.setattr(writer_identity, "process_start", lambda pid: 123456789)
    else:
        monkeypatch.setenv("MODAL_TASK_ID", "ta-another")
    assert container_id(str(root)) != before


def test_an_old_partial_stays_only_while_its_writer_lives_here(root: Path) -> None:
    layout, opened = Layout(root), f"opened {time.time() - 2 * STALE:.0f}\n"
    with Writer.new(str(root)) as living:
        dead = str(living).rpartition("-")[0] + "-00000000"
        made = [
            root / f".weightcache/partial/{'ab' * 32}.{each}" for each in (living, dead, "0123456789ab-1-1-0000000a")
        ]
        for path in made:
            path.mkdir(parents=True)
            (path / "journal").write_text(opened)
        assert sorted(stale_partials(layout)) == sorted(map(str, made[1:]))


def test_a_receipt_is_written_only_for_files_of_the_size_that_was_hashed(root: Path) -> None:
    layout, [checkpoint] = Layout(root), Manifest.load(one(DATA, "https://weights.example/weights.pt"))
    path = Path(layout.file(checkpoint, checkpoint.files[0]))
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA[:-1])
    with announce_writing(layout.root), pytest.raises(VanishedError):
        store_receipts.write_receipt(layout, checkpoint, {checkpoint.files[0].path: len(DATA)}, [])
    assert not os.path.exists(layout.receipt(checkpoint))


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ESTALE, errno.EIO])
def test_a_partial_that_was_swept_is_no_failure_of_the_disk(code: int) -> None:
    expected = StorageError if code == errno.EIO else VanishedError
    assert type(partial_file.storage_failure(OSError(code, "why"), "write to", "/a")) is expected


def test_a_process_that_opens_a_file_during_the_check_ends_nothing(tmp_path: Path) -> None:
    """Linux sends SIGIO then, whose default ends the process that checks."""
    skip_in_gvisor("there are no leases")
    code = """
    import errno, fcntl, os
    from weightcache._store import partial_file
    real = fcntl.fcntl

    def opened_meanwhile(number, operation, value):
        found = real(number, operation, value)
        if (operation, value) == (fcntl.F_SETLEASE, fcntl.F_RDLCK):
            try:
                os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)
            except BlockingIOError:
                print("the lease is broken", flush=True)
        return found

    partial_file.fcntl.fcntl = opened_meanwhile
    partial_file._is_exclusively_ours(sys.argv[1])
    print("done")
    """
    (tmp_path / "data").write_bytes(b"x")
    assert finish(child(code, str(tmp_path / "data"))).split("\n")[:2] == ["the lease is broken", "done"]
