"""`load_state_dict`: bit for bit what the plain way loads, from memory, and nothing that runs."""

from __future__ import annotations

import argparse
import builtins
import functools
import gc
import importlib
import io
import json
import mmap
import os
import pickle
import runpy
import shutil
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from weightcache import Prefetch, prefetch_files
from weightcache._coordination import readers
from weightcache.errors import LoadError, StorageError
from weightcache.torch import _optional_imports, load_state_dict

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

KINDS = ("zip", "large zip", "legacy", "safetensors")


class InMemory:
    """What a prefetch into memory hands out: the same bytes under a path of their own."""

    def __init__(self, *paths: Path) -> None:
        self.descriptors = {str(path): os.memfd_create("prefetched") for path in paths}
        for path, descriptor in self.descriptors.items():
            data = Path(path).read_bytes()
            assert os.write(descriptor, data) == len(data)

    def path(self, path: str | os.PathLike[str]) -> str:
        descriptor = self.descriptors.get(os.fspath(path))
        return os.fspath(path) if descriptor is None else f"/proc/self/fd/{descriptor}"

    def bytes(self, path: Path) -> bytes:
        return Path(self.path(path)).read_bytes()

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.popitem()[1])

    __del__ = close  # as the real one gives its memory back when it is dropped


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts, and a zip file is large, from 256 KiB on."""
    monkeypatch.setattr("weightcache._prefetch.reader.READ_CHUNK", 256 << 10)
    monkeypatch.setattr("weightcache._prefetch.file.READ_CHUNK", 256 << 10)
    monkeypatch.setattr("weightcache.torch._load.READ_CHUNK", 256 << 10)


def weights(elements: int = 10_000) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    floats = torch.randn(elements, generator=generator)
    floats[:3] = torch.tensor([float("nan"), float("inf"), -0.0])
    integers = torch.randint(-100, 100, (elements,), generator=generator)
    return {
        "float32": floats,
        "float64": floats.double(),
        "bfloat16": floats.bfloat16(),
        "float16": floats.half(),
        "float8": floats.to(torch.float8_e4m3fn),
        "int8": integers.to(torch.int8),
        "int64": integers,
        "bool": integers > 0,
        "matrix": torch.randn(7, 11, generator=generator),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 5),
    }


def write(path: Path, value: dict[str, Any], kind: str = "zip") -> Path:
    if kind == "legacy":
        value = {name: tensor for name, tensor in value.items() if name != "float8"}  # younger than the format
    if kind == "safetensors":
        safetensors_torch.save_file(value, path)
    else:
        torch.save(value, path, _use_new_zipfile_serialization=kind != "legacy")
    return path


def plainly(path: Path, kind: str) -> dict[str, Any]:
    if kind == "safetensors":
        return dict(safetensors_torch.load_file(path))
    return dict(torch.load(path, weights_only=True))


def raw(tensor: Any) -> bytes:
    return bytes(tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy())


def assert_identical(one: Any, other: Any) -> None:
    """Equal to the last bit, in layout and in what shares memory."""
    assert list(one) == list(other)
    shared: dict[int, int] = {}
    for name in one:
        a, b = one[name], other[name]
        assert (a.dtype, a.shape, a.stride(), a.storage_offset()) == (b.dtype, b.shape, b.stride(), b.storage_offset())
        assert (a.requires_grad, type(a), a.device) == (b.requires_grad, type(b), b.device)
        assert raw(a) == raw(b), name
        if a.numel():
            storage = a.untyped_storage().data_ptr()
            assert shared.setdefault(storage, b.untyped_storage().data_ptr()) == b.untyped_storage().data_ptr()


def held_by_process(path: Path) -> bool:
    """Whether the file is open or mapped in this process."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue  # that of listdir itself
    return str(path) in links or str(path) in Path("/proc/self/maps").read_text()


# ---- the same as the plain way


