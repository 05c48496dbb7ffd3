"""The files of a download in order: which of them are in progress, verified, and closed."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .file_transfer import FileTransfer


class FileQueue:
    """The files of a download, in the order in which they are hashed.

    Args:
        transfers: The files.
        open_files: Most files that may be open at once.
    """

    def __init__(self, transfers: Sequence[FileTransfer], open_files: int) -> None:
        self.transfers = transfers
        self._open_files = open_files
        self._first = 0  # index of the first one that is not verified
        self._closed = 0  # how many are closed

    @property
    def is_done(self) -> bool:
        """Whether every file is verified."""
        return self._first == len(self.transfers)

    @property
    def first(self) -> FileTransfer | None:
        """The first file that is not verified."""
        return None if self.is_done else self.transfers[self._first]

    def window(self, size: int) -> Iterator[tuple[FileTransfer, int]]:
        """Yield the files in a window of ``size`` bytes from the hash on, and below which offset of each it ends."""
        last = min(len(self.transfers), self._closed + self._open_files)
        for transfer in islice(self.transfers, self._first, last):
            yield transfer, transfer.hashed + size
            if transfer.length is None:
                return
            size -= transfer.length - transfer.hashed
            if size <= 0:
                return

    def after(self, transfer: FileTransfer) -> list[FileTransfer]:
        """Return the files after one that are open and not verified."""
        index = self.transfers.index(transfer, self._first)
        later = self.transfers[index + 1 : self._closed + self._open_files]
        return [each for each in later if each.opened and not each.verified]

    def opened(self) -> list[FileTransfer]:
        """Return the files that are in progress, or verified and not closed yet."""
        return [each for each in self.transfers[self._closed : self._closed + self._open_files] if each.opened]

    def skip_verified(self) -> None:
        """Move on to the first file that is not verified."""
        while not self.is_done and self.transfers[self._first].verified:
            self._first += 1

    def next_verified(self) -> FileTransfer | None:
        """Return the next verified file that is not closed yet."""
        return self.transfers[self._closed] if self._closed < self._first else None

    def on_closed(self) -> None:
        """Note that `next_verified` is closed."""
        self._closed += 1
