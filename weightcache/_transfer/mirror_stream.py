"""The response of a mirror as a stream at a known offset, and its errors.

Every failure of the network is one of five errors:

* `SourceError`: this mirror cannot deliver the file.
* `TransientError`: another try may succeed.
* `RangeError`: it does not deliver this part, but perhaps the whole file.
* `ChangedError`: its file changed since the last part.
* `WrongBytesError`: it delivers another file than the declared one.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod

from weightcache._runtime.owned_descriptors import Descriptor
from weightcache._store.content_sniffing import HEAD, foreign_content

_WHAT_TO_DO = {
    "an HTML page": "open the URL in a browser: perhaps the host wants a login or a click first, or has a page about "
    "the file; give the URL of the file itself",
    "a Git LFS pointer": "the file lies in Git LFS: give the URL that its host offers for the download (of the Hub "
    "/resolve/, of GitHub media.githubusercontent.com/media/)",
    "a JSON document": "open the URL to see what the host says; give the URL of the file itself",
    "an XML document": "open the URL to see what the host says; give the URL of the file itself",
    "an empty file": "the host has an empty file there; give a URL that has the bytes, or upload them again",
}


class SourceError(Exception):
    """This mirror cannot deliver the file. The text says why, and ``hint`` what the user can do, if anything.

    ``request_sent`` is whether a request was made.
    """

    def __init__(self, reason: str, *, hint: str = "", request_sent: bool = True) -> None:
        super().__init__(reason)
        self.hint, self.request_sent = hint, request_sent


class TransientError(SourceError):
    """Another try may succeed, after at least ``retry_after`` seconds; ``throttled`` if it asks for fewer requests."""

    def __init__(self, reason: str, retry_after: float = 0.0, *, throttled: bool = False) -> None:
        super().__init__(reason)
        self.retry_after, self.throttled = retry_after, throttled


class RangeError(SourceError):
    """The mirror does not deliver this part, or delivers another one."""


class ChangedError(RangeError):
    """The mirror delivers parts of another file than before."""


class WrongBytesError(SourceError):
    """The mirror delivers a file that is not the declared one.

    ``looks_like`` says what it is instead, as `foreign_content` does, if that is known; ``is_stored`` is whether bytes
    of it may be on the disk.
    """

    def __init__(self, expected: str, actual: str, looks_like: str = "", *, is_stored: bool = True) -> None:
        super().__init__(
            f"wrong bytes: expected {expected}, got {actual}{f'; what came is {looks_like}' if looks_like else ''}",
            hint=next((hint for what, hint in _WHAT_TO_DO.items() if what in looks_like), ""),
        )
        self.expected, self.actual, self.looks_like, self.is_stored = expected, actual, looks_like, is_stored


class Body(ABC):
    """A stream of a file's bytes.

    Attributes:
        offset: Where in the file it starts.
        total: Length of the whole file as the mirror says, or ``None``.
        validator: Strong ETag, or ``None``.
        resumable: Whether another request may continue it.
        end: Where in the file it ends, or ``None`` if it does not say.
        content_type: The Content-Type of the response; empty without one.
    """

    offset: int = 0
    end: int | None = None
    total: int | None = None
    validator: str | None = None
    resumable: bool = True
    content_type: str = ""

    @property
    def suggested_name(self) -> str:
        """The name that the response gives to the file; empty if it gives none."""
        return ""

    @abstractmethod
    def read_into(self, view: memoryview) -> int:
        """Read what has arrived, and wait if nothing has. Return 0 at the end, also at one that came too soon.

        Raises:
            TransientError: The stream broke off or stalled.
            SourceError: It cannot be read at all.
        """

    def unexpected_content(self, head: bytes, name: str) -> str:
        """Return what a file called ``name`` that starts with ``head`` is; empty if it may be weights."""
        return foreign_content(head, name=name)

    def is_ready(self, count: int) -> bool:  # noqa: ARG002 (a file always is)
        """Whether a read of ``count`` bytes would return all of them without a wait."""
        return True

    def interrupt(self) -> None:  # noqa: B027 (a file has nothing to interrupt)
        """End a read in progress in another thread."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection or the file."""


class LocalBody(Body):
    """A ``file:`` URL: a regular file, copied."""

    def __init__(self, path: str, start: int, size: int | None) -> None:
        self._descriptor = Descriptor()
        try:
            # O_NONBLOCK: else opening a FIFO would wait for a writer without end.
            self._descriptor.open(path, os.O_RDONLY | os.O_NONBLOCK)
            found = os.fstat(self._descriptor.number)
            if not stat.S_ISREG(found.st_mode):
                raise SourceError("is not a regular file")
            if size is not None and size != found.st_size:
                looks_like = self.unexpected_content(os.pread(self._descriptor.number, HEAD, 0), path)
                raise WrongBytesError(f"{size} bytes", f"{found.st_size} bytes", looks_like)
            self.offset, self.end, self.total = start, found.st_size, found.st_size
            os.lseek(self._descriptor.number, start, os.SEEK_SET)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise SourceError(error.strerror or "cannot be opened") from None
            raise

    def read_into(self, view: memoryview) -> int:
        try:
            return os.readv(self._descriptor.number, [view])
        except OSError as error:
            raise TransientError(error.strerror or "cannot be read") from None

    def close(self) -> None:
        self._descriptor.close_quietly()