@pytest.mark.parametrize("prefetch", [False, True], ids=["plain", "prefetched"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_loaded_bit_for_bit_and_leaves_nothing_open(tmp_path: Path, kind: str, prefetch: bool) -> None:
    path = write(tmp_path / "weights.bin", weights(100_000 if kind == "large zip" else 1000), kind)
    memory = InMemory(path) if prefetch else None
    gc.collect()  # what other tests left to be closed some time
    descriptors = len(os.listdir("/proc/self/fd"))
    loaded = load_state_dict(path, prefetched=memory)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert not held_by_process(path)
    if memory:
        memory.close()  # what was loaded does not need it any more
    assert_identical(loaded, plainly(path, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_prefetched_is_not_read_again(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "weights", weights(), kind)
    memory, expected = InMemory(path), plainly(path, kind)
    path.unlink()
    loaded = load_state_dict(path, prefetched=memory)
    assert_identical(loaded, expected)
    memory.close()
    if kind != "legacy":  # mapped where it is, and not copied
        assert "memfd:prefetched" in Path("/proc/self/maps").read_text()


def test_a_large_file_is_mapped_from_memory_and_let_go_with_its_last_tensor(tmp_path: Path) -> None:
    gc.collect()  # what the tracebacks of other tests hold
    loaded = load_state_dict(write(tmp_path / "weights", weights(100_000)))
    kept = loaded["scalar"]
    del loaded
    assert "memfd:weightcache" in Path("/proc/self/maps").read_text()
    del kept
    assert "memfd:weightcache" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefetch_hands_its_memory_over(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "weights", weights(100_000), kind)
    with prefetch_files(path, into="memory") as reading:
        loaded = load_state_dict(path, prefetched=reading)
    assert_identical(loaded, plainly(path, kind))


def test_a_prefetch_that_does_not_have_the_file_is_no_error(tmp_path: Path) -> None:
    path = write(tmp_path / "weights.pt", weights())
    assert_identical(load_state_dict(path, prefetched=InMemory()), plainly(path, "zip"))


@pytest.mark.parametrize("reused", [False, True], ids=["closed", "reused"])
def test_a_prefetch_that_another_thread_closes_meanwhile(tmp_path: Path, reused: bool) -> None:
    """Its memory's number can be another file's by the time that it is opened."""
    path = write(tmp_path / "weights.pt", weights())
    other = InMemory(write(tmp_path / "other.pt", {"other": torch.ones(3)}))
    found = other.path(tmp_path / "other.pt")
    if not reused:
        other.close()

    answers = [found]

    class Closing:
        def path(self, path: str | os.PathLike[str]) -> str:
            return answers.pop() if answers else os.fspath(path)

    assert_identical(load_state_dict(path, prefetched=Closing()), plainly(path, "zip"))
    if reused:
        other.close()


def test_too_little_memory_is_not_called_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(LoadError, match="CUDA out of memory") as caught:
        load_state_dict(write(tmp_path / "weights", weights()))
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("not enough memory")


@pytest.mark.parametrize("kind", KINDS)
def test_without_room_in_memory_files_are_read_plainly(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightcache._prefetch.reader.free_memory", lambda: 1000.0)
    path = write(tmp_path / "weights", weights(100_000), kind)
    gc.collect()  # what the tracebacks of other tests hold
    loaded = load_state_dict(path)
    assert not held_by_process(path)
    assert "memfd:weightcache" not in Path("/proc/self/maps").read_text()
    assert_identical(loaded, plainly(path, kind))


def test_a_machine_without_such_memory_reads_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "memfd_create", forbidden)
    path = write(tmp_path / "weights", weights(100_000))
    assert_identical(load_state_dict(path), plainly(path, "zip"))


def test_a_machine_that_starts_no_threads_reads_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refused)
    path = write(tmp_path / "weights", weights(100_000))
    assert_identical(load_state_dict(path), plainly(path, "zip"))


def test_the_suffix_says_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "zip.safetensors", {"a": torch.ones(3)})
    assert load_state_dict(path)["a"].tolist() == [1, 1, 1]
    path = write(tmp_path / "safetensors.pt", {"a": torch.ones(3)}, "safetensors")
    assert load_state_dict(str(path))["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("legacy", [False, True])
def test_shared_storages_and_views_stay_shared(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(200_000.0)
    value = {"a": base, "tied": base, "view": base[10:20], "transposed": base.view(400, 500).t(), "apart": base.clone()}
    path = tmp_path / "weights.pt"
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_state_dict(path)
    assert_identical(loaded, torch.load(path, weights_only=True))
    loaded["a"][10] = -1.0
    assert loaded["view"][0] == loaded["tied"][10] == -1.0
    assert loaded["apart"][10] == 10.0


def test_nested_values_are_what_they_were(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    value = {
        "model": {"layers": [{"w": torch.ones(100_000)}, (torch.zeros(2), None)]},
        "epoch": 3,
        "rate": 0.5,
        "name": "sam2",
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "size": torch.Size([1, 2]),
    }
    torch.save(value, path)
    loaded = load_state_dict(path)
    assert loaded["model"]["layers"][0]["w"].sum() == 100_000
    assert isinstance(loaded["parameter"], torch.nn.Parameter)
    assert repr({**loaded, "model": 0}) == repr({**value, "model": 0})


def test_a_modules_own_state_dict_keeps_its_versions(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(500, 500), torch.nn.BatchNorm1d(500))
    path = write(tmp_path / "weights.pt", module.state_dict())
    assert load_state_dict(path)._metadata == module.state_dict()._metadata  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_ten_thousand_small_tensors(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "weights", {f"layers.{i}.w": torch.full((10,), float(i)) for i in range(10_000)}, kind)
    loaded = load_state_dict(path)
    assert len(loaded) == 10_000
    assert all(bool((loaded[f"layers.{i}.w"] == i).all()) for i in range(0, 10_000, 7))


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_a_tensor_of_more_than_two_gib(tmp_path: Path, kind: str) -> None:
    """On a disk with holes: 2.2 GB of zeros with a few numbers, which take neither disk nor, plainly read, memory."""
    elements = 2_200_000_000
    path = tmp_path / "weights"
    if kind == "zip":
        write_sparse_zip(path, elements)
    else:
        header = json.dumps({"w": {"dtype": "I8", "shape": [elements], "data_offsets": [0, elements]}}).encode()
        header += b" " * (-len(header) % 8)
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.seek(elements - 1, os.SEEK_CUR)
            file.write(b"\x07")
    # As memory that was prefetched, with its holes: copying it would be a test of the machine.
    loaded = load_state_dict("elsewhere", prefetched=Elsewhere(path))
    assert loaded["w"].shape == (elements,)
    assert loaded["w"][-1] == 7
    assert loaded["w"][1 << 31] == 0


class Elsewhere:
    def __init__(self, real: Path) -> None:
        self.real = real

    def path(self, _: object) -> Path:
        return self.real


def write_sparse_zip(path: Path, elements: int) -> None:
    """A zip file as torch.save writes it, of one int8 tensor whose last element is 7 and all others 0."""
    small = io.BytesIO()
    torch.save({"w": torch.tensor([7], dtype=torch.int8)}, small)
    with zipfile.ZipFile(small) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    one, many = b"K\x01tq", b"\x8a\x05" + struct.pack("<Q", elements)[:5] + b"tq"
    data = records["data.pkl"]
    assert data.count(one) == 1
    data = data.replace(one, many)
    shape = data.index(b"K\x01\x85")
    data = data[:shape] + b"\x8a\x05" + struct.pack("<Q", elements)[:5] + data[shape + 2 :]
    with path.open("wb") as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", b"\x07")
        # The record's bytes are a hole; its sizes are written by hand, without a checksum, which torch ignores.
        entry = archive.getinfo("archive/data/0")
        begin = file.tell() - 1
        file.seek(begin)
        file.write(b"\0")
        file.seek(begin + elements - 1)
        file.write(b"\x07")
        entry.file_size = entry.compress_size = elements
        archive.start_dir = file.tell()
        archive._didModify = True  # type: ignore[attr-defined]


# ---- memory


@pytest.mark.parametrize("kind", ["large zip", "safetensors"])
@pytest.mark.parametrize("prefetch", [False, True], ids=["plain", "prefetched"])
def test_tensors_can_be_written_to_and_nobody_else_sees_it(tmp_path: Path, kind: str, prefetch: bool) -> None:
    path = write(tmp_path / "weights", weights(100_000), kind)
    before = path.read_bytes()
    memory = InMemory(path) if prefetch else None
    one, other = load_state_dict(path, prefetched=memory), load_state_dict(path, prefetched=memory)
    for name, tensor in one.items():
        if name != "empty":
            tensor.fill_(1)
    assert_identical(other, plainly(path, kind))
    assert path.read_bytes() == before
    if memory:
        assert memory.bytes(path) == before
        memory.close()


def test_writing_stays_private_when_the_program_lets_torch_map_shared(tmp_path: Path) -> None:
    path = write(tmp_path / "weights", weights(100_000))
    memory = InMemory(path)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        load_state_dict(path, prefetched=memory)["float32"].zero_()
        assert torch.serialization.get_default_mmap_options() == mmap.MAP_SHARED
    assert memory.bytes(path) == path.read_bytes()
    memory.close()


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
print((peak() - before) / os.path.getsize(sys.argv[1]))
"""


@pytest.mark.parametrize("kind", ["large zip", "legacy", "safetensors"])
def test_memory_is_one_times_the_file(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "weights", {f"w{i}": torch.full((1_000_000,), float(i)) for i in range(20)}, kind)
    tiny = write(tmp_path / "tiny", {"w": torch.ones(1)}, kind)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(tiny)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) < 1.3  # 80 MB; the reading threads' buffers come on top


# ---- a file that changes


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
        with readers.pause_all():
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
    monkeypatch.setattr("weightcache._prefetch.reader.free_memory", lambda: 1000.0)
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


# ---- nothing runs


class Gadget:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def gadgets(proof: Path) -> dict[str, Any]:
    command = f"touch {proof}"
    code = f"open({str(proof)!r}, 'w')"
    return {
        "os.system": Gadget(os.system, command),
        "os.popen": Gadget(os.popen, command),
        "subprocess.Popen": Gadget(subprocess.Popen, ["touch", str(proof)]),
        "builtins.eval": Gadget(builtins.eval, code),
        "builtins.exec": Gadget(builtins.exec, code),
        "builtins.open": Gadget(io.open, str(proof), "w"),
        "builtins.getattr": Gadget(getattr, "", "join"),
        "importlib.import_module": Gadget(importlib.import_module, "antigravity"),
        "runpy.run_path": Gadget(runpy.run_path, str(proof)),
        "shutil.rmtree": Gadget(shutil.rmtree, str(proof.parent)),
        "pathlib.Path.touch": Gadget(Path.touch, proof),
        "pickle.loads": Gadget(pickle.loads, pickle.dumps(Gadget(os.system, command))),
        "torch.load": Gadget(torch.load, str(proof)),
        "torch.hub.load": Gadget(torch.hub.load, "x/y", "z"),
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("prefetch", [False, True], ids=["plain", "prefetched"])
@pytest.mark.parametrize("name", sorted(gadgets(Path("x"))))
def test_a_pickle_that_would_run_something_is_refused_by_name(
    tmp_path: Path, name: str, legacy: bool, prefetch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    proof, path = tmp_path / "ran", tmp_path / "weights.pt"
    value = {"w": torch.ones(100_000), "x": gadgets(proof)[name]}
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(LoadError) as caught:
        load_state_dict(path, prefetched=InMemory(path) if prefetch else None)
    assert not proof.exists()
    assert any("which is not weights" in problem for problem in caught.value.problems)
    assert "weights_only=False" not in str(caught.value)


def test_an_old_pickle_that_is_written_by_hand_is_refused(tmp_path: Path) -> None:
    """The three lines that every tutorial on this attack shows, in the place of the pickle."""
    proof, good, bad = tmp_path / "ran", tmp_path / "good.pt", tmp_path / "bad.pt"
    torch.save({"w": torch.ones(3)}, good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for entry in source.infolist():
            evil = f"cos\nsystem\n(S'touch {proof}'\ntR.".encode()
            target.writestr(entry.filename, evil if entry.filename.endswith("data.pkl") else source.read(entry))
    with pytest.raises(LoadError, match=r"needs os\.system") as caught:
        load_state_dict(bad)
    assert "do not load this file" in caught.value.hint
    assert not proof.exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_a_file_needs_can_be_allowed_on_purpose(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "weights.pt"
    value = {"w": torch.ones(100_000), "args": argparse.Namespace(rate=0.5)}
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(LoadError, match=r"needs argparse\.Namespace") as caught:
        load_state_dict(path)
    assert "torch.serialization.safe_globals([argparse.Namespace])" in caught.value.hint
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert load_state_dict(path)["args"].rate == 0.5


def test_all_that_a_file_needs_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": argparse.Namespace(), "b": Path("x")}, path)
    with pytest.raises(LoadError) as caught:
        load_state_dict(path)
    assert len(caught.value.problems) == 2
    assert "argparse.Namespace" in caught.value.problems[0]
    assert "pathlib." in caught.value.problems[1]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_newer_pickle_protocol_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(3)}, path, pickle_protocol=4)
    with pytest.raises(LoadError, match="Unsupported operand") as caught:
        load_state_dict(path)
    assert "default pickle_protocol" in caught.value.hint


# ---- files that are cut off, or lie


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_off_anywhere_is_a_clear_error(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "weights", weights(3000), kind)
    whole = path.read_bytes()
    assert load_state_dict(path)
    for size in sorted({0, 1, 4, 7, 8, 9, 15, 16, 17, 40, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1}):
        path.write_bytes(whole[:size])
        for memory in (None, InMemory(path)):
            with pytest.raises(LoadError, match=str(path)) as caught:
                load_state_dict(path, prefetched=memory)
            assert caught.value.hint, size


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_flipped_bytes_never_raises_anything_else(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "weights", {"a": torch.ones(50), "b": torch.zeros(3, dtype=torch.int64)}, kind)
    whole = path.read_bytes()
    refused = 0
    for at in [*range(0, min(len(whole), 900), 3), *range(max(0, len(whole) - 900), len(whole), 3)]:
        changed = bytearray(whole)
        changed[at] ^= 0xFF
        path.write_bytes(changed)
        memory = InMemory(path) if at % 2 else None
        try:
            load_state_dict(path, prefetched=memory)
        except LoadError:
            refused += 1
        finally:
            if memory:
                memory.close()
    assert refused > 50


def zip_of(path: Path, compression: int = zipfile.ZIP_STORED, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(f"archive/{name}", data)
    return path


def test_a_zip_file_that_is_not_of_torch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"not from torch\.save"):
        load_state_dict(zip_of(tmp_path / "a.zip", readme=b"x"))
    with pytest.raises(LoadError, match="TorchScript"):
        load_state_dict(zip_of(tmp_path / "b.zip", **{"data.pkl": b"x", "constants.pkl": b"x"}))


def test_compressed_records_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    good = write(tmp_path / "good.pt", {"w": torch.zeros(10_000_000)})
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(LoadError, match="is compressed"):
        load_state_dict(tmp_path / "bomb.pt")


def directory_field(data: bytes, record: int, offset: int, layout: str, value: int) -> bytes:
    """Overwrite a field of the ``record``-th entry of a zip file's directory."""
    at = -1
    for _ in range(record + 1):
        at = data.index(b"PK\x01\x02", at + 1)
    changed = bytearray(data)
    struct.pack_into(layout, changed, at + offset, value)
    return bytes(changed)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: directory_field(data, 0, 20, "<LL"[:2], 1 << 30), "compressed"),
        (lambda data: directory_field(directory_field(data, 0, 20, "<L", 1 << 30), 0, 24, "<L", 1 << 30), "overlap"),
        (lambda data: directory_field(data, 1, 42, "<L", 0), "overlap"),
        (lambda data: directory_field(data, 1, 42, "<L", 0xFFFFFFF0), "overlap"),
        (lambda data: directory_field(data, 1, 42, "<L", 0xFFFFFFFF), "cannot be read"),
        (lambda data: directory_field(data, 0, 28, "<H", 0xFFFF), "is invalid|cannot be read"),
        (lambda data: directory_field(data, 0, 8, "<H", 1), "encrypted"),
        (lambda data: directory_field(data, 1, 46, "<B", 0xFF), "cannot be read"),
        (lambda data: data[:-12] + struct.pack("<H", 0xFFFF) + data[-10:], "is invalid"),
        (lambda data: data[:-10] + struct.pack("<LL", 0xFFFFFFF0, 0) + data[-2:], "is invalid"),
        (lambda data: data[:-6] + struct.pack("<L", 0xFFFFFFF0) + data[-2:], "is invalid"),
        (lambda data: data[:-6] + struct.pack("<L", 5) + data[-2:], "is invalid"),
    ],
)
def test_a_directory_that_lies_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    path = zip_of(tmp_path / "weights.pt", **{"data.pkl": b"." * 50, "data/0": b"." * 50})
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(LoadError, match=says):
        load_state_dict(path)


@functools.cache
def large_directory() -> bytes:
    """A zip file of so many records that its directory has the 64-bit form."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(66_000):
            archive.writestr(zipfile.ZipInfo(f"a/{i}"), b"")
    return file.getvalue()


@pytest.mark.parametrize("value", [0, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("field", [8, 32, 40, 48])
def test_a_large_directory_that_lies_is_refused(tmp_path: Path, field: int, value: int) -> None:
    """The 64-bit form: where it is, how many entries, how long, where it starts."""
    path = tmp_path / "weights.pt"
    data = bytearray(large_directory())
    locator = data.rindex(b"PK\x06\x07")
    struct.pack_into("<Q", data, locator + 8 if field == 8 else data.rindex(b"PK\x06\x06") + field, value)
    path.write_bytes(data)
    with pytest.raises(LoadError, match=r"is invalid|not from torch\.save"):
        load_state_dict(path)


def test_a_large_directory_without_its_mark_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(large_directory().replace(b"PK\x06\x06", b"PK\x06\x00"))
    with pytest.raises(LoadError, match="not at the declared offset"):
        load_state_dict(path)


FORGED = """
import os, resource, sys
from weightcache.errors import LoadError
from weightcache.torch import load_state_dict

class Held:
    def path(self, _):
        return sys.argv[2]

load_state_dict(sys.argv[1])  # what a first call imports
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    load_state_dict("weights.pt", prefetched=Held())
except LoadError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("length", "room", "says"),
    [
        ((3 << 30) - 64, 1 << 30, "declares a directory of 3221225408 bytes; the limit is 100000000"),
        (90_000_000, 50 << 20, "cannot be loaded: MemoryError\n  hint: not enough memory"),
    ],
    ids=["more than a directory has", "more than there is memory"],
)
def test_a_directory_that_is_said_to_be_huge_takes_no_memory(tmp_path: Path, length: int, room: int, says: str) -> None:
    """In a file with holes, which takes no disk either."""
    tiny, path = write(tmp_path / "tiny", {"w": torch.ones(1)}), tmp_path / "weights.pt"
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(4 + length)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, length, 4, 0))
    done = subprocess.run(
        [sys.executable, "-c", FORGED, tiny, path, str(room)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("weights.pt")
    assert says in done.stdout


def with_numel(path: Path, elements: int) -> None:
    """Save a state dict whose pickle claims another number of elements for its storages than the records have."""
    torch.save({name: torch.full((1000,), 1.0) for name in ("a", "b", "c")}, path)
    with zipfile.ZipFile(path) as archive:
        data = archive.read(f"{path.stem}/data.pkl")
    claimed = b"M\xe8\x03tq"
    assert data.count(claimed) == 3
    # of the same length, so that the records stay where they are
    whole = path.read_bytes().replace(claimed, b"M" + struct.pack("<H", elements) + b"tq")
    path.write_bytes(whole)


@pytest.mark.parametrize("elements", [0, 999, 1001, 1500, 65_535])
@pytest.mark.parametrize("prefetch", [False, True], ids=["plain", "prefetched"])
def test_a_pickle_that_lies_about_its_records_is_refused(tmp_path: Path, elements: int, prefetch: bool) -> None:
    path = tmp_path / "weights.pt"
    with_numel(path, elements)
    with pytest.raises(LoadError):
        load_state_dict(path, prefetched=InMemory(path) if prefetch else None)


def test_a_storage_that_reaches_into_the_next_is_refused(tmp_path: Path) -> None:
    """Of the size of another record, but not of its own."""
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(1000), "b": torch.ones(2000)}, path)
    whole = path.read_bytes()
    assert whole.count(b"M\xe8\x03tq") == 1
    path.write_bytes(whole.replace(b"M\xe8\x03tq", b"M\xd0\x07tq"))
    with pytest.raises(LoadError, match="declares a storage of 8000 bytes"):
        load_state_dict(path, prefetched=InMemory(path))


