"""Imports are timed from outside, and nothing about them changes."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from weightcache import _spans
from weightcache._runtime.import_spans import ImportSpans
from weightcache._spans import Recorder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package whose module imports another one of it."""
    (tmp_path / "wc_outer").mkdir()
    (tmp_path / "wc_outer" / "__init__.py").write_text("from . import inner\nloader = __spec__.loader\n")
    (tmp_path / "wc_outer" / "inner.py").write_text("import json\n")
    (tmp_path / "wc_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("wc_")]:
        del sys.modules[name]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = _spans.start()
    spans = ImportSpans(recorder)
    spans.install()
    yield recorder
    spans.remove()
    _spans.stop(recorder)


def test_only_the_outermost_import_is_timed(package: Path, recorder: Recorder) -> None:
    outer = import_module("wc_outer")
    search, load = recorder.spans
    assert [search.name, load.name] == ["import", "import"]
    assert search.began <= search.ended <= load.began < load.ended  # type: ignore[operator]
    assert type(outer.__loader__) is SourceFileLoader
    assert outer.loader is outer.__spec__.loader is outer.__loader__
    assert "exec_module" not in vars(outer.__loader__)


def test_an_import_that_fails(package: Path, recorder: Recorder) -> None:
    with pytest.raises(ZeroDivisionError):
        import_module("wc_broken")
    with pytest.raises(ModuleNotFoundError, match="No module named 'wc_absent'"):
        import_module("wc_absent")
    assert len(recorder.spans) == 3
    assert all(span.ended for span in recorder.spans)
    import_module("wc_outer")
    assert len(recorder.spans) == 5


def test_a_search_is_no_import(package: Path, recorder: Recorder) -> None:
    spec = importlib.util.find_spec("wc_outer")
    assert spec is not None
    assert isinstance(spec.loader, SourceFileLoader)
    [search] = recorder.spans
    assert search.ended
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # much later, by hand
    assert "exec_module" not in vars(spec.loader)
    assert recorder.spans[1].ended


def test_each_thread_has_its_own(package: Path, recorder: Recorder) -> None:
    thread = threading.Thread(target=import_module, args=("wc_outer",))
    thread.start()
    thread.join()
    assert {span.thread for span in recorder.spans} == {thread.ident}


def test_once_it_is_over(package: Path, recorder: Recorder) -> None:
    _spans.stop(recorder)
    import_module("wc_outer")
    assert recorder.spans == []


def test_it_leaves_the_finders_as_they_were() -> None:
    before = list(sys.meta_path)
    spans = ImportSpans(Recorder())
    spans.install()
    assert sys.meta_path == [spans, *before]
    spans.remove()
    spans.remove()
    assert sys.meta_path == before
