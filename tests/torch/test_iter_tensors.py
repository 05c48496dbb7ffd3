"""`iter_tensors`: tensors come while others are read, in bounded memory, and nothing stays open."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from torch_files import InMemory, assert_identical, held_by_process, write, write_index, write_shards
from weightcache._coordination import background_readers
from weightcache._prefetch.range_reader import RangeReader
from weightcache.errors import LoadError, StorageError
from weightcache.torch import iter_tensors, load_state_dict

torch = pytest.importorskip("torch")

CHUNK = 64 << 10


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts and blocks."""
    readers = ("prefetcher", "prefetched_file", "blocks", "range_reader")
    for module in (*(f"_prefetch.{reader}" for reader in readers), "torch._tensor_selection"):
        monkeypatch.setattr(f"weightcache.{module}.READ_CHUNK", CHUNK)


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.suffix in (".safetensors", ".bin"))


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("weightcache-load")]


class Reads:
    """Counts the bytes that are read, and can hold every read back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes, self.changed, self.go_on = 0, threading.Condition(), threading.Event()
        self.begun = threading.Event()
        self.go_on.set()
        self._preadv = os.preadv
        monkeypatch.setattr(os, "preadv", self)

    def __call__(self, *args: Any) -> int:
        self.begun.set()
        assert self.go_on.wait(60)
        count = self._preadv(*args)
        with self.changed:
            self.bytes += count
            self.changed.notify_all()
        return count


def write_equal(directory: Path, shards: int = 2, tensors: int = 10, size: int = 2 * CHUNK) -> list[Path]:
    """Write tensors that are a block each."""
    for shard in range(shards):
        model = {f"w{shard}.{number}": torch.full((size,), shard, dtype=torch.uint8) for number in range(tensors)}
        write(directory / f"{shard}.safetensors", model, "safetensors")
    return files(directory)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("prefetch", [False, True], ids=["plain", "prefetched"])
def test_the_tensors_are_those_of_the_directory(tmp_path: Path, kind: str, prefetch: bool) -> None:
    expected = write_shards(tmp_path, elements=30_000, kind=kind)
    memory = InMemory(*files(tmp_path)) if prefetch else None
    assert_identical(dict(iter_tensors(tmp_path, prefetched=memory)), expected)
    for path in files(tmp_path):
        assert not held_by_process(path)
    one = dict(iter_tensors(files(tmp_path)[1], prefetched=memory))
    assert_identical(one, {name: each for name, each in expected.items() if name.startswith("layers.2.")})


def test_no_more_is_read_ahead_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_equal(tmp_path)
    monkeypatch.setattr("weightcache.torch._state_dict.READ_AHEAD", 6 * CHUNK)
    reads = Reads(monkeypatch)
    taken, most = 0, 0
    for name, tensor in iter_tensors(tmp_path):
        assert tensor[0] == int(name[1])
        taken += tensor.nbytes
        due = min(20 * 2 * CHUNK, taken + 6 * CHUNK)
        with reads.changed:  # it does read ahead, up to the bound, and not beyond
            assert reads.changed.wait_for(lambda due=due: reads.bytes >= due, 60)  # type: ignore[misc]
            most = max(most, reads.bytes - taken)
    assert (taken, most) == (20 * 2 * CHUNK, 6 * CHUNK)


def test_a_tensor_that_is_larger_than_the_bound_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_equal(tmp_path)
    monkeypatch.setattr("weightcache.torch._state_dict.READ_AHEAD", CHUNK)
    reads = Reads(monkeypatch)
    taken = 0
    for _, tensor in iter_tensors(tmp_path):
        taken += tensor.nbytes
        assert reads.bytes <= taken + tensor.nbytes


def test_what_the_caller_drops_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_equal(tmp_path)
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    begin = "weightcache._prefetch.blocks.mmap.mmap"
    import mmap

    class Counted(mmap.mmap):
        def __new__(cls, *args: Any, **options: Any) -> Counted:
            made = super().__new__(cls, *args, **options)
            alive.add(made)
            return made

    monkeypatch.setattr(begin, Counted)
    monkeypatch.setattr("weightcache.torch._state_dict.READ_AHEAD", 4 * CHUNK)
    for _ in iter_tensors(tmp_path):
        assert len(alive) <= 4  # two ahead, the one that is yielded, and the one before it, which `_` held
    del _
    assert not alive


def test_nothing_is_read_before_the_first_tensor_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_equal(tmp_path)
    reads = Reads(monkeypatch)
    iterator = iter_tensors(tmp_path)
    assert (reads.bytes, threads()) == (0, [])
    assert not any(held_by_process(path) for path in paths)
    next(iterator)


@pytest.mark.parametrize("end", ["close", "drop", "error"])
def test_an_early_end_stops_the_reads(tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_equal(tmp_path)
    monkeypatch.setattr("weightcache.torch._state_dict.READ_AHEAD", 4 * CHUNK)
    reads = Reads(monkeypatch)
    iterator: Any = iter_tensors(tmp_path)
    next(iterator)
    if end == "close":
        iterator.close()
    elif end == "drop":
        del iterator
        gc.collect()
    else:
        with pytest.raises(KeyError):
            iterator.throw(KeyError())
    before = reads.bytes
    for thread in threading.enumerate():
        if thread.name.startswith("weightcache-load"):
            thread.join(60)
    assert reads.bytes == before <= 6 * CHUNK
    assert not any(held_by_process(path) for path in paths)
    assert not threads()


def test_no_file_is_open_during_a_commit_and_reading_goes_on_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_equal(tmp_path)
    reads, held, paused = Reads(monkeypatch), [], threading.Event()
    reads.go_on.clear()
    close_idle = RangeReader._close_idle

    def closing(self: RangeReader) -> None:
        reads.go_on.set()  # only now: a file is half read
        close_idle(self)

    def commit() -> None:
        assert reads.begun.wait(60)
        with background_readers.pause_all():
            held.extend(path for path in paths if held_by_process(path))
            paused.set()

    monkeypatch.setattr(RangeReader, "_close_idle", closing)
    committing = threading.Thread(target=commit)
    committing.start()
    got = {name: int(tensor[-1]) for name, tensor in iter_tensors(tmp_path)}
    committing.join(60)
    assert (held, paused.is_set()) == ([], True)
    assert got == {f"w{shard}.{number}": shard for shard in range(2) for number in range(10)}


def test_a_commit_between_two_tensors_finds_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_equal(tmp_path)
    monkeypatch.setattr("weightcache.torch._state_dict.READ_AHEAD", 4 * CHUNK)
    count = 0
    for _ in iter_tensors(tmp_path):
        count += 1
        with background_readers.pause_all():
            assert not any(held_by_process(path) for path in paths)
    assert count == 20


def test_the_headers_of_all_files_are_checked_by_the_call(tmp_path: Path) -> None:
    *_, last = write_equal(tmp_path, shards=3)
    os.truncate(last, last.stat().st_size - 1)
    with pytest.raises(LoadError, match="the file is truncated"):
        iter_tensors(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "time"])
def test_a_file_that_changes_meanwhile_ends_it(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, last = write_equal(tmp_path)
    monkeypatch.setattr("weightcache.torch._state_dict.READ_AHEAD", 4 * CHUNK)
    got = []
    with pytest.raises(LoadError, match="changed while it was read") as caught:  # noqa: PT012
        for name, _ in iter_tensors(tmp_path):
            got.append(name)
            if len(got) == 1 and damage == "cut":
                os.truncate(last, 1000)
            elif len(got) == 1:
                os.utime(last, ns=(1, 1))
    assert got == [f"w0.{number}" for number in range(10)][: len(got)]
    assert caught.value.source == str(tmp_path)


def test_a_disk_that_fails_later_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, last = write_equal(tmp_path)
    preadv = os.preadv

    def failing(descriptor: int, *args: Any) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(last):
            raise OSError(5, "Input/output error")
        return preadv(descriptor, *args)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(StorageError, match="Input/output error"):
        dict(iter_tensors(tmp_path))


def test_a_damaged_file_of_torch_save_ends_it_where_it_is_reached(tmp_path: Path) -> None:
    expected = write_shards(tmp_path, kind="zip")
    os.truncate(files(tmp_path)[1], 1000)
    got = []
    with pytest.raises(LoadError, match="truncated to 1000 bytes"):  # noqa: PT012
        for name, _ in iter_tensors(tmp_path):
            got.append(name)
    assert got == [name for name in expected if name.startswith("layers.1.")]
    write_index(tmp_path, {"absent": files(tmp_path)[0].name}, "pytorch_model.bin.index.json")
    with pytest.raises(LoadError, match="the index lists 'absent'"):
        next(iter_tensors(tmp_path))


def test_what_is_no_tensor_is_an_error_unless_it_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "weights.pt", {"w": torch.ones(3), "epoch": 3})
    with pytest.raises(LoadError, match="'epoch', which is a int and not a tensor"):
        dict(iter_tensors(path))
    assert list(dict(iter_tensors(path, names=["w"]))) == ["w"]
    assert load_state_dict(path, names=["epoch"]) == {"epoch": 3}


def test_a_forked_child_reads_nothing_more_and_holds_no_file(tmp_path: Path) -> None:
    write_equal(tmp_path, tensors=3)
    code = (
        "import os, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from weightcache.torch import _state_dict\n"
        "from weightcache.errors import StorageError\n"
        "_state_dict.READ_AHEAD = 1\n"
        "iterator = _state_dict.iter_tensors(sys.argv[1])\n"
        "next(iterator)\n"
        "if os.fork() == 0:\n"
        "    links = [f'/proc/self/fd/{n}' for n in os.listdir('/proc/self/fd')]\n"
        "    held = [os.readlink(link) for link in links if os.path.lexists(link)]\n"
        "    assert not any(path.endswith('.safetensors') for path in held), held\n"
        "    try:\n"
        "        list(iterator)\n"
        "    except StorageError as error:\n"
        "        assert 'forked' in str(error)\n"
        "        os._exit(7)\n"
        "    os._exit(1)\n"
        "assert os.waitstatus_to_exitcode(os.wait()[1]) == 7\n"
        "assert len(list(iterator)) == 5\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