def safetensors_of(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: int, end: int, dtype: str = "F32", shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 16)},  # beyond the end
        {"a": entry(0, 8), "b": entry(4, 8)},  # overlapping
        {"a": entry(0, 4), "b": entry(8, 8, shape=[0])},  # a hole
        {"a": entry(0, 8, shape=[3])},  # another size than its shape
        {"a": entry(0, 8, shape=[1 << 40, 1 << 40])},  # more than a number holds
        {"a": entry(8, 0, shape=[0])},
        {"a": entry(0, 8, dtype="F33")},
        {"a": entry(0, 8, shape=[-2])},
        {"a": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 1 << 62]}},
        {"a": 1},
        b"{",
        b"{" + b"[" * 10_000,
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": 3}',
    ],
)
@pytest.mark.parametrize("prefetch", [False, True], ids=["plain", "prefetched"])
def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path, header: Any, prefetch: bool) -> None:
    path = safetensors_of(tmp_path / "weights.safetensors", header, b"\0" * 8)
    with pytest.raises(LoadError, match=str(path)):
        load_state_dict(path, prefetched=InMemory(path) if prefetch else None)


@pytest.mark.parametrize(
    ("length", "says"),
    [
        (3, "cannot be loaded: SafetensorError"),
        (10_000, "declares a header of 10000 bytes"),
        (100_000_001, "the limit"),
        (1 << 40, "the limit"),
        ((1 << 64) - 1, "the limit"),
    ],
)
def test_a_safetensors_header_of_a_length_that_lies_is_refused(tmp_path: Path, length: int, says: str) -> None:
    path = safetensors_of(tmp_path / "weights.safetensors", {"a": entry(0, 8)}, b"\0" * 8, length=length)
    with pytest.raises(LoadError, match=says):
        load_state_dict(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        (pickle.dumps({"a": 1}), "a pickle, but not from torch"),
        (pickle.dumps({"a": 1}, protocol=2), "a pickle, but not from torch"),
        (b"GGUF\3\0\0\0", "GGUF"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"", "is empty"),
        (b"hello", "not a zip file"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=says) as caught:
        load_state_dict(path)
    assert caught.value.source == str(path)
    assert caught.value.hint


def test_what_is_no_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(3)], tmp_path / "weights.pt")
    with pytest.raises(LoadError, match="contains a list, not a dict"):
        load_state_dict(tmp_path / "weights.pt")


