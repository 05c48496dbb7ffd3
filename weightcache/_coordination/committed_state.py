"""Find out whether a commit worked that raised an error: ask Modal for what the Volume has committed.

`modal.Volume.commit` commits and then reloads. While any file on the Volume is open in this container, the reload
fails, and the error hides that the commit worked. Listing a Volume needs no reload: it shows the committed state.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from weightcache.manifest.validate import MODAL_VOLUMES

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_ENTRIES = 50_000  # of a Volume that are searched for a marker; the guide advises at most so many files
MARKER = b"weightcache: a commit is being checked\n"


class Wanted(NamedTuple):
    """What the committed state must have at one path.

    Attributes:
        size: Bytes.
        sha256: If given, the file is read and hashed: a listing shows sizes only, and the bytes that the file replaced
            had the same size.
    """

    size: int
    sha256: str = ""


def is_committed(volume: Any, root: str, files: Mapping[str, Wanted]) -> bool:
    """Whether all ``files`` are in the committed state of the Volume; ``False`` where that is unknown. Never raises.

    It commits once more with a marker file of a random name. Where the committed state shows the marker, that commit
    worked, and it began after the files were in place. The marker also shows at which path of the Volume the root is:
    a mount with ``sub_path`` hides it.

    Args:
        volume: The handle. One that lists no files is no `modal.Volume`, and proves nothing.
        root: The root, mounted from that Volume.
        files: What must be there, by path in the root.
    """
    real = os.path.realpath(root)
    if not callable(getattr(volume, "iterdir", None)) or not files or not real.startswith(MODAL_VOLUMES):
        return False
    _, _, inside = real[len(MODAL_VOLUMES) :].partition("/")
    marker = f".weightcache/commit-{secrets.token_hex(8)}"
    try:
        with open(f"{root}/{marker}", "xb") as stream:
            stream.write(MARKER)
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(Exception):  # its reload fails again
            volume.commit()
        top = _top_of(volume, marker, inside)
        return top is not None and _shows(volume, top, files)
    except Exception:  # noqa: BLE001 (Modal raises many kinds; without an answer nothing is proven)
        return False
    finally:
        with suppress(OSError):
            os.unlink(f"{root}/{marker}")


def _top_of(volume: Any, marker: str, inside: str) -> str | None:
    """Return the directory of the Volume that has ``marker``: usually ``inside``; ``None`` if it is not committed."""
    with suppress(Exception):  # there is no such directory
        if _shows(volume, inside, {marker: Wanted(len(MARKER))}):
            return inside
    for entry in islice(volume.iterdir("/", recursive=True), MAX_ENTRIES):  # with `sub_path`
        top, found, _ = f"/{entry.path.strip('/')}".partition(f"/{marker}")
        if found:
            return top.lstrip("/")
    return None


def _shows(volume: Any, top: str, files: Mapping[str, Wanted]) -> bool:
    """Whether the committed state has ``files`` below ``top``."""
    seen: dict[str, int] = {}
    for folder in sorted({os.path.dirname(f"{top}/{path}".lstrip("/")) for path in files}):
        for entry in volume.iterdir(f"/{folder}", recursive=False):
            if entry.type.name == "FILE":
                seen[entry.path.strip("/")] = entry.size
    below = {f"{top}/{path}".lstrip("/"): wanted for path, wanted in files.items()}
    return all(seen.get(path) == wanted.size for path, wanted in below.items()) and all(
        _sha256(volume, path) == wanted.sha256 for path, wanted in below.items() if wanted.sha256
    )


def _sha256(volume: Any, path: str) -> str:
    digest = hashlib.sha256()
    for part in volume.read_file(path):
        digest.update(part)
    return digest.hexdigest()
