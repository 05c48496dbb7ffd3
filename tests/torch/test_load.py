"""`load_state_dict`: bit for bit what the plain way loads, from memory, on any device."""

from __future__ import annotations

import gc
import io
import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from support import skip_in_gvisor
from torch_files import KINDS, InMemory, assert_identical, held_by_process, plainly, weights, write
from weightcache import prefetch_files
from weightcache.errors import LoadError, StorageError
from weightcache.torch import _lazy_imports, load_state_dict

torch = pytest.importorskip("torch")


# ---- the same as the plain way


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts, and a zip file is large, from 256 KiB on."""
    monkeypatch.setattr("weightcache._prefetch.prefetcher.READ_CHUNK", 256 << 10)
    monkeypatch.setattr("weightcache._prefetch.prefetched_file.READ_CHUNK", 256 << 10)
    monkeypatch.setattr("weightcache.torch._load.READ_CHUNK", 256 << 10)


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
    monkeypatch.setattr("weightcache._prefetch.prefetcher.free_memory", lambda: 1000.0)
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
    skip_in_gvisor("no VmHWM, and ru_maxrss does not grow with the memory that is used")
    path = write(tmp_path / "weights", {f"w{i}": torch.full((1_000_000,), float(i)) for i in range(20)}, kind)
    tiny = write(tmp_path / "tiny", {"w": torch.ones(1)}, kind)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(tiny)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) < 1.3  # 80 MB; the reading threads' buffers come on top


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
    _lazy_imports.require_safe_unpickling(torch)


def test_a_pickle_that_takes_the_place_of_a_safetensors_file_is_refused_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightcache.torch._load.READ_CHUNK", 0)  # as if it were large: read ahead, then opened again
    path = write(tmp_path / "weights", {"a": torch.ones(3)}, "safetensors")
    preadv = os.preadv

    def replaced(*args: Any) -> int:
        write(tmp_path / "other", {"a": torch.ones(3)}).replace(path)
        return preadv(*args)

    monkeypatch.setattr(os, "preadv", replaced)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    with pytest.raises(ImportError, match="CVE-2026-24747"):
        load_state_dict(path)


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_a_small_file_is_read_without_threads(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.Thread.start", None)
    path = write(tmp_path / "weights", {"a": torch.ones(3)}, kind)
    assert load_state_dict(path)["a"].tolist() == [1, 1, 1]


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
