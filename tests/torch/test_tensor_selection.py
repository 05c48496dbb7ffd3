"""`names=` and `slices=`: what is loaded, how many bytes are read, and what cannot be asked for."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_files import InMemory, assert_identical, plainly, weights, write, write_header, write_shards
from weightcache.errors import LoadError
from weightcache.torch import iter_tensors, load_state_dict

torch = pytest.importorskip("torch")

KINDS = ["safetensors", "zip", "legacy"]


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each read."""
    counts: list[int] = []
    preadv, pread = os.preadv, os.pread

    def counted(*args: Any) -> int:
        counts.append(preadv(*args))
        return counts[-1]

    def counted_too(*args: Any) -> bytes:
        data = pread(*args)
        counts.append(len(data))
        return data

    monkeypatch.setattr(os, "preadv", counted)
    monkeypatch.setattr(os, "pread", counted_too)
    return counts


def part(tensor: Any, dim: int, index: int, count: int) -> Any:
    size = tensor.shape[dim] // count
    return tensor.narrow(dim, index * size, size).clone(memory_format=torch.contiguous_format)


# ---- names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [["matrix", "float"], {"matrix", "float"}, lambda name: name[0] in "mf"])
def test_only_what_is_asked_for_is_loaded(tmp_path: Path, kind: str, names: Any) -> None:
    path = write(tmp_path / "weights", weights(), kind)
    expected = {name: tensor for name, tensor in plainly(path, kind).items() if name.startswith(("matrix", "float"))}
    assert len(expected) >= 4
    assert_identical(load_state_dict(path, names=names), expected)
    assert_identical(dict(iter_tensors(path, names=names)), expected)
    memory = InMemory(path)
    assert_identical(load_state_dict(path, names=names, prefetched=memory), expected)
    memory.close()


def test_only_the_bytes_that_are_asked_for_are_read(tmp_path: Path, bytes_read: list[int]) -> None:
    write_shards(tmp_path, files=4, elements=100_000)
    loaded = load_state_dict(tmp_path, names=["layers.2.int64", "layers.4.float16"])
    assert sum(tensor.nbytes for tensor in loaded.values()) == 1_000_000
    assert 1_000_000 <= sum(bytes_read) < 1_000_000 + 4 * 8192  # with the headers and the index


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_there_is_an_error(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "weights", weights(), kind)
    slices = {"nowhere": (0, 0, 2), "scalar": (0, 0, 2), "matrix": (0, 0, 2), "empty": (2, 0, 2), "bool": (-1, 1, 2)}
    with pytest.raises(LoadError) as caught:
        load_state_dict(path, names=["float", "absent"], slices=slices)
    found = sorted(problem.partition("; there are")[0] for problem in caught.value.problems)
    assert found == [
        "names: no tensor begins with 'absent'",
        "slices: 'empty' has the shape (0, 5) and no dimension 2",
        "slices: 'scalar' has the shape () and no dimension 0",
        "slices: dimension 0 of 'matrix' has 7 elements: no 2 equal parts",
        "slices: no tensor is called 'nowhere'",
    ]
    assert load_state_dict(path, names=[]) == load_state_dict(path, names=lambda _: False) == {}


def test_a_mistake_in_the_call_is_found_before_anything_is_read(tmp_path: Path) -> None:
    for names in ("layers.", 3, [b"layers."]):
        with pytest.raises(TypeError, match="names must"):
            load_state_dict(tmp_path / "nowhere", names=names)  # type: ignore[arg-type]
    for slices in ([], {3: (0, 0, 2)}, {"a": (0, 0)}, {"a": (0, 0, 2.0)}, {"a": "002"}):
        with pytest.raises(TypeError, match="slices"):
            load_state_dict(tmp_path / "nowhere", slices=slices)  # type: ignore[arg-type]
    for numbers in ((0, 2, 2), (0, -1, 2), (0, 0, 0)):
        with pytest.raises(ValueError, match="must have 0 <= index < count"):
            iter_tensors(tmp_path / "nowhere", slices={"a": numbers})


