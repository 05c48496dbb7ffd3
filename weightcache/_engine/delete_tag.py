"""`delete_tag`: a name stands for nothing any more. The versions that had it stay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from weightcache._coordination.lock import reload_lock, root_lock
from weightcache._coordination.volume import VolumeSession
from weightcache._runtime.owned_descriptors import close_on_interrupt
from weightcache._store.file_operations import remove_file
from weightcache._store.layout import Layout
from weightcache._store.root_checks import check_root, refuse_read_only
from weightcache._store.tags import publication_files
from weightcache.errors import VolumeError
from weightcache.manifest import Tag

from .tags import WAIT, no_publication

if TYPE_CHECKING:
    import os

    from weightcache._coordination.volume import Volume

__all__ = ["delete_tag"]


@close_on_interrupt
def delete_tag(tag: Tag, *, root: str | os.PathLike[str], volume: Volume | None = None) -> list[Path]:
    """Delete a tag: every publication of it that this container sees after a reload, and nothing else.

    No version is deleted; `prune` no longer keeps them for this tag. What another container publishes under the tag
    meanwhile is a file of its own, and stays: the tag then stands for it, and a warning says so.

    Args:
        tag: The tag. A torn publication does not matter: it is deleted too.
        root: As in `ensure`.
        volume: As in `ensure`: reloaded before, committed after.

    Returns:
        The files of the publications that were deleted, the last one first.

    Raises:
        NotCachedError: The tag has no publication.
        VolumeError: The volume could not be reloaded, and nothing was deleted; or no commit took it.
        StorageError: Root cannot be used, or a file cannot be deleted.
        LockTimeoutError: Another process of this container fills the root and makes no progress.
        TypeError: An argument is of the wrong kind.
    """
    if not isinstance(tag, Tag):
        raise TypeError(f"tag must be a Tag, not {type(tag).__name__}")
    layout = Layout(root)
    check_root(layout)
    refuse_read_only(layout, "delete a tag in")
    calls = VolumeSession(layout.root, volume)
    with root_lock(layout.root, wait=WAIT, say=lambda _: None, check=lambda: None):
        calls.sync()
        if calls.warnings:  # publications that are not seen here would stay, and the tag with them
            raise _volume_error(f"the {tag} was not deleted", calls)
        with reload_lock(layout.root):
            files = publication_files(layout, tag)
        if not files:
            raise no_publication(layout, tag, ())
        with calls.writing():
            # The directory stays: to delete it in this view could take along what another container puts into it.
            for path in files:
                remove_file(path)
        if not calls.commit():
            raise _volume_error(f"the {tag} is deleted, and perhaps in this container only", calls)
        calls.reload()
        with reload_lock(layout.root):
            left = len(publication_files(layout, tag))
    if left:
        calls.warn(f"the {tag} still exists: another container published under it at the same time")
    return [Path(path) for path in files]


def _volume_error(what: str, calls: VolumeSession) -> VolumeError:
    return VolumeError(
        f"{what}: {calls.warnings[-1]}",
        hint="close the files that are open on the volume, and call it again",
        operation=calls.warnings[-1].partition(" ")[0],
    )
