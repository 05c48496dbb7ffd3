"""Which files of a directory are loaded, and what an index must say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_files import assert_identical, write, write_index, write_shards
from weightcache.errors import LoadError, StorageError
from weightcache.torch import iter_tensors, load_state_dict

torch = pytest.importorskip("torch")

ONE, TWO, THREE = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
ENTRY = "layers.1.matrix"


def refusal(directory: Path) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load_state_dict(directory)
    with pytest.raises(LoadError):
        iter_tensors(directory)
    assert caught.value.source == str(directory)
    return caught.value


def weight_map(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"])


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors.index.json",
        "other.safetensors.index.json",
        "model.safetensors.index.fp16.json",
    ],
)
def test_an_index_by_any_name_decides(tmp_path: Path, name: str) -> None:
    expected = write_shards(tmp_path, index=False)
    write(tmp_path / "consolidated.safetensors", {"other": torch.ones(2)}, "safetensors")
    write_index(tmp_path, {each: f"model-0000{each[7]}-of-00003.safetensors" for each in expected}, name)
    assert_identical(load_state_dict(str(tmp_path) + "/"), expected)


def test_of_several_indexes_the_usual_name_and_no_variant_come_first(tmp_path: Path) -> None:
    expected = write_shards(tmp_path)
    write_index(tmp_path, {"x": "x.safetensors"}, "model.safetensors.index.fp16.json")
    write_index(tmp_path, {"x": "x.safetensors"}, "another.safetensors.index.json")
    write_index(tmp_path, {"x": "x.bin"}, "pytorch_model.bin.index.json")
    assert_identical(load_state_dict(tmp_path), expected)
    (tmp_path / "model.safetensors.index.json").rename(tmp_path / "one.safetensors.index.json")
    assert "several indexes: another.safetensors.index.json, one.saf" in refusal(tmp_path).problems[0]


def test_without_an_index_every_file_is_loaded(tmp_path: Path) -> None:
    expected = write_shards(tmp_path, index=False)
    write(tmp_path / "optimizer.bin", {"no": torch.ones(1)})
    assert_identical(load_state_dict(tmp_path), expected)
    (tmp_path / TWO).unlink()
    assert refusal(tmp_path).problems == (f"{TWO} is not there",)


def test_a_number_of_shards_that_nobody_has(tmp_path: Path) -> None:
    """The message names a few of them, not all 99,998."""
    (tmp_path / "a-00002-of-99999.safetensors").touch()
    assert refusal(tmp_path).problems == (
        *(f"a-0000{number}-of-99999.safetensors is not there" for number in (1, 3, 4)),
        "99995 others of 99999 are not there",
    )


def test_without_weights_it_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write(tmp_path / "weights.pt", {"a": torch.ones(1)})
    with pytest.raises(StorageError, match="without an index of shards") as caught:
        load_state_dict(tmp_path)
    assert "weights.pt" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": []}', "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        (f'{{"weight_map": {{"a": "{ONE}", "a": "{TWO}"}}}}', "has the key 'a' twice"),
        ('{"weight_map": {"a": 3}}', "maps 'a' to 3, which is not the name of a file"),
        ('{"weight_map": {"a": null}}', "maps 'a' to None"),
    ],
)
def test_a_malformed_index_is_refused(tmp_path: Path, text: str, says: str) -> None:
    write_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert says in refusal(tmp_path).problems[0]


@pytest.mark.parametrize("path", ["../outside.safetensors", "/etc/passwd", "a/../../b", "", ".", "a//b", "a\nb", "\0"])
def test_an_index_cannot_name_a_path_outside(tmp_path: Path, path: str) -> None:
    directory = tmp_path / "model"
    write_shards(directory)
    write(tmp_path / "outside.safetensors", {"a": torch.ones(2)}, "safetensors")
    write_index(directory, {**weight_map(directory), "a": path})
    assert f"maps 'a' to {path!r}" in refusal(directory).problems[0]


def test_a_file_in_a_directory_below_and_behind_a_symlink_is_loaded(tmp_path: Path) -> None:
    """As in a cache of the Hub, whose snapshots are symlinks to blobs outside of them."""
    directory = tmp_path / "model"
    expected = write_shards(directory)
    (tmp_path / "blob").write_bytes((directory / ONE).read_bytes())
    (directory / ONE).unlink()
    (directory / ONE).symlink_to("../blob")
    (directory / "below").mkdir()
    (directory / TWO).rename(directory / "below" / TWO)
    write_index(directory, {name: file.replace(TWO, f"below/{TWO}") for name, file in weight_map(directory).items()})
    loaded = load_state_dict(directory)
    assert_identical(dict(sorted(loaded.items())), dict(sorted(expected.items())))


@pytest.mark.parametrize("instead", ["nothing", "directory", "pipe", "dangling", "file above"])
def test_a_shard_that_is_no_file_is_named(tmp_path: Path, instead: str) -> None:
    write_shards(tmp_path)
    (tmp_path / ONE).unlink()
    (tmp_path / TWO).unlink()
    if instead == "directory":
        (tmp_path / ONE).mkdir()
    elif instead == "pipe":
        os.mkfifo(tmp_path / ONE)
    elif instead == "dangling":
        (tmp_path / ONE).symlink_to("nowhere")
    elif instead == "file above":
        write_index(tmp_path, {"a": f"{THREE}/below", "b": TWO})
    problems = refusal(tmp_path).problems
    assert len(problems) == 2
    assert any(TWO in problem and "is not there" in problem for problem in problems)


def test_every_problem_of_every_file_is_listed(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / ONE).write_bytes(b"")
    write(tmp_path / TWO, {"a": torch.ones(2)})
    (tmp_path / THREE).write_bytes((tmp_path / THREE).read_bytes()[:-1])
    problems = refusal(tmp_path).problems
    assert [problem.partition(":")[0] for problem in problems] == [ONE, TWO, THREE]
    for problem, says in zip(problems, ("is empty", "but one of torch.save", "the file is truncated"), strict=True):
        assert says in problem


@pytest.mark.parametrize("kind", ["safetensors", "zip"])
def test_each_tensor_is_once_and_where_the_index_says(tmp_path: Path, kind: str) -> None:
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    one, two = f"{stem}-1.{suffix}", f"{stem}-2.{suffix}"
    write(tmp_path / one, {"a": torch.ones(2), "twice": torch.ones(1), "more": torch.ones(1)}, kind)
    write(tmp_path / two, {"b": torch.ones(2), "twice": torch.ones(1)}, kind)
    index = {"a": two, "twice": one, "b": two, "lacking": one, "c": two}
    write_index(tmp_path, index, f"{stem}.{suffix}.index.json")
    with pytest.raises(LoadError) as caught:
        load_state_dict(tmp_path)
    assert set(caught.value.problems) >= {
        f"{one} and {two} both have 'twice'",
        f"the index lists 'lacking' in {one}, which does not have it",
        f"the index lists 'c' in {two}, which does not have it",
        f"the index lists 'a' in {two}, but it is in {one}",
    }
    write(tmp_path / two, {"b": torch.ones(2)}, kind)
    write_index(tmp_path, {"a": one, "twice": one, "b": two}, f"{stem}.{suffix}.index.json")
    loaded = load_state_dict(tmp_path)  # one that the index does not list is loaded, as by transformers
    assert set(loaded) == {"a", "twice", "more", "b"}


def test_without_an_index_a_tensor_that_two_files_have_is_an_error(tmp_path: Path) -> None:
    tensors = {f"w{number}": torch.ones(2) for number in range(9)}
    write(tmp_path / "model.safetensors", tensors, "safetensors")
    write(tmp_path / "model.fp16.safetensors", tensors, "safetensors")
    (problem,) = refusal(tmp_path).problems
    assert problem.startswith("model.fp16.safetensors and model.safetensors both have 9 tensors ('w0'")


def test_a_tied_tensor_that_a_converter_left_out_is_no_error(tmp_path: Path) -> None:
    """The index of the original lists it, and the metadata of the file that would have it say what it is."""
    tensors = {"embed.weight": torch.ones(2, 3)}
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt", "head.weight": "embed.weight"})
    write_index(tmp_path, {"embed.weight": "model.safetensors", "head.weight": "model.safetensors"})
    assert_identical(load_state_dict(tmp_path), tensors)
    write_index(tmp_path, {"embed.weight": "model.safetensors", "format": "model.safetensors"})
    assert "the index lists 'format'" in refusal(tmp_path).problems[0]


def test_tensors_that_share_memory_in_a_file_of_torch_save_share_it(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    write(tmp_path / "pytorch_model-1.bin", {"a": shared, "b": shared[2:]})
    write_index(tmp_path, dict.fromkeys("ab", "pytorch_model-1.bin"), "pytorch_model.bin.index.json")
    loaded = load_state_dict(tmp_path)
    loaded["a"][2] = 9.0
    assert loaded["b"].tolist() == [9, 3, 4, 5]


FILES = st.sampled_from([ONE, TWO, THREE, "../x", "/x", "", "model.safetensors.index.json"])
VALUES = FILES | st.text(max_size=4) | st.none() | st.integers() | st.lists(FILES, max_size=2)
NAMES = st.sampled_from(["layers.1.matrix", "layers.2.matrix", "x", "", "é"])


@settings(max_examples=50, deadline=None)
@given(
    st.binary(max_size=12)
    | st.dictionaries(NAMES, VALUES, max_size=4).map(lambda found: json.dumps({"weight_map": found}).encode())
    | st.dictionaries(NAMES, FILES, max_size=3).map(lambda found: json.dumps({"weight_map": found}).encode()[:-3])
)
def test_any_index_gives_a_load_error_or_the_tensors(tmp_path_factory: pytest.TempPathFactory, index: bytes) -> None:
    directory = tmp_path_factory.mktemp("model")
    expected = write_shards(directory, elements=4, index=False)
    (directory / "model.safetensors.index.json").write_bytes(index)
    try:
        loaded = load_state_dict(directory)
    except LoadError:
        return
    assert loaded.keys() <= expected.keys()