# ---- slices


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefetch", [False, True], ids=["plain", "prefetched"])
def test_a_slice_is_that_of_torch_in_memory_of_its_own(tmp_path: Path, kind: str, prefetch: bool) -> None:
    tensors = {
        "a": torch.randn(8, 6, 10),
        "b": torch.randn(12).bfloat16(),
        "c": torch.randn(4, 4),
        "e": torch.ones(0, 4),
    }
    path = write(tmp_path / "weights", tensors, kind)
    memory = InMemory(path) if prefetch else None
    for dim, index, count in ((0, 1, 2), (1, 2, 3), (2, 4, 5), (-1, 0, 10), (-3, 7, 8), (1, 0, 1)):
        slices = {"a": (dim, index, count), "b": (0, 3, 4), "e": (1, 1, 2)}
        expected = {name: part(tensors[name], *slices[name]) for name in slices} | {"c": tensors["c"]}
        loaded = load_state_dict(path, slices=slices, prefetched=memory)
        assert_identical(dict(sorted(loaded.items())), dict(sorted(expected.items())))
        if count > 1:
            assert loaded["a"].untyped_storage().nbytes() == loaded["a"].nbytes
    if memory:
        memory.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([1, 2, 4, 6, 16]), min_size=1, max_size=3),
            st.sampled_from(["float32", "float8_e4m3fn", "bfloat16", "int64", "bool"]),
            st.integers(0, 2),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 4),
)
def test_any_slices_equal_those_of_torch(tmp_path_factory: pytest.TempPathFactory, model: Any, chunk: int) -> None:
    tensors, slices = {}, {}
    for number, (shape, dtype, dim, index) in enumerate(model):
        name = f"w{number}"
        tensors[name] = (torch.randn(shape) * 9).to(getattr(torch, dtype))
        if dim < len(shape):
            count = 2 if shape[dim] % 2 == 0 else 1
            slices[name] = (dim, index % count, count)
    path = write(tmp_path_factory.mktemp("model") / "model.safetensors", tensors, "safetensors")
    with pytest.MonkeyPatch.context() as patch:  # so that parts and blocks are cut
        patch.setattr("weightcache._prefetch.blocks.READ_CHUNK", 1 << (2 * chunk))
        patch.setattr("weightcache.torch._tensor_selection.READ_CHUNK", 1 << (3 * chunk))
        loaded = load_state_dict(path.parent, slices=slices)
    expected = {name: part(tensor, *slices[name]) if name in slices else tensor for name, tensor in tensors.items()}
    assert_identical(dict(sorted(loaded.items())), dict(sorted(expected.items())))


@pytest.mark.parametrize("dim", [0, 1])
def test_four_ranks_read_the_model_once(tmp_path: Path, dim: int, bytes_read: list[int]) -> None:
    """Beside one tensor whose rows are so short that reading each would take longer than reading all."""
    tensors = {f"w{number}": torch.randn(64, 1024) for number in range(8)} | {"tiny": torch.randn(512, 8)}
    write(tmp_path / "model.safetensors", tensors, "safetensors")
    total = sum(tensor.nbytes for tensor in tensors.values())
    for rank in range(4):
        slices = dict.fromkeys(tensors, (dim, rank, 4)) | {"tiny": (1, rank, 4)}
        loaded = load_state_dict(tmp_path, slices=slices)
        assert_identical(loaded, {name: part(tensors[name], *slices[name]) for name in loaded})
    assert sum(bytes_read) <= 1.1 * total
    assert len(bytes_read) < 4 * 600  # and not 512 reads for a tensor of 16 KiB


def test_a_file_that_does_not_align_its_tensors_is_loaded(tmp_path: Path) -> None:
    """As older writers left it: reads put each tensor at an address that fits its dtype."""
    entries = {
        "a": {"dtype": "I8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [3, 19]},
        "c": {"dtype": "I64", "shape": [], "data_offsets": [19, 27]},
    }
    path = write_header(tmp_path / "model.safetensors", entries, bytes(range(27)))
    memory = InMemory(path)
    loaded = load_state_dict(tmp_path)
    assert_identical(loaded, plainly(path, "safetensors"))
    assert [tensor.data_ptr() % tensor.itemsize for tensor in loaded.values()] == [0, 0, 0]
    assert_identical(load_state_dict(tmp_path, prefetched=memory), loaded)
    memory.close()


def test_each_tensor_has_a_storage_of_its_own(tmp_path: Path) -> None:
    """Else torch.save of one would write all that share a block, and transformers would take them for tied."""
    write_shards(tmp_path, elements=100)
    for tensor in load_state_dict(tmp_path).values():
        assert tensor.untyped_storage().nbytes() == prod(tensor.shape) * tensor.element_size()