# ---- devices, and what is installed


def test_the_device_is_tried_before_anything_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "weights.pt", {"a": torch.ones(3)})
    with pytest.raises(ValueError, match="device must be"):
        load_state_dict(path, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(LoadError, match="cannot be loaded to cuda"):
            load_state_dict(path, device="cuda")
    with pytest.raises(TypeError, match="path must be"):
        load_state_dict(b"weights.pt")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["zip", "large zip", "legacy"])  # safetensors knows no such device
def test_another_device_gets_the_tensors_with_what_they_share(tmp_path: Path, kind: str) -> None:
    """On the one other device that every machine has; cuda takes the same way."""
    path = write(tmp_path / "weights", {"a": torch.ones(100_000), "b": torch.ones(2, 3)}, kind)
    loaded = load_state_dict(path, device=torch.device("meta"))
    assert {name: (tensor.device.type, tuple(tensor.shape)) for name, tensor in loaded.items()} == {
        "a": ("meta", (100_000,)),
        "b": ("meta", (2, 3)),
    }


@pytest.mark.parametrize("package", ["torch", "safetensors"])
def test_a_missing_package_is_named_with_what_to_install(
    tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "weights", {"a": torch.ones(3)}, "safetensors")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"{package}.torch", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'weightcache\[torch\]'") as caught:
        load_state_dict(path)
    assert caught.value.name == package


