"""A journal and a receipt are read with care: cut lines, lying lines, endless files, links, and a disk that is full."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import weightcache
from origin import Origin
from support import blob, one, partials, sha256
from weightcache import Checkpoint, StorageError, ensure, prune, status
from weightcache._runtime.owned_descriptors import opened
from weightcache._runtime.writer_identity import Writer
from weightcache._store.journal import BLOCK, Journal, block_checksum, partial_age
from weightcache._store.layout import Layout
from weightcache._store.partial_directory import STALE, Partial
from weightcache.manifest import Manifest

SHA = "ab" * 32
DATA = blob(2 * BLOCK + 7)
CUT = [
    b"opened",
    b"opened ",
    b"opened 17",  # a time that was cut looks like one of 1970: the partial would be swept at once
    b"opened nan",
    b"opened inf",
    b"opened 1e400",
    b"opened 99999999999",  # and one far ahead would never be swept
    b"opened 1795433307 x",
    b"wiped",
    b"wiped ",
    b"wiped abc",
    b"\xff\xfe",
    b"",
    SHA.encode(),
    f"{SHA} 1".encode(),
    f"{SHA} 1 1048576 5d1c".encode(),
    f"{SHA} -1 5 00000000".encode(),
    f"{SHA} 1 0 00000000".encode(),
    f"{SHA} 1 1048577 00000000".encode(),
    f"{SHA} {'9' * 5000} 5 00000000".encode(),
    f"{SHA} 1 5 0000000g".encode(),
    f"{SHA} 1 10485{SHA} 2 5 00000000".encode(),  # a cut line, and the next one glued to it
]


@pytest.mark.parametrize("line", CUT, ids=lambda line: repr(line[:20]))
def test_a_line_that_is_not_whole_is_skipped(line: bytes, tmp_path: Path) -> None:
    good = f"{SHA} 0 1048576 0000002a\n".encode()
    (tmp_path / "journal").write_bytes(b"opened 1795433307\n" + line + b"\n" + good + line)
    journal = Journal(str(tmp_path))
    assert journal.blocks == {SHA: {0: (BLOCK, 42)}}
    assert journal.opened == 1795433307


@given(st.binary(max_size=300))
def test_any_bytes_are_a_journal(text: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "journal").write_bytes(text)
        assert Journal(folder).bytes >= 0
        assert partial_age(folder) >= -86400.0


@pytest.mark.parametrize("line", [b"\nopened\n", b"wiped\n", b"opened nan\n", b"\xff\xfe\n"])
def test_a_cut_journal_stops_neither_ensure_nor_prune(line: bytes, root: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    (tmp_path / "b").write_bytes(b"other")
    manifest = one(DATA, (tmp_path / "a").as_uri())
    for writer in ("0123456789ab-1-1-00000000", str(Writer.new(str(root)))):  # elsewhere, and dead here
        partial = root / f".weightcache/partial/{sha256(DATA)}.{writer}"
        partial.mkdir(parents=True)
        (partial / "journal").write_bytes(line)
    other = one(b"other", (tmp_path / "b").as_uri(), name="other")
    assert ensure(other, root=root, progress=False).report["other"].outcome == "downloaded"
    assert prune(other, root=root) == []
    assert ensure(manifest, root=root, progress=False)["sam2"].read_bytes() == DATA


@pytest.mark.parametrize("line", [b"opened 17\n", b"opened 99999999999\n", b""])
def test_without_a_credible_time_the_directory_says_how_old_a_partial_is(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(line)
    os.utime(tmp_path, (time.time() - 1000,) * 2)
    assert 990 < partial_age(str(tmp_path)) < STALE


def checkpoint() -> Checkpoint:
    return next(iter(Manifest.load(one(DATA, "https://weights.example/a"))))


def test_a_short_write_is_an_error_and_not_ignored(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk takes a part of a line, and refuses the rest only when it is tried again."""
    real, taken = os.write, [10]

    def write(descriptor: int, data: Any) -> int:
        if not taken:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[: taken.pop()])

    layout = Layout(root)
    with Writer.new(str(root)) as writer, Partial(layout, checkpoint(), writer) as partial:
        file = partial.file(checkpoint().files[0])
        file.open()
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(StorageError, match="the disk is full") as caught:
            file.write(0, memoryview(DATA)[:BLOCK])
        assert caught.value.errno == 28
        monkeypatch.undo()
        file.write(1, memoryview(DATA)[BLOCK : 2 * BLOCK])
    [path] = partials(root)
    # The cut line and the one that was glued to it cost a block each, and nothing else.
    assert Journal(str(path)).blocks == {}


