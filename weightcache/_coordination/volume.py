"""Commit and reload of a Volume: any object with ``commit()`` and ``reload()``.

Two properties of Modal Volumes shape the calls:

- A reload discards what no commit has taken, so a container that has written commits before it reloads.
- A commit that raises may have published all the same: Modal's client reloads after it commits, and that may fail. So
  a failed commit is retried and reported, and never taken as "not published".
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import contextmanager, suppress
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from weightcache._environment import in_modal_container
from weightcache._message_text import printable, printable_line
from weightcache._runtime import tuning_constants as runtime_settings
from weightcache._runtime.unannounced_write_check import announce_writing, is_writing
from weightcache._runtime.writer_identity import note_path
from weightcache._spans import span
from weightcache.errors import StorageError

from .background_readers import pause_all
from .committed_state import is_committed
from .lock import reload_lock
from .mount_check import check_mounted, mounted_volume
from .open_files import open_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from weightcache._runtime.tuning_constants import Settings

    from .committed_state import Wanted

_log = logging.getLogger("weightcache")


class Volume(Protocol):
    """What `ensure` needs of a Volume; ``modal.Volume`` has it."""

    def commit(self) -> object:
        """Make what this container wrote durable and visible to others."""
        ...

    def reload(self) -> object:
        """Show what other containers committed."""
        ...


_UNSEEN = "Until it is closed, this container does not see what others commit"
_warned: set[str] = set()  # what this process has logged: a training app publishes again and again beside one log


class _Outcome(Enum):
    """What came of a commit or a reload."""

    DONE = "it returned"
    COMMITTED = "it raised an error, and the committed state has what it was for"
    FAILED = "it raised an error each time"


class VolumeSession:
    """Commits and reloads the Volume of one root during one call, and collects the warnings.

    Args:
        root: The root.
        volume: The Volume, or ``None`` for a plain disk: then nothing is committed or reloaded.
        settings: Time limits; ``None`` for the defaults.

    Raises:
        TypeError: ``volume`` has no ``commit()`` or no ``reload()``.
        VolumeError: In a Modal container, another Volume, or none, is mounted at ``root``.

    Attributes:
        warnings: One sentence for each failure.
        committed: Whether the last commit succeeded; ``None`` before the first, or without a volume.
    """

    def __init__(self, root: str, volume: Volume | None, settings: Settings | None = None) -> None:
        if volume is not None and not all(callable(getattr(volume, name, None)) for name in ("commit", "reload")):
            raise TypeError(f"volume must have commit() and reload(), and {type(volume).__name__} does not")
        if volume is not None:
            check_mounted(root, volume)
        self._root, self._volume = root, volume
        self._settings = settings or runtime_settings.DEFAULT
        self.warnings: list[str] = []
        self.committed: bool | None = None
        self._warned_ephemeral = False

    @property
    def has_volume(self) -> bool:
        return self._volume is not None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Allow changes of published data inside the block, and mark the root as changed since the last commit.

        The mark is a note on the container's own disk, for every process of this container. It is written first, so
        that a process that is killed inside the block leaves it behind; only a commit removes it.
        """
        with suppress(OSError, StorageError), open(note_path(self._root, "unpushed"), "wb") as note:
            # The note is removed later if this root does not exist any more.
            note.write(os.fsencode(os.path.realpath(self._root)))  # a path need not be UTF-8
        with announce_writing(self._root):
            yield

    def is_dirty(self) -> bool:
        """Whether this container has written anything that no commit has taken."""
        if self._volume is None:
            return False
        try:
            return os.path.exists(note_path(self._root, "unpushed"))
        except StorageError:
            return True

    def sync(self) -> None:
        """Show what other containers committed, and commit first what this one wrote. Never raises."""
        if not self.is_dirty() or self.commit():  # a reload would discard a partial that exists only here
            self.reload()

    def reload(self) -> None:
        """Show what other containers committed. Never raises."""
        if self._volume is not None:
            with span("reload"):
                self._call("reload", self._volume.reload)

    def commit(self, files: Mapping[str, Wanted] | None = None) -> bool:
        """Commit, with retries; ``True`` if it succeeded or there is no volume. Never raises.

        Args:
            files: What this commit is for, as `is_committed` takes it. If Modal raises an error and its committed
                state has them all, the commit worked, and is not tried again. What else was written stays marked.
        """
        return self._volume is None or self._commit(self._volume, files) is not _Outcome.FAILED

    def commit_and_reload(self, files: Mapping[str, Wanted]) -> bool:
        """Commit as `commit` does, then show what other containers committed. Never raises.

        Where Modal raised an error and its committed state has the files, no reload is tried: it would fail again.
        """
        if self._volume is None:
            return True
        outcome = self._commit(self._volume, files)
        if outcome is _Outcome.DONE:
            self.reload()
        return outcome is not _Outcome.FAILED

    def _commit(self, volume: Volume, files: Mapping[str, Wanted] | None) -> _Outcome:
        with span("commit"):
            outcome = self._call("commit", volume.commit, files)
        self.committed = outcome is not _Outcome.FAILED
        if outcome is _Outcome.DONE and not is_writing(self._root):  # another thread may be inside `writing`
            with suppress(OSError, StorageError):
                os.unlink(note_path(self._root, "unpushed"))
        return outcome

    def _call(
        self, operation: str, function: Callable[[], object], files: Mapping[str, Wanted] | None = None
    ) -> _Outcome:
        for delay in (*self._settings.volume_backoff, None):
            try:
                with reload_lock(self._root, self._settings), pause_all():
                    function()
            except Exception as error:  # noqa: BLE001 (a volume raises whatever it likes; the bytes are safe)
                if files and self._has_committed(files):
                    return _Outcome.COMMITTED
                if delay is None:
                    said = printable_line(str(error))  # Modal names files of the Volume
                    what = f"{operation} of the volume failed: {type(error).__name__}: {said}{_remedy(error)}"
                    users = open_files(self._root)
                    self.warn(f"{what} ({users})" if users else what)
                else:
                    said = printable_line(str(error))
                    _log.info("%s of the volume failed (%s); trying again in %g s", operation, said, delay)
                    time.sleep(delay)
            else:
                return _Outcome.DONE
        return _Outcome.FAILED

    def _has_committed(self, files: Mapping[str, Wanted]) -> bool:
        """Whether the committed state has ``files``. Then warn once of what keeps this container from a reload."""
        with reload_lock(self._root, self._settings), pause_all():
            if not is_committed(self._volume, self._root, files):
                return False
        users = open_files(self._root) or "a file on it is open"
        text = f"the volume was committed, and cannot be reloaded: {users}. {_UNSEEN}"
        if text not in _warned:
            _warned.add(text)
            _log.warning("%s", text)
        if text not in self.warnings:
            self.warnings.append(text)
        return True

    def warn(self, text: str) -> None:
        """Log a warning and keep it for the report, both without control characters."""
        text = printable(text)
        _log.warning("%s", text)
        self.warnings.append(text)

    def warn_if_ephemeral(self) -> None:
        """Warn once if the root is on a Volume that nobody commits, or if it is lost when the container stops."""
        if self._warned_ephemeral:
            return
        self._warned_ephemeral = True
        on_volume = bool(mounted_volume(self._root))
        if on_volume and self._volume is None:
            self.warn(
                f"root {self._root} is on a Modal Volume, and no volume= was given: downloads are not committed. "
                "Add volume=, the modal.Volume that is mounted there"
            )
        elif in_modal_container() and not on_volume:
            self.warn(
                f"root {self._root} is not on a Modal Volume: downloads are lost when the container stops. "
                "Mount a Volume (volumes={...}) and use its mount path as root"
            )


def _remedy(error: Exception) -> str:
    """Return what to do about a deleted Volume; empty for any other failure."""
    # Modal's client has a RuntimeError for it too, raised while it handles its NotFoundError (modal/volume.py, 1.6.4).
    if not any(type(each).__name__ == "NotFoundError" for each in (error, error.__context__)):
        return ""
    return ". If the Volume was deleted, deploy the app again: a new Volume has another id"
