"""`load_state_dict` of files that are cut off, or whose directory, header or pickle lies."""

from __future__ import annotations

import functools
import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from torch_files import KINDS, InMemory, weights, write
from weightcache.errors import LoadError
from weightcache.torch import load_state_dict

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts, and a zip file is large, from 256 KiB on."""
    monkeypatch.setattr("weightcache._prefetch.prefetcher.READ_CHUNK", 256 << 10)
    monkeypatch.setattr("weightcache._prefetch.prefetched_file.READ_CHUNK", 256 << 10)
    monkeypatch.setattr("weightcache.torch._load.READ_CHUNK", 256 << 10)


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