def test_what_is_taken_over_from_a_dead_writer_is_no_source_beside_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path leads nowhere then."""
    layout = Layout(root)
    with Writer.new(str(root)) as writer, Partial(layout, checkpoint(), writer) as partial:
        file = partial.file(checkpoint().files[0])
        file.open()
        file.write(0, memoryview(DATA)[:BLOCK])
    monkeypatch.setattr(Writer, "is_dead_here", lambda writer, root: True)
    with Writer.new(str(root)) as writer, Partial(layout, checkpoint(), writer) as partial:
        assert list(partial.adopted) == [checkpoint().files[0].sha256]
        assert partial.reusable == []


def test_a_line_is_written_whole_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    with opened(str(tmp_path / "journal"), os.O_WRONLY | os.O_CREAT) as journal:
        journal.write(f"wiped {SHA}\n".encode())
    assert (tmp_path / "journal").read_text() == f"wiped {SHA}\n"


# Files without an end -----------------------------------------------------------------------------------------------


def sparse(path: Path) -> None:
    path.unlink(missing_ok=True)
    with open(path, "wb") as stream:
        stream.truncate(20 << 30)


def link_to_zero(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


ENDLESS = [sparse, link_to_zero, fifo]


@pytest.fixture
def little_memory() -> Any:
    """Let this process have 1 GB more than it has: what reads a file of 20 GB gets a `MemoryError`."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("make", ENDLESS)
@pytest.mark.usefixtures("little_memory")
def test_an_endless_receipt_is_none(make: Any, origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    ensure(manifest, root=root, progress=False)
    make(root / f".weightcache/receipts/sam2/{sha256(DATA)}.json")
    assert status(manifest, root=root)[0].state == "unverified"
    stranger = root / f".weightcache/receipts/other/{SHA}.json"
    stranger.parent.mkdir()
    make(stranger)
    assert ensure(manifest, root=root, progress=False).report["sam2"].outcome == "adopted"
    assert prune(manifest, root=root, older_than=0) == []


@pytest.mark.parametrize("make", ENDLESS)
@pytest.mark.parametrize("writer", ["0123456789ab-1-1-00000000", None], ids=["elsewhere", "here"])
@pytest.mark.usefixtures("little_memory")
def test_an_endless_journal_gives_nothing(make: Any, writer: str | None, origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    partial = root / f".weightcache/partial/{sha256(DATA)}.{writer or Writer.new(str(root))}"
    partial.mkdir(parents=True)
    make(partial / "journal")
    (partial / sha256(DATA)).write_bytes(DATA)
    assert ensure(manifest, root=root, progress=False)["sam2"].read_bytes() == DATA
    assert prune(manifest, root=root) == []


def test_a_receipt_that_is_long_for_its_files_is_none(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    ensure(manifest, root=root, progress=False)
    receipt = root / f".weightcache/receipts/sam2/{sha256(DATA)}.json"
    data = json.loads(receipt.read_text())
    assert status(manifest, root=root)[0].state == "ready"
    receipt.write_text(json.dumps({**data, "sources": ["x" * (2 << 20)]}))
    assert status(manifest, root=root)[0].state == "unverified"


def test_a_directory_of_many_files_has_a_receipt(root: Path, tmp_path: Path) -> None:
    files = {f"layers/{number:05d}/{'long-name-' * 20}": b"%d" % number for number in range(1500)}
    for path, data in files.items():
        (tmp_path / "out" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / path).write_bytes(data)
    made = weightcache.publish(tmp_path / "out", name="many", root=root)
    assert ensure(Manifest([made]), root=root, progress=False).report["many"].outcome == "hit"


def test_a_long_journal_takes_little_memory(tmp_path: Path) -> None:
    """Anybody who writes the Volume can make one of 128 MiB."""
    (tmp_path / "journal").write_bytes(b"opened 1795433307\n" * 20_000)
    tracemalloc.start()
    try:
        assert Journal(str(tmp_path)).opened == 1795433307
        assert tracemalloc.get_traced_memory()[1] < 3 * (tmp_path / "journal").stat().st_size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 5, 8, 4096, BLOCK, BLOCK - 3])
def test_the_checksum_of_a_block_stays_as_it_is(size: int) -> None:
    """Else the next version of the library would fetch again what this one left in a partial."""
    data = blob(size)
    whole = size - size % 8
    sample = b"".join(data[start : start + 8] for start in range(0, whole, 4096))
    assert block_checksum(data) == zlib.crc32(sample + data[whole:])
