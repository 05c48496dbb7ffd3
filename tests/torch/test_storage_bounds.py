"""Tensors that reach beyond their memory, or do not fit together: refused in every layout, wherever they are."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightcache.errors import LoadError
from weightcache.torch import load_state_dict
from weightcache.torch._storage_checks import check_tensors

torch = pytest.importorskip("torch")

from forgery import repacked, replacing, save  # noqa: E402 (it imports torch)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*quantized tensor creation:UserWarning",
    "ignore:TypedStorage is deprecated:UserWarning",
    "ignore:Sparse (CSR|CSC|BSR|BSC|invariant):UserWarning",
    "ignore:The PyTorch API of nested tensors:UserWarning",
    "ignore:.*quint4x2.*:UserWarning",
)


def coo(indices: Any, size: tuple[int, ...], **options: Any) -> Any:
    values = torch.arange(1.0, len(indices[0]) + 1)
    return torch.sparse_coo_tensor(torch.tensor(indices), values, size, check_invariants=False, **options)


def compressed(layout: Any, heads: Any, indices: Any, values: Any, size: tuple[int, ...]) -> Any:
    parts = [torch.tensor(part) for part in (heads, indices, values)]
    return torch.sparse_compressed_tensor(*parts, size, layout=layout, check_invariants=False)


BLOCKS = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]

# Made as PyTorch makes them when it loads: without a check of the indices.
SPARSE: dict[str, Callable[[], Any]] = {
    "coo above": lambda: coo([[0, 2]], (2,)),
    "coo far": lambda: coo([[0, 1 << 40]], (2,)),
    "coo negative": lambda: coo([[0, -2]], (2,)),
    "coo second": lambda: coo([[0, 1], [0, 9]], (2, 3)),
    "coo unsorted": lambda: coo([[1, 0]], (2,), is_coalesced=True),
    "csr heads": lambda: compressed(torch.sparse_csr, [0, 1, 99], [0, 1], [1.0, 2.0], (2, 2)),
    "csr columns": lambda: compressed(torch.sparse_csr, [0, 1, 2], [0, 9], [1.0, 2.0], (2, 2)),
    "csr negative": lambda: compressed(torch.sparse_csr, [0, 1, 2], [0, -9], [1.0, 2.0], (2, 2)),
    "csc": lambda: compressed(torch.sparse_csc, [0, 1, 2], [0, 9], [1.0, 2.0], (2, 2)),
    "bsr": lambda: compressed(torch.sparse_bsr, [0, 1, 2], [0, 9], BLOCKS, (4, 4)),
    "bsc": lambda: compressed(torch.sparse_bsc, [0, 1, 7], [0, 1], BLOCKS, (4, 4)),
}


def nested_in(value: Any) -> dict[str, dict[str, Any]]:
    """The value in every place that a file can have it in."""
    holder = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    holder.extra = value
    metadata = OrderedDict(w=torch.ones(2))
    metadata._metadata = {"": value}  # type: ignore[attr-defined]
    return {
        "top": {"x": value},
        "list": {"a": [1, ({"x": (value,)}, "b")]},
        "attribute of a tensor": {"a": holder},
        "attribute of the dict": metadata,
        "key": {value: 1},
        "object": {"args": argparse.Namespace(x=[value])},
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", SPARSE)
def test_a_sparse_tensor_whose_indices_lie_is_refused(tmp_path: Path, kind: str, legacy: bool) -> None:
    path = save(tmp_path / "weights.pt", {"w": torch.ones(3), "x": SPARSE[kind]()}, legacy=legacy)
    with pytest.raises(LoadError, match="holds a sparse tensor of shape"):
        load_state_dict(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", nested_in(0))
def test_it_is_found_wherever_it_is(tmp_path: Path, place: str, legacy: bool) -> None:
    path = save(tmp_path / "weights.pt", nested_in(SPARSE["coo above"]())[place], legacy=legacy)
    with torch.serialization.safe_globals([argparse.Namespace]), pytest.raises(LoadError, match="sparse tensor"):
        load_state_dict(path)


def test_a_file_that_is_mapped_is_looked_at_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightcache.torch._load.READ_CHUNK", 1000)
    path = save(tmp_path / "weights.pt", {"w": torch.ones(10_000), "x": SPARSE["coo above"]()})
    with pytest.raises(LoadError, match="sparse tensor"):
        load_state_dict(path)


def test_an_array_of_objects_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.empty((2, 2), dtype=object)
    array[1, 1] = [SPARSE["coo above"]()]
    path = save(tmp_path / "weights.pt", {"a": torch.ones(3)})
    monkeypatch.setattr(torch, "load", lambda *_, **__: {"x": array})
    with pytest.raises(LoadError, match="sparse tensor"):
        load_state_dict(path)


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated:UserWarning")
def test_a_storage_without_a_tensor_has_the_length_of_its_record(
    tmp_path: Path, typed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightcache.torch._load.READ_CHUNK", 0)  # mapped
    storage = torch.ones(1000).storage()
    path = save(tmp_path / "weights.pt", {"x": storage if typed else storage.untyped(), "w": torch.ones(3)})
    assert load_state_dict(path)["x"].nbytes() == 4000
    claimed = b"M\xe8\x03tq" if typed else b"M\xa0\x0ftq"
    whole = path.read_bytes()
    assert whole.count(claimed) == 1
    path.write_bytes(whole.replace(claimed, claimed[:1] + b"\xe0\x03" + claimed[3:]))
    with pytest.raises(LoadError, match="declares a storage of"):
        load_state_dict(path)


def test_storages_that_have_exchanged_their_lengths_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is as long as some record, and the first reaches into the second."""
    monkeypatch.setattr("weightcache.torch._load.READ_CHUNK", 0)  # mapped
    value = {"a": torch.ones(1000)[:5], "b": torch.ones(500), "c": torch.ones(2000)[:5]}
    path = save(tmp_path / "weights.pt", value)
    short, long = b"M\xe8\x03tq", b"M\xd0\x07tq"
    whole = path.read_bytes()
    assert whole.count(short) == whole.count(long) == 1
    first, second = whole.index(short), whole.index(long)
    assert first < second
    path.write_bytes(whole[:first] + long + whole[first + 5 : second] + short + whole[second + 5 :])
    with pytest.raises(LoadError, match="declares a storage of"):
        load_state_dict(path)


