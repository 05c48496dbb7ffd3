"""Stands between Python and the calls that change a file system: it counts them, and ends the process at one of them.

It replaces functions of `os` and `open` in a child that was forked after all imports, so that a point costs
milliseconds. What it may miss is found by `Audit`: Python reports each such call to an audit hook as well, and the two
must agree (docs/decisions/0036-a-crash-at-every-call.md).
"""

from __future__ import annotations

import builtins
import io
import os
import pickle
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

# What each call is counted as. A key is the name of Python's audit event, where there is one.
COUNTED: dict[str, list[tuple[Any, str]]] = {
    "open": [(os, "open"), (builtins, "open"), (io, "open")],
    "os.mkdir": [(os, "mkdir")],
    "os.rename": [(os, "rename"), (os, "replace")],
    "os.remove": [(os, "unlink"), (os, "remove")],
    "os.rmdir": [(os, "rmdir")],
    "os.link": [(os, "link")],
    "os.symlink": [(os, "symlink")],
    "os.truncate": [(os, "truncate"), (os, "ftruncate")],
    "os.utime": [(os, "utime")],
    "os.chmod": [(os, "chmod"), (os, "fchmod")],
    "write": [(os, "write"), (os, "pwrite"), (os, "writev"), (os, "pwritev")],
    "move": [(os, "sendfile"), (os, "copy_file_range"), (os, "posix_fallocate")],
    "sync": [(os, "fsync"), (os, "fdatasync")],
}
WITHOUT_EVENT = ("write", "move", "sync")
# What a client sends: of a process that talks to Modal.
SENT: dict[str, list[tuple[Any, str]]] = {
    "send": [(socket.socket, name) for name in ("connect", "send", "sendall", "sendmsg")],
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_real_open, _kill, _lock_type = os.open, os.kill, threading.RLock
_fstat, _pread, _lseek, _write = os.fstat, os.pread, os.lseek, os.write


@dataclass
class Unsynced:
    """What a file holds that no fsync took: the size that was synced, and each write with the bytes before it."""

    size: int
    writes: list[tuple[int, int, bytes]] = field(default_factory=list)  # offset, length, what was there


class CallLayer:
    """Counts the calls of one process, and ends it at one of them.

    Args:
        at: The number of the call that the process does not survive; 0 for none.
        after: Whether that call is still made.
        report: A descriptor that gets, pickled, the name of that call and what was not synced.
        counted: The calls.

    Attributes:
        calls: How many there were.
        counts: How many of each kind.
        unsynced: What each file holds that no fsync took, by its inode.
    """

    def __init__(
        self, at: int, *, after: bool, report: int, counted: dict[str, list[tuple[Any, str]]] = COUNTED
    ) -> None:
        self.at, self.after, self.report = at, after, report
        self.calls, self.counts = 0, Counter[str]()
        self.unsynced: dict[int, Unsynced] = {}
        self._lock = _lock_type()
        for kind, places in counted.items():
            for place, name in places:
                setattr(place, name, self._replaced(kind, name, getattr(place, name)))

    def _replaced(self, kind: str, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if (kind == "open" and not _writes(arguments, options)) or (kind == "send" and _is_local(arguments[0])):
                return real(*arguments, **options)
            with self._lock:  # also while the call is made: no other thread changes anything while this one dies
                self.calls += 1
                self.counts[kind] += 1
                self.moment(name, after=False)
                self._note(name, arguments)
                try:
                    result = real(*arguments, **options)
                    if kind == "sync":
                        self.unsynced.pop(_fstat(arguments[0]).st_ino, None)
                    return result
                finally:
                    self.moment(name, after=True)

        return call

    def moment(self, name: str, *, after: bool) -> None:
        """Take part before and after each call: end the process at one of them."""
        if self.calls == self.at and after is self.after:
            self._die(name)

    def _note(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name not in ("write", "pwrite"):
            return
        found = _fstat(arguments[0])
        offset = arguments[2] if name == "pwrite" else found.st_size  # what is written in order is only appended to
        length = len(memoryview(arguments[1]))
        before = b""
        if offset < found.st_size:
            number = _real_open(f"/proc/self/fd/{arguments[0]}", os.O_RDONLY)  # it may be open for writing only
            before = _pread(number, length, offset)
            os.close(number)
        self.unsynced.setdefault(found.st_ino, Unsynced(found.st_size)).writes.append((offset, length, before))

    def _die(self, name: str) -> NoReturn:
        _write(self.report, pickle.dumps((name, self.unsynced)))
        _kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Audit:
    """Counts the same calls by Python's own audit events, which no replaced function can hide."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        sys.addaudithook(self._seen)

    def _seen(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in COUNTED and (event != "open" or (arguments[2] or 0) & _WRITING):
            self.counts[event] += 1


def _is_local(number: socket.socket) -> bool:
    """Whether an event loop wakes itself up by this socket."""
    return number.family == socket.AF_UNIX


def _writes(arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether an ``open`` may change something: `os.open` has flags, the built-in one has a mode."""
    how = arguments[1] if len(arguments) > 1 else options.get("mode", options.get("flags", "r"))
    return bool(how & _WRITING) if isinstance(how, int) else any(letter in how for letter in "wxa+")
