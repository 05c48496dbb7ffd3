"""Files of a stranger: errors of a few words for any number of names, and no name that is compared with all others."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from compared import Compared
from torch_files import write, write_header, write_index, write_shards
from weightcache.errors import LoadError
from weightcache.torch import _model, _pickle_refusal, assign_into, load_state_dict

torch = pytest.importorskip("torch")

from forgery import with_pickle  # noqa: E402 (it imports torch)
from weightcache.torch._model_directory import Shards, _missing_numbers  # noqa: E402
from weightcache.torch._safetensors_header import Header, TensorEntry  # noqa: E402
from weightcache.torch._safetensors_shards import Shard, _mismatches  # noqa: E402

MANY = 3000


def refusal(path: Path) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load_state_dict(path)
    return caught.value


def test_an_index_of_many_wrong_names(tmp_path: Path) -> None:
    write_index(tmp_path, {str(number): 0 for number in range(MANY)})
    error = refusal(tmp_path)
    assert len(error.problems) == MANY
    assert len(str(error)) < 20_000
    assert f"and {MANY - 100} more" in str(error)


def test_a_header_of_many_wrong_tensors(tmp_path: Path) -> None:
    write_header(tmp_path / "x.safetensors", {str(number): {} for number in range(MANY)})
    assert len(str(refusal(tmp_path))) < 40_000


def test_many_indexes(tmp_path: Path) -> None:
    for number in range(200):
        write_index(tmp_path, {"a": "b"}, f"m{number}.safetensors.index.json")
    assert "and 190 more" in str(refusal(tmp_path))
    assert len(str(refusal(tmp_path))) < 1000


def test_a_file_name_begins_no_line(tmp_path: Path) -> None:
    with pytest.raises(LoadError) as caught:
        load_state_dict(write(tmp_path / "x\n  hint: run it.pt", {"a": torch.ones(1)}), device="meta:9")
    assert [line for line in str(caught.value).splitlines() if line.startswith("  hint: run")] == []


def pickle_of(modules: str, names: int) -> bytes:
    return b"\x80\x02}" + b"".join(f"c{modules}{each}\nC\n0".encode() for each in range(names)) + b"."


@pytest.mark.parametrize("modules", ["mod", "os.m"], ids=["strange", "harmful"])
def test_a_pickle_that_needs_many_classes(modules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[Any] = []
    monkeypatch.setattr(_pickle_refusal, "_find", lambda *pair: searched.append(pair))
    error = refusal(with_pickle(tmp_path / "x.pt", pickle_of(modules, MANY)))
    assert len(error.problems) == MANY
    assert len(error.hint) < 400
    assert searched == []
    assert ("and 2990 more can do harm" in error.hint) == (modules == "os.m")


def test_a_pickle_that_needs_some_packages_that_are_not_there(tmp_path: Path) -> None:
    error = refusal(with_pickle(tmp_path / "x.pt", pickle_of("mod", 20)))
    assert "mod0.C cannot be allowed" in error.hint
    assert " and 10 more. Load the file with the package versions" in error.hint


def test_a_long_name_in_a_pickle_is_cut(tmp_path: Path) -> None:
    error = refusal(with_pickle(tmp_path / "x.pt", pickle_of("m" * 5000, 1)))
    assert len(str(error)) < 2000


def test_a_tensor_that_the_metadata_names_is_looked_up() -> None:
    tensors = tuple(TensorEntry(f"t{number}", "uint8", 1, (0,), 0, 0) for number in range(300))
    header = Header(tensors, {f"m{number}": Compared(f"v{number}") for number in range(300)}, ())
    file: Any = None
    Compared.count = 0
    assert _mismatches(Shards("d", "safetensors", {"a": "d/a"}, None), [Shard("a", "d/a", file, b"", header)]) == []
    assert Compared.count < 1000


class Listed(dict[str, str]):
    """An index that counts how often it is gone through."""

    rounds = 0

    def items(self) -> Any:
        self.rounds += 1
        return super().items()


def test_an_index_of_many_files_is_gone_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = write_shards(tmp_path, files=5, kind="zip", elements=10)
    seen: list[Listed] = []

    def counting(*given: Any) -> Any:
        found = find(*given)
        seen.append(Listed(found.weight_map or {}))
        return found._replace(weight_map=seen[-1])

    find = _model.find_shards
    monkeypatch.setattr(_model, "find_shards", counting)
    assert load_state_dict(tmp_path).keys() == expected.keys()
    assert [each.rounds for each in seen] == [1]


def cost(total: int) -> float:
    files = [f"m{number}-{total:05}-of-{total:05}.safetensors" for number in range(300)]
    began = time.process_time()
    assert len(_missing_numbers(files)) == 4 * 300
    return time.process_time() - began


def test_a_name_that_claims_many_shards_costs_no_more_than_another() -> None:
    cost(9)
    assert cost(99_999) < 20 * cost(9)


def test_what_a_hook_of_a_module_says_is_one_line() -> None:
    module = torch.nn.Linear(1, 1)

    def refuse(*_: Any) -> None:
        raise RuntimeError("Error(s):\n\tMissing x\n  hint: run it")

    module._register_load_state_dict_pre_hook(refuse)
    with pytest.raises(LoadError) as caught:
        assign_into(module, module.state_dict())
    assert caught.value.problems == ("Error(s):; Missing x; hint: run it",)


def test_a_directory_names_a_few_files_in_one_line(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}\n  hint: run it.pt").touch()
    with pytest.raises(Exception, match="cannot read") as caught:
        load_state_dict(tmp_path)
    assert " and 3 more" in str(caught.value)
    assert [line for line in str(caught.value).splitlines() if line.startswith("  hint: run")] == []
    assert os.listdir(tmp_path)