def per_tensor() -> Any:
    return torch.quantize_per_tensor(torch.arange(77.0), 0.5, 0, torch.qint8)


def per_channel(dtype: Any = torch.qint8) -> Any:
    return torch.quantize_per_channel(torch.ones(4, 7), torch.ones(4), torch.zeros(4), 0, dtype)


def nested() -> Any:
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)])


def jagged() -> Any:
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged)


GOOD: dict[str, Callable[[], Any]] = {
    "coo": lambda: coo([[0, 1], [2, 0]], (2, 3)),
    "coo repeated": lambda: coo([[1, 1]], (2,)),
    "coo coalesced": lambda: coo([[0, 1]], (2,)).coalesce(),
    "coo empty": lambda: torch.sparse_coo_tensor(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0), (2, 3)),
    "csr": lambda: torch.eye(4).to_sparse_csr(),
    "csr batch": lambda: torch.eye(4).expand(3, 4, 4).to_sparse_csr(),
    "csc": lambda: torch.eye(4).to_sparse_csc(),
    "bsr": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
    "bsc": lambda: torch.eye(4).to_sparse_bsc((2, 2)),
    "per tensor": per_tensor,
    "per tensor view": lambda: per_tensor()[5:60:3],
    "per channel": per_channel,
    "packed": lambda: per_channel(torch.quint4x2),
    "nested": nested,
    "expanded": lambda: torch.ones(1).expand(10**9),
    "meta": lambda: torch.empty(10**9, device="meta"),
    "meta parameter": lambda: torch.nn.Parameter(torch.empty(5, device="meta")),
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "parameter": lambda: torch.nn.Parameter(torch.ones(3)),
    "nothing": lambda: torch.empty(0, 1 << 40),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("chunk", [8 << 20, 0], ids=["plain", "mapped"])
