"""Remove lock files and other notes about roots from the container's own disk when no process needs them any more."""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from contextlib import suppress

from weightcache._coordination.lock import try_lock
from weightcache._runtime.writer_identity import local_directory, note_path
from weightcache._store.inspect import list_names
from weightcache.errors import StorageError

OLD = 3600.0  # seconds after which a temporary file of a container id is a leftover: its writer was killed
_NOTE = re.compile(r"(?P<key>[0-9a-f]{16})\.(?P<rest>(?P<kind>lock|gate|holder|unpushed)(\.(new|[0-9a-f]{8}))?)")


def remove_old_notes(root: str) -> None:
    """Remove notes that killed processes left, and notes of roots that no longer exist; never those of ``root``.

    Each removal takes the lock of the root that the note is about, so that the note of a running process stays.
    """
    try:
        folder, own = local_directory(root), os.path.basename(note_path(root, "")).rstrip(".")
        names = list_names(folder)
    except StorageError:
        return
    notes: dict[str, list[re.Match[str]]] = defaultdict(list)
    for name in names:
        if name.startswith("container."):
            with suppress(OSError):
                if time.time() - os.stat(f"{folder}/{name}").st_mtime > OLD:
                    os.unlink(f"{folder}/{name}")
        elif (note := _NOTE.fullmatch(name)) and note["key"] != own:
            notes[note["key"]].append(note)
    for key, found in notes.items():
        path = f"{folder}/{key}"
        if any(note["kind"] != "unpushed" for note in found) or _is_of_no_root(f"{path}.unpushed"):
            _remove(path, found)


def _remove(path: str, notes: list[re.Match[str]]) -> None:
    with try_lock(f"{path}.lock") as free:
        for note in notes if free else ():
            if note["kind"] == "gate":
                with try_lock(f"{path}.gate"):
                    continue
            if note["kind"] == "holder" or (note["kind"] == "unpushed" and _is_of_no_root(f"{path}.unpushed")):
                with suppress(OSError):
                    os.unlink(f"{path}.{note['rest']}")


def _is_of_no_root(path: str) -> bool:
    """Whether a note names a root that no longer exists."""
    try:
        with open(path, "rb") as stream:
            root = os.fsdecode(stream.read(1 << 16))  # a path need not be UTF-8
    except OSError:
        return False
    return bool(root) and not os.path.lexists(root)
