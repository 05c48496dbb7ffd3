"""A Volume as this library sees it: anything with ``commit()`` and ``reload()``.

Two facts rule the calls. A reload discards what no commit has taken, so a container that has written commits
instead. And a commit that raises may have published all the same (Modal's client reloads after committing, and
that may fail), so its failure is retried and reported, never taken as "not published".
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from weightcache._runtime.identity import in_modal_container, note_path
from weightcache.errors import StorageError
from weightcache.manifest.validate import MODAL_VOLUMES

from .lock import reload_lock
from .readers import pause_all

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("weightcache")

BACKOFF = (0.5, 2.0)  # seconds before the second and the third try


class Volume(Protocol):
    """What `ensure` needs of a Volume; ``modal.Volume`` has it."""

    def commit(self) -> object:
        """Make what this container wrote durable and visible to others."""
        ...

    def reload(self) -> object:
        """Show what other containers committed."""
        ...


class VolumeSession:
    """Commits and reloads one root for one call, and keeps what went wrong.

    Attributes:
        warnings: What went wrong, in words.
        committed: Whether the last commit succeeded; ``None`` before the first, or without a volume.
    """

    def __init__(self, root: str, volume: Volume | None) -> None:
        if volume is not None and not all(callable(getattr(volume, name, None)) for name in ("commit", "reload")):
            raise TypeError(f"volume must have commit() and reload(), and {type(volume).__name__} does not")
        self._root, self._volume = root, volume
        self.warnings: list[str] = []
        self.committed: bool | None = None
        self._warned_ephemeral = False

    @property
    def has_volume(self) -> bool:
        return self._volume is not None

    def about_to_write(self) -> None:
        """Note, for every process of this container, that the root will hold what no commit has taken."""
        with suppress(OSError, StorageError), open(note_path(self._root, "unpushed"), "w", encoding="utf-8") as note:
            note.write(os.path.realpath(self._root))  # by which it is seen later that this root is gone

    def is_dirty(self) -> bool:
        """Whether this container wrote what no commit has taken."""
        if self._volume is None:
            return False
        try:
            return os.path.exists(note_path(self._root, "unpushed"))
        except StorageError:
            return True

    def sync(self) -> None:
        """Show what other containers committed, without losing what this one wrote. Never raises."""
        if not self.is_dirty() or self.commit():  # else it would discard a partial that nobody else has
            self.reload()

    def reload(self) -> None:
        """Show what other containers committed. Never raises."""
        if self._volume is not None:
            self._call("reload", self._volume.reload)

    def commit(self) -> bool:
        """Commit, with retries; ``True`` if it succeeded or there is no volume. Never raises."""
        if self._volume is None:
            return True
        self.committed = self._call("commit", self._volume.commit)
        if self.committed:
            with suppress(OSError, StorageError):
                os.unlink(note_path(self._root, "unpushed"))
        return self.committed

    def _call(self, operation: str, function: Callable[[], object]) -> bool:
        for delay in (*BACKOFF, None):
            try:
                with reload_lock(self._root), pause_all():
                    function()
            except Exception as error:  # noqa: BLE001 (a volume raises whatever it likes; the bytes are safe)
                if delay is None:
                    self.warn(f"{operation} of the volume failed: {type(error).__name__}: {error}{_remedy(error)}")
                else:
                    _log.info("%s of the volume failed (%s); trying again in %g s", operation, error, delay)
                    time.sleep(delay)
            else:
                return True
        return False

    def warn(self, text: str) -> None:
        """Log a warning and keep it for the report."""
        _log.warning("%s", text)
        self.warnings.append(text)

    def warn_if_ephemeral(self) -> None:
        """Warn, once, of a root that looks like a Volume but is not committed, or of one that vanishes."""
        if self._warned_ephemeral:
            return
        self._warned_ephemeral = True
        on_volume = os.path.realpath(self._root).startswith(MODAL_VOLUMES)
        if on_volume and self._volume is None:
            self.warn(
                f"root {self._root} lies on a Modal Volume, and no volume= was given: what is downloaded is not "
                "committed. Add volume=, the modal.Volume that is mounted there"
            )
        elif in_modal_container() and not on_volume:
            self.warn(
                f"root {self._root} lies on no Modal Volume: what is downloaded vanishes with this container. "
                "Mount one (volumes={...}) and let root be its mount path"
            )


def _remedy(error: Exception) -> str:
    """Return what to do about a Volume that is gone; nothing for any other failure."""
    # Modal's client has a RuntimeError for it too, raised while it handles its NotFoundError (modal/volume.py, 1.6.4).
    if not any(type(each).__name__ == "NotFoundError" for each in (error, error.__context__)):
        return ""
    return ". If it was deleted, deploy the app again: a Volume that is made anew has another id"
