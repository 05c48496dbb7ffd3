"""Ctrl-C at every line where files of a root are opened, written and closed: none stays open (G7)."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import weightcache
from support import blob, one
from weightcache._coordination import lock
from weightcache._runtime.owned_descriptors import close_on_interrupt
from weightcache._runtime.writer_identity import Writer
from weightcache._store import file_operations as store_files
from weightcache._store import root_checks as store_root
from weightcache._store.inspect import read_bytes
from weightcache._store.layout import Layout
from weightcache._store.partial_directory import Partial
from weightcache.manifest import Manifest

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # inside a finaliser

DATA = blob(5000)
PACKAGE = os.path.dirname(weightcache.__file__)
Place = tuple[str, int]

# As the kernel's signal does it: the handler runs at the next instruction where Python looks for signals. A trace
# function that raises by itself confuses Python 3.11 (an exception in place of another object on its stack).
_interrupt: Any = ctypes.pythonapi.PyErr_SetInterrupt
_interrupt.argtypes, _interrupt.restype = [ctypes.py_object] * 3, None


class Interrupting:
    """Sends SIGINT to this thread at the line after the n-th time that a place in the library is reached."""

    def __init__(self, place: Place | None = None, time: int = 1) -> None:
        self.seen = Counter[Place]()
        self.raised = False
        self._place, self._time = place, time

    def __enter__(self) -> Interrupting:
        self._before = sys.gettrace(), signal.signal(signal.SIGINT, self._handle)
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before[0])
        signal.signal(signal.SIGINT, self._before[1])

    def _handle(self, *_: object) -> None:
        sys.settrace(None)
        self.raised = True
        raise KeyboardInterrupt

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event in ("call", "line"):
            place = os.path.basename(frame.f_code.co_filename)[:-3], frame.f_lineno
            self.seen[place] += 1
            if place == self._place and self.seen[place] == self._time:
                return _interrupt
        return self._trace


def open_below(folder: Path) -> list[str]:
    return [
        target
        for number in os.listdir("/proc/self/fd")
        if (target := os.path.realpath(f"/proc/self/fd/{number}")).startswith(f"{folder}/")
    ]


@close_on_interrupt
def write_and_read(root: Path, manifest: dict[str, Any]) -> None:
    """What a cold `ensure` does with files. Without its coroutines: Python 3.11 confuses its stack where a signal's
    handler raises in one."""
    [checkpoint] = Manifest.load(manifest)
    [file] = checkpoint.files
    layout = Layout(str(root))
    store_root.make_root(layout)
    with Writer.new(layout.root) as writer, Partial(layout, checkpoint, writer) as partial:
        data = partial.file(file)
        data.open()
        data.write(0, memoryview(DATA))
        assert data.read_block(0) == DATA
        data.seal(len(DATA))
        store_files.copy_file(data.path, f"{partial.path}/copy", lambda: None)
        assert store_files.hash_file(data.path, lambda: None)
        assert read_bytes(f"{partial.path}/journal", 1 << 20)
        partial.discard()


def test_no_file_stays_open(tmp_path: Path) -> None:
    manifest = one(DATA)
    write_and_read(tmp_path / "first", manifest)  # imports what it needs
    with Interrupting() as interrupting:
        write_and_read(tmp_path / "seen", manifest)
    codes = Counter[int]()
    for place, count in sorted(interrupting.seen.items()):
        for time in {1, count}:
            # A process for each: Python 3.11 can confuse its own stack where a handler raises at a function's start.
            process = os.fork()
            if not process:
                code = 3
                try:
                    code = interrupted(tmp_path, place, time, manifest)
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            assert code in (0, 1), (place, time)
            codes[code] += 1
            shutil.rmtree(tmp_path / "root", ignore_errors=True)
    assert codes[1] > codes[0]  # delivered, and not; the last line of a function has none after it


def interrupted(tmp_path: Path, place: Place, time: int, manifest: dict[str, Any]) -> int:
    """Return whether it was interrupted, and 2 if a file is open then."""
    before, now = open_below(tmp_path), Interrupting(place, time)
    left = before
    try:
        with now:
            write_and_read(tmp_path / "root", manifest)
    except KeyboardInterrupt as kept:  # with all that its frames hold
        left = open_below(tmp_path)
        del kept
    except TypeError as error:
        if "'traceback' object is not callable" not in str(error):  # that confusion
            raise
    return 2 if left != before else int(now.raised)


def test_the_gate_of_a_root_opens_again(root: Path) -> None:
    """Also where it comes just after the gate was passed, and the exception is kept."""

    def pass_gate() -> None:
        with lock.root_lock(str(root), wait=1, say=lambda _: None, check=lambda: None):
            pass

    pass_gate()
    with Interrupting() as interrupting:
        pass_gate()
    kept = []
    for place in sorted(each for each in interrupting.seen if each[0] in ("lock", "descriptors")):
        with Interrupting(place):
            try:
                close_on_interrupt(pass_gate)()
            except KeyboardInterrupt as error:
                kept.append(error)
        pass_gate()
    assert len(kept) > 10
