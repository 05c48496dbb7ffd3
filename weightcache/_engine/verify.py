"""`verify`: hash every published byte, and report what is wrong. Writes nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from weightcache._runtime.owned_descriptors import close_on_interrupt
from weightcache._store.file_operations import verified_sizes
from weightcache._store.root_checks import find_symlink
from weightcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weightcache._store.layout import Layout
    from weightcache.manifest import Checkpoint
    from weightcache.reports import Status


@close_on_interrupt
def verify_places(layout: Layout, checkpoints: Sequence[Checkpoint], seen: list[Status]) -> list[Status]:
    """Hash every file that is there; see `weightcache.verify`."""
    present = [
        (checkpoint, file)
        for checkpoint in checkpoints
        for file in checkpoint.files
        if _is_there(layout.file(checkpoint, file))
    ]
    right = verified_sizes(layout, present, lambda: None)
    wrong = {(checkpoint.name, file.path) for checkpoint, file in present} - right.keys()
    return [_judged(layout, *pair, wrong) for pair in zip(checkpoints, seen, strict=True)]


def _is_there(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # else it would count as missing, and a receipt would speak for it
        raise StorageError.of(error, "read", path) from None
    return True


def _judged(layout: Layout, checkpoint: Checkpoint, seen: Status, wrong: set[tuple[str, str]]) -> Status:
    seen = replace(seen, extra=_extra_files(layout, checkpoint))
    if bad := [file.path for file in checkpoint.files if (checkpoint.name, file.path) in wrong]:
        return replace(seen, state="damaged", detail=f"wrong bytes in {', '.join(bad[:5])}{' …' * (len(bad) > 5)}")
    if seen.state == "unverified":
        return replace(seen, detail="the bytes are right, without a receipt")
    return seen


def _extra_files(layout: Layout, checkpoint: Checkpoint) -> tuple[str, ...]:
    place = layout.version_dir(checkpoint)
    if find_symlink(layout, place):
        return ()  # what a link leads to is outside the root
    known = {file.path for file in checkpoint.files}
    found = (
        os.path.relpath(os.path.join(folder, name), place) for folder, _, names in os.walk(place) for name in names
    )
    return tuple(sorted(path for path in found if path not in known))
