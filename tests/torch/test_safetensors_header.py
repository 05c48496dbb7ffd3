"""The header of a safetensors file: the rules of its format, with the package safetensors as the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_files import assert_identical, write_header, write_shards
from weightcache.errors import LoadError
from weightcache.torch import load_state_dict
from weightcache.torch._safetensors_header import DTYPES, parse_header

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

TWO = {
    "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
    "b": {"dtype": "I8", "shape": [3], "data_offsets": [8, 11]},
}


def problems(header: Any, data: int = 11) -> tuple[str, ...]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return parse_header(text, 8 + len(text) + data).problems


def changed(name: str = "a", **fields: Any) -> Any:
    return {**TWO, name: {**TWO[name], **fields}}


def test_a_valid_header_gives_every_tensor_in_the_order_of_its_bytes() -> None:
    text = json.dumps({"__metadata__": {"format": "pt"}, "b": TWO["b"], "a": TWO["a"]}).encode() + b"   "
    found = parse_header(text, 8 + len(text) + 11)
    begin = 8 + len(text)
    assert found.tensors == (
        ("a", "float32", 4, (2, 1), begin, begin + 8),
        ("b", "int8", 1, (3,), begin + 8, begin + 11),
    )
    assert (found.metadata, found.problems) == ({"format": "pt"}, ())


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"{", "is not JSON"),
        (b"[]", "is not a JSON object, but a list"),
        (b'{"\xff": 1}', "is not UTF-8: byte 2"),
        (b'{"a": ' + b"[" * 100_000, "is nested too deeply"),
        (b'{"a": NaN}', "has NaN"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"a": {}, "a": {}}', "has the key 'a' twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F32"}}', "has the key 'dtype' twice"),
        (b'{"\\ud800": {}}', "is not Unicode text"),
        ({"a": 3}, "its entry is a int, not an object"),
        ({**TWO, "__metadata__": {"a": 1}}, "__metadata__ is not an object of texts"),
        ({**TWO, "__metadata__": "a"}, "__metadata__ is not an object of texts"),
        (changed(dtype="F128"), "its dtype 'F128' is not supported"),
        (changed(dtype=None), "its dtype None is not supported"),
        (changed(dtype=["F32"]), "is not supported"),
        (changed(shape=[2.0, 1]), "is not a list of at most 64 sizes"),
        (changed(shape=[True, 2]), "is not a list of at most 64 sizes"),
        (changed(shape=[-1, -2]), "is not a list of at most 64 sizes"),
        (changed(shape=[1] * 65), "is not a list of at most 64 sizes"),
        (changed(shape=[0, 1 << 40, 1 << 40]), "has too many elements"),
        (changed(shape=[1 << 70]), "is not a list"),
        (changed(shape=3), "is not a list"),
        (changed(data_offsets=[0, 8, 11]), "are not two offsets"),
        (changed(data_offsets=[-8, 0]), "are not two offsets"),
        (changed(data_offsets=[8, 0]), "takes 8 bytes, but has -8"),
        (changed(data_offsets=[0, 4]), "takes 8 bytes, but has 4"),
        (changed(dtype="F4", shape=[16, 1]), "has half bytes in its last dimension"),
        (changed("b", data_offsets=[7, 10]), "overlaps 'a': it begins at byte"),
        (changed("b", data_offsets=[9, 12]), "does not follow 'a'"),
        (changed("a", data_offsets=[3, 11]), "does not follow the header"),
        ({"a": TWO["a"]}, "3 bytes after its last tensor"),
        ({**TWO, "c": {"dtype": "U8", "shape": [5], "data_offsets": [11, 16]}}, "the file is truncated"),
    ],
)
def test_what_the_format_forbids_is_named(header: Any, says: str, tmp_path: Path) -> None:
    assert any(says in problem for problem in problems(header))
    path = write_header(tmp_path / "model.safetensors", header, b"01234567890")
    for ask in (path, tmp_path):
        with pytest.raises(LoadError) as caught:
            load_state_dict(ask, names=lambda _: True)
        assert header == b"[]" or any(says in problem for problem in caught.value.problems)


def in_order(tensors: dict[str, Any]) -> dict[str, Any]:
    """In an order that does not depend on safetensors, which has none for tensors without bytes."""
    return dict(sorted(tensors.items()))


def test_all_problems_of_a_header_are_listed() -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}
    assert len(problems({"a": entry, "b": entry, "c": 3, "__metadata__": 3})) == 4


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_is_what_safetensors_makes_of_it(dtype: str, tmp_path: Path) -> None:
    bits = DTYPES[dtype][1]
    entry = {"dtype": dtype, "shape": [3, 8], "data_offsets": [0, 3 * bits]}
    path = write_header(tmp_path / "model.safetensors", {"w": entry}, bytes(each % 2 for each in range(3 * bits)))
    assert_identical(load_state_dict(tmp_path), safetensors_torch.load_file(path))


def test_a_dtype_that_this_torch_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"dtype": "F8_E8M0", "shape": [3], "data_offsets": [0, 3]}
    write_header(tmp_path / "model.safetensors", {"w": entry}, b"000")
    monkeypatch.delattr(torch, "float8_e8m0fnu")
    with pytest.raises(LoadError, match="does not have: float8_e8m0fnu"):
        load_state_dict(tmp_path)


LETTERS = st.text(st.characters(codec="utf-8"), max_size=5)
SHAPES = st.lists(st.integers(0, 4), max_size=4)
KNOWN = st.sampled_from(["float32", "bfloat16", "float8_e5m2", "int64", "uint8", "bool", "complex64", "float64"])


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(LETTERS.filter(lambda name: name != "__metadata__"), st.tuples(KNOWN, SHAPES), max_size=6))
def test_what_safetensors_writes_is_read_as_it_reads_it(
    tmp_path_factory: pytest.TempPathFactory, model: dict[str, Any]
) -> None:
    tensors = {name: (torch.randn(shape) * 9).to(getattr(torch, dtype)) for name, (dtype, shape) in model.items()}
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    safetensors_torch.save_file(tensors, path)
    assert_identical(in_order(load_state_dict(path.parent)), in_order(safetensors_torch.load_file(path)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["F32", "I8", "", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape"]), inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "I8", "BF16", "F4", "X"]) | JSON,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 24), min_size=2, max_size=2) | JSON,
    }
)


@settings(max_examples=50, deadline=None)
@given(
    header=st.dictionaries(st.sampled_from(["a", "b", "c", "__metadata__"]), ENTRY | JSON, max_size=4)
    | st.binary(max_size=20),
    data=st.binary(max_size=24),
)
def test_any_other_header_is_a_load_error_or_what_safetensors_reads(
    tmp_path_factory: pytest.TempPathFactory, header: Any, data: bytes
) -> None:
    path = write_header(tmp_path_factory.mktemp("model") / "model.safetensors", header, data)
    try:
        loaded = load_state_dict(path.parent)
    except LoadError:
        return
    assert_identical(in_order(loaded), in_order(safetensors_torch.load_file(path)))


@settings(max_examples=40, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans())
def test_a_shard_with_one_wrong_byte_or_cut_off_is_a_load_error_or_has_other_numbers(
    tmp_path_factory: pytest.TempPathFactory, at: float, byte: int, cut: bool
) -> None:
    directory = tmp_path_factory.mktemp("model")
    expected = write_shards(directory, elements=4)
    path = directory / "model-00002-of-00003.safetensors"
    data = bytearray(path.read_bytes())
    place = int(at * len(data))
    data[place] = byte
    path.write_bytes(data[:place] if cut else data)
    try:
        loaded = load_state_dict(directory)
    except LoadError as error:
        assert error.problems
        return
    assert not cut
    assert list(loaded) == list(expected)
    reference = safetensors_torch.load_file(path)
    assert_identical({name: loaded[name] for name in reference}, reference)
