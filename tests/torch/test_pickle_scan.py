"""`load_state_dict` runs nothing that a pickle names, and says what a file needs."""

from __future__ import annotations

import argparse
import builtins
import importlib
import io
import os
import pickle
import runpy
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from torch_files import InMemory
from weightcache.errors import LoadError
from weightcache.torch import load_state_dict

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts, and a zip file is large, from 256 KiB on."""
    monkeypatch.setattr("weightcache._prefetch.prefetcher.READ_CHUNK", 256 << 10)
    monkeypatch.setattr("weightcache._prefetch.prefetched_file.READ_CHUNK", 256 << 10)
    monkeypatch.setattr("weightcache.torch._load.READ_CHUNK", 256 << 10)


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
