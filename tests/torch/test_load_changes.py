"""`load_state_dict` of a file that is replaced, cut off or written to meanwhile, or that a disk fails to read."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from torch_files import InMemory, assert_identical, held_by_process, plainly, weights, write
from weightcache import Prefetch
from weightcache._coordination import background_readers
from weightcache.errors import LoadError, StorageError
from weightcache.torch import load_state_dict

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts, and a zip file is large, from 256 KiB on."""
    monkeypatch.setattr("weightcache._prefetch.prefetcher.READ_CHUNK", 256 << 10)
    monkeypatch.setattr("weightcache._prefetch.prefetched_file.READ_CHUNK", 256 << 10)
    monkeypatch.setattr("weightcache.torch._load.READ_CHUNK", 256 << 10)


def test_a_file_that_is_replaced_or_removed_meanwhile_is_the_one_that_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "weights", weights(100_000))
    expected = plainly(path, "zip")
    preadv, reads, one_by_one = os.preadv, [], threading.Lock()

    def replaced(*args: Any) -> int:
        with one_by_one:
            if not reads:
                write(tmp_path / "other", {"other": torch.zeros(200_000)})
                (tmp_path / "other").replace(path)
            elif len(reads) == 1:
                path.unlink()
            reads.append(1)
        return preadv(*args)

    monkeypatch.setattr(os, "preadv", replaced)
    assert_identical(load_state_dict(path), expected)
    assert not path.exists()


def test_a_file_that_is_cut_off_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "weights", weights(100_000))
    preadv = os.preadv

    def cut(*args: Any) -> int:
        os.truncate(path, 300_000)
        return preadv(*args)

    monkeypatch.setattr(os, "preadv", cut)
    with pytest.raises(LoadError, match="is truncated to 300000 bytes"):
        load_state_dict(path)
    assert not held_by_process(path)


@pytest.mark.parametrize("removed", [False, True])
def test_a_file_that_is_written_to_while_it_is_read_ahead_is_read_again(
    tmp_path: Path, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read ahead is in part the old one, in part the new one; of a removed file there is no second reading."""
    path = write(tmp_path / "weights", {"a": torch.zeros(1_000_000)})
    (tmp_path / "new").mkdir()  # of the same name, which a zip file holds: of the same size
    new = write(tmp_path / "new" / "weights", {"a": torch.ones(1_000_000)}).read_bytes()
    os.utime(path, ns=(1, 1))
    preadv, reads, one_by_one = os.preadv, [], threading.Lock()

    def written(*args: Any) -> int:
        with one_by_one:
            reads.append(args)
            if len(reads) == 3:
                with path.open("r+b") as file:
                    file.write(new)
                if removed:
                    path.unlink()
        return preadv(*args)

    monkeypatch.setattr(os, "preadv", written)
    if removed:
        with pytest.raises(StorageError, match="No such file"):
            load_state_dict(path)
    else:
        assert load_state_dict(path)["a"].sum() == 1_000_000
    assert not held_by_process(path)


@pytest.mark.parametrize("retimed", [False, True])
def test_nothing_of_a_file_that_is_being_loaded_is_open_during_a_commit_or_reload(
    tmp_path: Path, retimed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it an error if the reload gives the file another time of modification."""
    monkeypatch.setattr("weightcache.torch._load.READ_THREADS", 1)
    path = write(tmp_path / "weights", weights(100_000))
    reading, go_on, held = threading.Event(), threading.Event(), []
    preadv, let_go = os.preadv, Prefetch._close_idle

    def gated(*args: Any) -> int:
        reading.set()
        assert go_on.wait(60)
        return preadv(*args)

    def letting_go(self: Prefetch) -> None:
        go_on.set()  # only now: the file is half read, and nothing more of it is read before the end of the pause
        let_go(self)

    def reload() -> None:
        assert reading.wait(60)
        with background_readers.pause_all():
            held.append(held_by_process(path))
            if retimed:
                os.utime(path, ns=(1, 1))

    monkeypatch.setattr(os, "preadv", gated)
    monkeypatch.setattr(Prefetch, "_close_idle", letting_go)
    reloading = threading.Thread(target=reload)
    reloading.start()
    loaded = load_state_dict(path)
    reloading.join(60)
    assert held == [False]
    assert_identical(loaded, plainly(path, "zip"))


@pytest.mark.parametrize("prefetch", [False, True], ids=["plain", "prefetched"])
@pytest.mark.parametrize("kind", ["zip", "large zip", "legacy"])
def test_a_file_that_is_written_to_while_it_is_loaded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, prefetch: bool
) -> None:
    monkeypatch.setattr("weightcache._prefetch.prefetcher.free_memory", lambda: 1000.0)
    path = write(tmp_path / "weights", weights(100_000) if kind == "large zip" else {"a": torch.ones(3)}, kind)
    memory = InMemory(path) if prefetch else None
    held = memory.path(path) if memory else path
    os.utime(held, ns=(1, 1))
    load = torch.load

    def changed(*args: Any, **options: Any) -> Any:
        loaded = load(*args, **options)
        with open(held, "r+b") as file:
            file.write(b"PK")
        return loaded

    monkeypatch.setattr(torch, "load", changed)
    with pytest.raises(LoadError, match="changed while it was read") as caught:
        load_state_dict(path, prefetched=memory)
    assert caught.value.source == str(path)


def test_reading_ahead_that_fails_is_followed_by_a_plain_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "weights", weights(100_000))
    expected = plainly(path, "zip")
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))

    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    loaded = load_state_dict(path)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert_identical(loaded, expected)


@pytest.mark.parametrize("kind", ["zip", "large zip", "legacy"])
def test_a_disk_that_fails_a_plain_read_is_a_storage_error(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "weights", weights(100_000) if kind == "large zip" else {"a": torch.ones(3)}, kind)

    def failing(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(torch, "load", failing)
    with pytest.raises(StorageError, match="Input/output error"):
        load_state_dict(path)


def test_what_is_no_readable_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file") as caught:
        load_state_dict(tmp_path / "nothing")
    assert caught.value.errno == 2
    with pytest.raises(StorageError, match="it is a directory"):
        load_state_dict(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="not a regular file"):
        load_state_dict(tmp_path / "pipe")
