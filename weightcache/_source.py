"""Where bytes come from: a mirror's answer as a stream at a known offset, and the ways in which it fails.

The network's many ways to fail are four of ours:

* `SourceError`: this mirror cannot give the file.
* `TransientError`: it may on another try.
* `RangeError`: not in parts, perhaps as a whole.
* `WrongBytesError`: it gives another file than the declared one.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 256 * 1024  # bytes a read: large enough to be cheap, small enough for smooth progress


class SourceError(Exception):
    """This mirror cannot give the file; the text says why."""


class TransientError(SourceError):
    """It may work on another try, after at least ``after`` seconds."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class RangeError(SourceError):
    """The mirror does not give this part, or gives another one."""


class WrongBytesError(SourceError):
    """The mirror gives a whole file that is not the declared one."""

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(f"wrong bytes: expected {expected}, got {actual}")
        self.expected, self.actual = expected, actual


class Body(ABC):
    """A stream of a file's bytes.

    Attributes:
        offset: Where in the file it begins.
        total: Length of the whole file as the mirror says, or ``None``.
        validator: Strong ETag, or ``None``.
        resumable: Whether another request may continue it.
        partial: Whether it ends where the request said, and not at the end of the file.
    """

    offset: int = 0
    partial: bool = False
    total: int | None = None
    validator: str | None = None
    resumable: bool = True

    @abstractmethod
    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes. That they end does not mean that they are whole.

        Raises:
            TransientError: The stream broke off or stalled.
            SourceError: It cannot be read at all.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of it."""


class LocalBody(Body):
    """A ``file:`` URL: a regular file, copied."""

    def __init__(self, path: str, start: int, size: int | None) -> None:
        try:
            # O_NONBLOCK: opening a FIFO would otherwise wait for a writer for ever.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(error.strerror or "cannot be opened") from None
        try:
            found = os.fstat(self._descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise SourceError("is not a regular file")
            if size is not None and size != found.st_size:
                raise WrongBytesError(f"{size} bytes", f"{found.st_size} bytes")
            self.offset, self.total = start, found.st_size
            os.lseek(self._descriptor, start, os.SEEK_SET)
        except BaseException:
            self.close()
            raise

    def chunks(self) -> Iterator[bytes]:
        try:
            while chunk := os.read(self._descriptor, CHUNK):
                yield chunk
        except OSError as error:
            raise TransientError(error.strerror or "cannot be read") from None

    def close(self) -> None:
        os.close(self._descriptor)