def test_what_is_right_is_loaded(
    tmp_path: Path, kind: str, legacy: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "nested" and legacy:
        pytest.skip("torch takes its shapes before it has read them")
    monkeypatch.setattr("weightcache.torch._load.READ_CHUNK", chunk)
    value = GOOD[kind]()
    path = save(tmp_path / "weights.pt", {"x": value, "tied": [value]}, legacy=legacy)
    loaded = load_state_dict(path)["x"]
    assert (loaded.layout, loaded.dtype, loaded.device) == (value.layout, value.dtype, value.device)
    if not value.is_meta and value.numel() < 10**6:
        dense = [each.unbind()[0] if each.is_nested else each.to_dense() for each in (loaded, value)]
        dense = [each.dequantize() if each.is_quantized else each for each in dense]
        assert torch.equal(*dense)


def shrunk(tensor: Any, size: int) -> Any:
    """What an older PyTorch makes of a file that lies: a tensor that is larger than its memory."""
    tensor.untyped_storage().resize_(size)
    return tensor


def rescaled(tensor: Any) -> Any:
    empty = torch._empty_per_channel_affine_quantized
    return empty(
        (4, 7), scales=torch.ones(2), zero_points=torch.zeros(2, dtype=torch.int64), axis=0, dtype=tensor.dtype
    )


BEYOND: dict[str, tuple[Callable[[], Any], str]] = {
    "strided": (
        lambda: shrunk(torch.arange(100.0), 50),
        "shape (100,), strides (1,) and offset 0, which reaches beyond",
    ),
    "offset": (lambda: shrunk(torch.arange(100.0)[90:], 390), "offset 90, which reaches beyond its storage of 390"),
    "stride": (lambda: shrunk(torch.arange(100.0)[::50], 200), "strides (50,) and offset 0, which reaches beyond"),
    "no memory": (lambda: shrunk(torch.arange(100.0), 0), "reaches beyond its storage of 0 bytes"),
    "parameter": (lambda: torch.nn.Parameter(shrunk(torch.arange(9.0), 4)), "reaches beyond its storage of 4 bytes"),
    "quantized": (lambda: shrunk(per_tensor(), 76), "a quantized tensor of shape (77,)"),
    "per channel": (lambda: shrunk(per_channel(), 20), "a quantized tensor of shape (4, 7)"),
    "channels": (lambda: rescaled(per_channel()), "with 2 scales along dimension 0"),
    "packed": (lambda: shrunk(per_channel(torch.quint4x2), 15), "which reaches beyond its storage of 15 bytes"),
    "nested": (lambda: shrunk(nested(), 20), "a nested tensor with a part of shape (2, 3)"),
    "sparse values": (lambda: in_coo(shrunk(torch.arange(2.0), 4)), "reaches beyond its storage of 4 bytes"),
    "jagged": (lambda: with_offsets(jagged(), [0, 2, 99]), "a jagged tensor of 3 rows"),
    "jagged back": (lambda: with_offsets(jagged(), [0, 3, 2]), "a jagged tensor of 3 rows"),
    "jagged values": (lambda: shrunk_values(jagged()), "reaches beyond its storage of 8 bytes"),
}


def in_coo(values: Any) -> Any:
    return torch.sparse_coo_tensor(torch.tensor([[0, 1]]), values, (2,), check_invariants=False)


def with_offsets(tensor: Any, offsets: list[int]) -> Any:
    tensor._offsets = torch.tensor(offsets)
    return tensor


def shrunk_values(tensor: Any) -> Any:
    tensor._values.untyped_storage().resize_(8)
    return tensor


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", BEYOND)
def test_a_tensor_beyond_its_memory_is_refused_whatever_torch_lets_pass(
    tmp_path: Path, kind: str, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own checks differ from version to version: here it has none."""
    make, says = BEYOND[kind]
    path = save(tmp_path / "weights.pt", {"a": torch.ones(3)}, legacy=legacy)
    value = make()
    monkeypatch.setattr(torch, "load", lambda *_, **__: {"x": [value]})
    with pytest.raises(LoadError) as caught:
        load_state_dict(path)
    assert says in caught.value.problems[0]


def test_a_gradient_is_checked_too() -> None:
    """It is a tensor that a tensor holds, and has no truth value."""
    own, inner = torch.zeros(3, requires_grad=True), torch.zeros(2)
    own.grad = torch.ones(3)
    check_tensors(torch, {"a": own, "b": [own]}, None, "file")
    own.grad = inner.as_strided((3,), (0,))
    inner.untyped_storage().resize_(0)
    with pytest.raises(LoadError, match="beyond its storage of 0 bytes"):
        check_tensors(torch, {"a": own}, None, "file")


def test_memory_that_grew_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch makes it grow, with what was there before, for a tensor that is too large for it."""
    path = save(tmp_path / "weights.pt", {"a": torch.ones(3), "b": torch.ones(5)})
    monkeypatch.setattr(torch, "load", lambda *_, **__: {"a": torch.ones(5), "b": torch.ones(5)})
    with pytest.raises(LoadError, match="declares a storage of 20 bytes"):
        load_state_dict(path)


def quantized_stride(body: bytes) -> bytes:
    at = body.rindex(b"K\x01\x85")
    return body[:at] + b"J\x00\x00\x10\x00\x85" + body[at + 3 :]


def quantized_offset(body: bytes) -> bytes:
    at = body.rindex(b"K\x00KM\x85")
    return body[:at] + b"J\x00\x00\x10\x00" + body[at + 2 :]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("change", [quantized_stride, quantized_offset, replacing(b"KM\x85", b"K\x7f\x85")])
def test_a_quantized_tensor_that_is_forged_in_the_file_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes], legacy: bool
) -> None:
    path = save(tmp_path / "weights.pt", {"q": per_tensor()}, legacy=legacy)
    if legacy:
        path.write_bytes(change(path.read_bytes()))
    else:
        repacked(path, change)
    with pytest.raises(LoadError):
        load_state_dict(path)
