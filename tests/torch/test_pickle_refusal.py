"""The hint for a file that needs more than weights: what it says works when it is followed."""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import pathlib
import pickle
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from weightcache.errors import LoadError
from weightcache.torch import load_state_dict

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("numpy")

from forgery import repacked, replacing, save, with_pickle  # noqa: E402 (it imports torch)


def refusal(path: Path) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load_state_dict(path)
    return caught.value


def follow(hint: str) -> dict[str, Any]:
    """Run the lines of code that the hint gives, in their order, and nothing else; return what was loaded."""
    imports, call = re.findall("`([^`]+)`", hint)
    with_statement, _, loading = call.rpartition("): ")
    space: dict[str, Any] = {}
    exec(f"{imports}\n{with_statement}): loaded = {loading}", space)
    return dict(space["loaded"])


class Config:
    """A class of the user's own."""

    def __init__(self, rate: float = 0.0) -> None:
        self.rate = rate


def test_a_scalar_that_numpy_1_wrote_is_loaded_with_what_the_hint_says(tmp_path: Path) -> None:
    path = save(tmp_path / "old.pt", {"w": torch.zeros(3), "best": numpy.float64(0.5)})
    repacked(path, replacing(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    error = refusal(path)
    assert '(numpy._core.multiarray.scalar, "numpy.core.multiarray.scalar")' in error.hint
    assert follow(error.hint)["best"] == 0.5


OTHER = {
    "array": lambda: numpy.arange(6, dtype="i4").reshape(2, 3),
    "text array": lambda: numpy.array(["a", "bc"]),
    "object array": lambda: numpy.array([{"a": 1}, None], dtype=object),
    "structured array": lambda: numpy.zeros(2, dtype=[("a", "f4"), ("b", "u1")]),
    "dates": lambda: numpy.array(["2026-01-01"], dtype="M8[D]"),
    "bool": lambda: numpy.bool_(1),
    "bytes": lambda: numpy.bytes_(b"xyz"),
    "many": lambda: [numpy.float32(1), numpy.int64(2), numpy.float32(3), numpy.zeros(2, "f8")],
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("moved", [False, True], ids=["numpy 2", "numpy 1"])
@pytest.mark.parametrize("kind", OTHER)
def test_all_that_numpy_values_need_is_in_one_hint(tmp_path: Path, kind: str, moved: bool, legacy: bool) -> None:
    value = OTHER[kind]()
    path = save(tmp_path / "weights.pt", {"w": torch.ones(2), "x": value}, legacy=legacy)
    if moved and legacy:
        path.write_bytes(path.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core."))
    elif moved:
        repacked(path, replacing(b"cnumpy._core.", b"cnumpy.core."))
    loaded = follow(refusal(path).hint)["x"]
    assert repr(loaded) == repr(value)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "value",
    [
        argparse.Namespace(rate=0.5),
        pathlib.PurePosixPath("a/b"),
        pathlib.Path("a/b"),
        dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc),
        Config(0.25),
        [argparse.Namespace(a=1), pathlib.Path("x"), Config(), numpy.float64(1), dt.timedelta(1)],
        slice(1, 2),
    ],
    ids=["Namespace", "PurePosixPath", "Path", "datetime", "own", "several", "builtin"],
)
def test_classes_of_python_and_of_ones_own_are_allowed_as_the_hint_says(
    tmp_path: Path, value: Any, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as a module that can be imported: with importlib's way of pytest, a test's module cannot be
    monkeypatch.setattr(Config, "__module__", "own_config")
    monkeypatch.setitem(sys.modules, "own_config", module := types.ModuleType("own_config"))
    module.Config = Config  # type: ignore[attr-defined]
    path = save(tmp_path / "weights.pt", {"w": torch.ones(2), "x": value}, legacy=legacy)
    error = refusal(path)
    assert "lets its code run" in error.hint
    loaded = follow(error.hint)["x"]
    assert type(loaded) is type(value)
    assert (
        repr(vars(loaded) if isinstance(value, Config) else loaded)[:40]
        == repr(vars(value) if isinstance(value, Config) else value)[:40]
    )


def test_the_hint_names_the_same_call_in_a_new_process(tmp_path: Path) -> None:
    """Nothing but what the hint imports is imported there."""
    path = save(tmp_path / "it's.pt", {"w": torch.ones(2), "args": argparse.Namespace(rate=0.5)})
    lines = re.findall("`([^`]+)`", refusal(path).hint)
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that is installed and not imported, and that leaves a trace when it is."""
    package = tmp_path / "site" / "confpack"
    package.mkdir(parents=True)
    trace = f"open({str(tmp_path / 'imported')!r}, 'a').close()\n"
    package.joinpath("__init__.py").write_text(trace)
    package.joinpath("nodes.py").write_text(f"{trace}class Node:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield "confpack.nodes"
    for name in ("confpack", "confpack.nodes"):
        sys.modules.pop(name, None)


def test_what_is_not_imported_yet_is_not_imported_for_the_hint(tmp_path: Path, on_disk: str) -> None:
    """Importing a module that a file names would run it."""
    path = save_as_of(tmp_path / "weights.pt", on_disk, "Node")
    hint = refusal(path).hint
    assert not (tmp_path / "imported").exists()
    assert on_disk not in sys.modules
    assert type(follow(hint)["x"]).__name__ == "Node"
    assert (tmp_path / "imported").exists()


def save_as_of(path: Path, module: str, name: str) -> Path:
    """Save an object of a class that its program called ``module.name``."""
    saved = types.ModuleType(module)
    cls = type(name, (), {"__module__": module})
    setattr(saved, name, cls)
    before = {parent: sys.modules.get(parent) for parent in (module, module.partition(".")[0])}
    sys.modules[module] = saved
    sys.modules.setdefault(module.partition(".")[0], saved)
    try:
        return save(path, {"w": torch.ones(2), "x": cls()})
    finally:
        for parent, old in before.items():
            if old is None:
                sys.modules.pop(parent, None)
            else:
                sys.modules[parent] = old


def test_the_classes_of_pathlib_have_another_name_in_python_3_13(tmp_path: Path) -> None:
    path = save(tmp_path / "weights.pt", {"x": pathlib.PurePosixPath("a/b")})
    stored = pathlib.PurePosixPath.__module__.encode()
    other = b"pathlib" if stored == b"pathlib._local" else b"pathlib._local"
    repacked(path, replacing(b"c" + stored + b"\nPurePosixPath\n", b"c" + other + b"\nPurePosixPath\n"))
    assert follow(refusal(path).hint)["x"] == pathlib.PurePosixPath("a/b")


def test_a_path_of_windows_becomes_one_that_this_system_can_make(tmp_path: Path) -> None:
    path = with_pickle(tmp_path / "weights.pt", b"\x80\x02}X\x01\0\0\0xcpathlib\nWindowsPath\nX\x03\0\0\0c:\\\x85Rs.")
    assert follow(refusal(path).hint)["x"] == pathlib.PureWindowsPath("c:\\")


@pytest.mark.parametrize(
    ("module", "name", "says"),
    [
        ("models.yolo", "Model", "the module models is not installed here"),
        ("numpy", "float_", "numpy has no float_ (version"),
        ("numpy.core.nowhere", "scalar", "numpy has no module numpy._core.nowhere"),
        ("torch.nn", "Gone", "torch.nn has no Gone (version"),
        ("argparse", "Gone", "argparse has no Gone"),
        ("__main__", "Net", "__main__ has no Net"),
    ],
)
def test_what_does_not_exist_any_more_is_said_to_be_so(tmp_path: Path, module: str, name: str, says: str) -> None:
    text = f"\x80\x02}}X\x01\0\0\0xc{module}\n{name}\ns.".encode("latin-1")
    error = refusal(with_pickle(tmp_path / "weights.pt", text))
    assert f"{module}.{name} cannot be allowed: {says}" in error.hint
    assert "safe_globals" not in error.hint
    assert len(error.problems) == 1


def test_a_name_that_is_code_is_never_put_into_what_is_copied(tmp_path: Path) -> None:
    name = "Namespace]): __import__('os').system('x') #`"
    text = f"\x80\x02}}X\x01\0\0\0xcargparse\n{name}\ns.".encode("latin-1")
    error = refusal(with_pickle(tmp_path / "weights.pt", text))
    assert "it is not a valid Python name" in error.hint
    assert "safe_globals" not in error.hint
    assert "import torch" not in error.hint


@pytest.mark.parametrize(
    "name", ["builtins eval", "builtins getattr", "__builtin__ getattr", "nt system", "torch load"]
)
def test_what_can_do_harm_is_never_offered(tmp_path: Path, name: str) -> None:
    module, _, function = name.partition(" ")
    text = f"\x80\x02}}(X\x01\0\0\0xc{module}\n{function}\nX\x01\0\0\0ycargparse\nNamespace\nu.".encode("latin-1")
    error = refusal(with_pickle(tmp_path / "weights.pt", text))
    assert "do not load this file" in error.hint
    assert "safe_globals" not in error.hint


def test_what_is_refused_only_once_the_rest_is_allowed_has_a_hint_as_well(tmp_path: Path) -> None:
    path = save(tmp_path / "weights.pt", {"x": numpy.float64(0.5)})
    with torch.serialization.safe_globals([numpy._core.multiarray.scalar, numpy.dtype]):
        hint = refusal(path).hint
        assert "[numpy.dtypes.Float64DType]" in hint
        assert follow(hint)["x"] == 0.5


def test_what_torch_never_fills_is_said_not_to_be_allowed(tmp_path: Path) -> None:
    path = save(tmp_path / "weights.pt", {"x": collections.defaultdict(list, a=[1])})
    hint = refusal(path).hint
    with torch.serialization.safe_globals([collections.defaultdict, list]):
        assert "replace collections.defaultdict by a plain dict" in refusal(path).hint
    assert "safe_globals([collections.defaultdict, list])" in hint


def test_a_pickle_that_cannot_be_read_to_its_end_still_names_what_was_refused(tmp_path: Path) -> None:
    text = b"\x80\x02}X\x01\0\0\0xcargparse\nNamespace\n\xff"
    error = refusal(with_pickle(tmp_path / "weights.pt", text))
    assert "needs argparse.Namespace" in str(error)


def test_what_torch_wants_imported_is_what_the_hint_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object, **__: object) -> None:
        raise pickle.UnpicklingError(
            "Weights only load failed. WeightsUnpickler error: "
            "``torch.nested`` and ``torch._dynamo`` must be imported to load nested jagged tensors (NJTs)"
        )

    path = save(tmp_path / "weights.pt", {"x": torch.ones(1)})
    monkeypatch.setattr(torch, "load", refusing)
    assert refusal(path).hint == "import it first: `import torch.nested, torch._dynamo`"
