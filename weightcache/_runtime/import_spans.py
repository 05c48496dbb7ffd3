"""Measure imports: a finder in front of `sys.meta_path` that finds nothing, and times what others find.

Only the outermost import of a thread is timed, and what it imports itself is part of it. So one finder call per module
is the whole cost.
"""

from __future__ import annotations

import sys
from _thread import get_ident
from importlib.machinery import SourceFileLoader, SourcelessFileLoader

TYPE_CHECKING = False  # a type checker takes it for true; the top of a module need not import typing
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from weightcache._spans import Recorder

PHASE = "import"


class ImportSpans:
    """A meta path finder that records the phase ``import``.

    Args:
        recorder: Gets the spans, until it ends.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._importing: set[int] = set()  # threads inside an import that is timed

    def install(self) -> None:
        """Time imports from now on."""
        sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Time no further imports."""
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Let the other finders search; return what they find, with a loader that is timed."""
        if get_ident() in self._importing or self._recorder.ended is not None:
            return None
        with self._timed():
            spec = self._search(name, path, target)
        if spec is not None and isinstance(spec.loader, (SourceFileLoader, SourcelessFileLoader)):
            self._time(spec.loader)
        return spec

    def _search(self, name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            if find is not None and (spec := find(name, path, target)) is not None:
                found: ModuleSpec = spec
                return found
        return None

    def _time(self, loader: SourceFileLoader | SourcelessFileLoader) -> None:
        """Let this loader, which is that of one module, time its next `exec_module`.

        The loader keeps its type, because programs check it.
        """

        def exec_module(module: ModuleType) -> None:
            loader.__dict__.pop("exec_module", None)
            if get_ident() in self._importing:
                loader.exec_module(module)
                return
            with self._timed():
                loader.exec_module(module)

        loader.__dict__["exec_module"] = exec_module

    def _timed(self) -> _Timed:
        return _Timed(self._importing, self._recorder)


class _Timed:
    """The span of one import, during which this thread's other imports are not timed."""

    __slots__ = ("_importing", "_recorder", "_span")

    def __init__(self, importing: set[int], recorder: Recorder) -> None:
        self._importing, self._recorder = importing, recorder

    def __enter__(self) -> None:
        self._importing.add(get_ident())
        self._span = self._recorder.begin(PHASE)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._span.__exit__(kind, error, trace)
        self._importing.discard(get_ident())
