"""Files of weights of every kind, and comparisons of what was loaded from them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

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


def write_shards(
    directory: Path, files: int = 3, elements: int = 1000, kind: str = "safetensors", *, index: bool = True
) -> dict[str, Any]:
    """Write a model in shards as transformers does; return what a loop over its files loads."""
    directory.mkdir(exist_ok=True)
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    weight_map, expected = {}, {}
    for number in range(1, files + 1):
        name = f"{stem}-{number:05}-of-{files:05}.{suffix}"
        tensors = {f"layers.{number}.{key}": tensor for key, tensor in weights(elements).items()}
        if kind == "legacy":
            del tensors[f"layers.{number}.float8"]
        loaded = plainly(write(directory / name, tensors, kind), kind)
        expected |= {key: tensor.clone() for key, tensor in loaded.items()}  # without a mapping of the file
        weight_map |= dict.fromkeys(tensors, name)
    if index:
        write_index(directory, weight_map, f"{stem}.{suffix}.index.json")
    return expected


def write_index(directory: Path, weight_map: Any, name: str = "model.safetensors.index.json") -> None:
    (directory / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def write_header(path: Path, header: Any, data: bytes = b"") -> Path:
    """Write a safetensors file with any header: an object, or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path