def test_a_torch_that_a_pickle_can_misuse_is_refused_for_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    with pytest.raises(ImportError, match="CVE-2026-24747"):
        load_state_dict(write(tmp_path / "weights.pt", {"a": torch.ones(3)}))
    assert load_state_dict(write(tmp_path / "weights.safetensors", {"a": torch.ones(3)}, "safetensors"))
    monkeypatch.setattr(torch, "__version__", "2.10.0a0+git123")
    _optional_imports.require_safe_unpickling(torch)


def test_a_pickle_that_takes_the_place_of_a_safetensors_file_is_refused_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "weights", {"a": torch.ones(3)}, "safetensors")
    preadv = os.preadv

    def replaced(*args: Any) -> int:
        write(tmp_path / "other", {"a": torch.ones(3)}).replace(path)
        return preadv(*args)

    monkeypatch.setattr(os, "preadv", replaced)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    with pytest.raises(ImportError, match="CVE-2026-24747"):
        load_state_dict(path)


def test_the_directory_that_is_checked_is_the_one_that_torch_reads(tmp_path: Path) -> None:
    """And not the one that lies before the end, where zipfile looks: a forger could show each reader another one."""
    path = write(tmp_path / "weights.pt", {"a": torch.ones(3)})
    data = path.read_bytes()
    length, start = struct.unpack_from("<2L", data, data.rindex(b"PK\x05\x06") + 12)
    shown = data[start : start + length].replace(b"data.pkl", b"evil.pkl")
    rest = bytearray(data[start + length :])
    locator = rest.index(b"PK\x06\x07") + 8  # where it says where the zip64 record is, which moves
    struct.pack_into("<Q", rest, locator, struct.unpack_from("<Q", rest, locator)[0] + len(shown))
    path.write_bytes(data[: start + length] + shown + rest)
    with zipfile.ZipFile(path) as archive:
        assert not any(name.endswith("data.pkl") for name in archive.namelist())
    assert load_state_dict(path)["a"].tolist() == torch.load(path, weights_only=True)["a"].tolist() == [1, 1, 1]


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, weightcache.torch; print({'torch', 'safetensors', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"


def test_threads_load_at_once(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    paths = [write(tmp_path / f"{i}", weights(30_000 + i), kind) for i, kind in enumerate(KINDS)]
    with ThreadPoolExecutor(4) as pool:
        for path, kind, loaded in zip(paths * 3, KINDS * 3, pool.map(load_state_dict, paths * 3), strict=True):
            assert_identical(loaded, plainly(path, kind))


def test_moved_away_while_it_is_loaded_by_name(tmp_path: Path) -> None:
    """The path is opened once, after the prefetch was asked: what is there then is what is loaded."""
    path = write(tmp_path / "weights", weights())

    class Removing:
        def path(self, asked: Any) -> Any:
            shutil.rmtree(tmp_path)
            return asked

    with pytest.raises(StorageError, match="No such file"):
        load_state_dict(path, prefetched=Removing())
