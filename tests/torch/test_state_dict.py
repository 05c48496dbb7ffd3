"""`load_state_dict` of a directory: equal to the plain way, whatever the files are and wherever they lie."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from support import skip_in_gvisor
from torch_files import InMemory, assert_identical, held_by_process, plainly, weights, write, write_index, write_shards
from weightcache import prefetch_files
from weightcache.errors import LoadError, StorageError
from weightcache.torch import load_state_dict

torch = pytest.importorskip("torch")

KINDS = ["safetensors", "zip", "legacy"]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts and blocks."""
    readers = ("prefetcher", "prefetched_file", "blocks", "range_reader")
    for module in (*(f"_prefetch.{reader}" for reader in readers), "torch._tensor_selection"):
        monkeypatch.setattr(f"weightcache.{module}.READ_CHUNK", 64 << 10)


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.suffix in (".safetensors", ".bin"))


@pytest.mark.parametrize("prefetch", ["", "all", "some"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_is_loaded_bit_for_bit_and_leaves_nothing_open(tmp_path: Path, kind: str, prefetch: str) -> None:
    expected = write_shards(tmp_path, elements=30_000, kind=kind)
    memory = InMemory(*files(tmp_path)[: 1 if prefetch == "some" else None]) if prefetch else None
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    loaded = load_state_dict(tmp_path, prefetched=memory)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert not any(held_by_process(path) for path in files(tmp_path))
    if memory:
        memory.close()
    assert_identical(loaded, expected)
    for thread in threading.enumerate():
        if thread.name.startswith("weightcache-load"):
            thread.join(30)  # it has been notified, and may not have run since
            assert not thread.is_alive()


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_prefetch_hands_its_memory_over(tmp_path: Path, kind: str) -> None:
    expected = write_shards(tmp_path, kind=kind)
    with prefetch_files(*files(tmp_path), into="memory") as reading:
        assert_identical(load_state_dict(tmp_path, prefetched=reading), expected)


def test_what_was_prefetched_is_mapped_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = write_shards(tmp_path, elements=30_000)
    memory = InMemory(*files(tmp_path))
    monkeypatch.setattr(os, "preadv", None)
    loaded = load_state_dict(tmp_path, prefetched=memory)
    loaded["layers.1.int64"].zero_()  # copy-on-write
    again = load_state_dict(tmp_path, prefetched=memory)
    memory.close()
    assert_identical(again, expected)


def test_a_prefetch_of_other_bytes_is_not_used(tmp_path: Path) -> None:
    expected = write_shards(tmp_path)
    one, two, _ = files(tmp_path)
    memory = InMemory(one)
    memory.descriptors[str(two)] = memory.descriptors[str(one)]  # of the same size
    assert_identical(load_state_dict(tmp_path, prefetched=memory), expected)
    del memory.descriptors[str(two)]


def test_writing_to_a_tensor_changes_neither_file_nor_another_load(tmp_path: Path) -> None:
    expected = write_shards(tmp_path, elements=30_000)
    for tensor in load_state_dict(tmp_path).values():
        tensor.copy_(torch.zeros_like(tensor))
    assert_identical(load_state_dict(tmp_path), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_another_device_gets_the_tensors(tmp_path: Path, kind: str) -> None:
    expected = write_shards(tmp_path, elements=30_000, kind=kind)
    loaded = load_state_dict(tmp_path, device="meta")
    assert {name: (each.device.type, each.shape, each.dtype) for name, each in loaded.items()} == {
        name: ("meta", each.shape, each.dtype) for name, each in expected.items()
    }


@pytest.mark.parametrize("retimed", [1, 9])
def test_files_that_change_while_they_are_read_are_read_once_more(
    tmp_path: Path, retimed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload of the Volume can set another time of modification; a file that goes on changing is refused."""
    expected = write_shards(tmp_path, elements=30_000)
    path, preadv, times = files(tmp_path)[1], os.preadv, iter(range(retimed))

    def changing(descriptor: int, *args: Any) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(path) and (time := next(times, None)) is not None:
            os.utime(path, ns=(time, time))
        return preadv(descriptor, *args)

    monkeypatch.setattr(os, "preadv", changing)
    monkeypatch.setattr("weightcache.torch._load.READ_THREADS", 1)
    if retimed > 1:
        with pytest.raises(LoadError, match="changed while it was read"):
            load_state_dict(tmp_path)
    else:
        assert_identical(load_state_dict(tmp_path), expected)
    assert not held_by_process(path)


def test_a_disk_that_fails_a_read_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, elements=30_000)

    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(StorageError, match="Input/output error") as caught:
        load_state_dict(tmp_path)
    assert caught.value.errno == 5
    assert not any(held_by_process(path) for path in files(tmp_path))


def test_a_lack_of_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, elements=30_000)

    def full(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("weightcache._prefetch.blocks.mmap.mmap", full)
    with pytest.raises(LoadError, match="does not fit into memory: cannot allocate") as caught:
        load_state_dict(tmp_path)
    assert "iter_tensors" in caught.value.hint


def test_a_machine_that_starts_no_threads_reads_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = write_shards(tmp_path, elements=30_000)

    def refused(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refused)
    assert_identical(load_state_dict(tmp_path), expected)


def test_many_files_need_few_descriptors(tmp_path: Path) -> None:
    tensors = {f"w{number}": torch.full((10,), float(number)) for number in range(60)}
    for name, tensor in tensors.items():
        write(tmp_path / f"{name}.safetensors", {name: tensor}, "safetensors")
    write_index(tmp_path, {name: f"{name}.safetensors" for name in tensors})
    code = (
        "import resource, sys, torch, safetensors.torch\n"
        "from weightcache.torch import load_state_dict\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))\n"
        "assert len(load_state_dict(sys.argv[1])) == 60\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)


CHILD = """
import os, sys
import torch, safetensors.torch
from weightcache.torch import load_state_dict

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

load_state_dict(sys.argv[2])  # what a first call imports
before = peak()
loaded = load_state_dict(sys.argv[1])
total = sum(float(tensor[::1024].sum()) for tensor in loaded.values())  # each page
print((peak() - before) / sum(tensor.nbytes for tensor in loaded.values()))
"""


def test_memory_is_one_times_the_model(tmp_path: Path) -> None:
    skip_in_gvisor("no VmHWM, and ru_maxrss does not grow with the memory that is used")
    for name in ("model", "tiny"):
        (tmp_path / name).mkdir()
    for shard in range(4):
        tensors = {f"w{shard}.{number}": torch.full((1_000_000,), 1.0) for number in range(5)}
        write(tmp_path / "model" / f"{shard}.safetensors", tensors, "safetensors")
    write(tmp_path / "tiny" / "model.safetensors", {"w": torch.ones(1)}, "safetensors")
    command = [sys.executable, "-c", CHILD, str(tmp_path / "model"), str(tmp_path / "tiny")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) < 1.1


def test_a_module_takes_a_directory(tmp_path: Path) -> None:
    from weightcache.torch import assign_into, skip_init

    expected = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    for number in ("0", "1"):
        tensors = {name: each for name, each in expected.state_dict().items() if name.startswith(number)}
        write(tmp_path / f"{number}.safetensors", tensors, "safetensors")
    with skip_init():
        module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    assign_into(module, load_state_dict(tmp_path))
    assert_identical(module.state_dict(), expected.state_dict())


def test_an_adapter_in_one_file_is_a_directory_too(tmp_path: Path) -> None:
    path = write(tmp_path / "adapter_model.safetensors", weights(), "safetensors")
    assert_identical(load_state_dict(tmp_path), plainly(path, "safetensors"))
