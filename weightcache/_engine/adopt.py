"""`adopt`: publish weights that other programs downloaded, without a second download.

By default nothing of the source changes: a published file is a hard link to it where both are on one file system that
has hard links, otherwise a copy. To move a file is to rename it, and to leave a symbolic link at its old path. A link
in the source may name any file of the machine, so a move takes files of the adopted directory and of its repository in
a Hub cache alone.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from weightcache._store import root_checks as store_root
from weightcache._store.file_operations import publish_file
from weightcache._store.partial_file import VanishedError
from weightcache.errors import ManifestError, StorageError
from weightcache.manifest import Checkpoint

from .execute_plan import changed_while_read
from .existing_weights import as_storage_errors, is_repository
from .publish_local_weights import copy_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from weightcache._coordination.volume import Volume, VolumeSession
    from weightcache._store.layout import Layout
    from weightcache.manifest import File

    from .existing_weights import Found

_GIT_FILE = 100 << 20  # bytes; larger files are in Git LFS, and their blobs are named by sha256
_ASIDE = ".weightcache"  # the ending of a link that takes the place of a moved file


class Adopted(NamedTuple):
    """What became of one `Found`: its checkpoint, and how many files were linked, copied or moved."""

    checkpoint: Checkpoint
    linked: int
    copied: int
    moved: int


def adopt(found: Found, layout: Layout, volume: Volume | None, *, move: bool) -> Adopted:
    """Publish what was found.

    Args:
        found: From `find_weights`.
        layout: The root.
        volume: As in `weightcache.publish`.
        move: Rename the files into the root, and leave links to them.

    Raises:
        ManifestError: A name breaks the rules of manifests, a file is a Git LFS pointer, a file of a Hub cache is
            damaged, or ``move`` is given and a file is a link to another place. Nothing was published.
        StorageError: A file cannot be read, linked or moved; with ``move``, the root is on another file system.
        VolumeError: No commit succeeded.
    """
    with as_storage_errors(found.path):
        return _adopted(found, layout, volume, move=move)


def _adopted(found: Found, layout: Layout, volume: Volume | None, *, move: bool) -> Adopted:
    checked: list[Checkpoint] = []

    def check(checkpoint: Checkpoint) -> None:
        checked.append(checkpoint)
        if problems := list(_damaged(found, checkpoint, layout)):
            error = ManifestError(found.path, problems)
            error.hint = "nothing was published; download the repository again, or name the good files"
            raise error

    def prepare(checkpoint: Checkpoint, sources: Mapping[str, str], calls: VolumeSession) -> None:
        check(checkpoint)
        if move:
            _move(layout, checkpoint, _movable(found, sources, layout), calls)

    # A file may be given by a name that is a link: what is published is called by that name.
    made, sources = copy_in(
        found.path, found.name, layout, volume, may_link=not move, skip=found.skip, hashes_known=prepare
    )
    if not checked:  # it was published already, and its URL is still to be believed
        check(made)
    checkpoint = Checkpoint(made.name, found.urls, made.files, made.is_directory)
    published = {layout.file(made, file): sources[file.sha256] for file in made.files}
    linked = sum(os.stat(path).st_nlink > 1 for path in published)
    moved = sum(os.stat(path).st_nlink == 1 and os.path.samefile(path, source) for path, source in published.items())
    return Adopted(checkpoint, linked, len(made.files) - linked - moved, moved)


def finish_moves(path: str) -> None:
    """Put the links in place that a move left aside when its process was killed.

    Args:
        path: What is adopted.

    Raises:
        StorageError: A link cannot be put in place.
    """
    top = path if os.path.isdir(path) else os.path.dirname(path) or "."
    homes = _homes(path)
    for folder, folders, names in os.walk(top):
        for name in names:
            link = f"{folder}/{name}"
            if name.startswith(".") and name.endswith(_ASIDE):
                source = f"{folder}/{name[1:].removesuffix(_ASIDE)}"
            elif os.path.islink(link) and not os.path.exists(link):
                source = os.path.realpath(link)  # in another directory: a snapshot links to the blobs of its repository
                link = _aside(source)
                if not _is_in(source, homes):
                    continue
            else:
                continue
            try:
                if os.path.islink(link):
                    _settle(link, source)
            except OSError as error:
                raise StorageError.of(error, "rename", link) from None
        if top != path:
            folders.clear()  # of a file, only its own directory


def _aside(source: str) -> str:
    """Return the path of the link that takes the place of a moved file."""
    folder, name = os.path.split(source)
    return f"{folder}/.{name}{_ASIDE}"


def _settle(link: str, source: str) -> None:
    """Rename a link to the old path of the file that it leads to; remove it if that file was not moved."""
    if os.path.lexists(source):
        with suppress(FileNotFoundError):
            os.unlink(link)
    else:
        os.replace(link, source)


def _damaged(found: Found, checkpoint: Checkpoint, layout: Layout) -> Iterator[str]:
    """Yield the files of the Hub that are not what it has: it calls their content by its sha256, or by Git's id.

    A link that leads elsewhere than to the repository, or to where a move put its files, may name any file of the
    machine.
    """
    homes = [f"{os.path.realpath(each)}/" for each in (f"{found.path}/../..", layout.root)]
    for file in checkpoint.files if found.urls else ():
        path = os.path.realpath(f"{found.path}/{file.path}")
        name = os.path.basename(path) if found.recorded is None else found.recorded.get(file.path, "")
        if found.recorded is None and not path.startswith(tuple(homes)):
            yield f"{file.path!r:.120} is a link to {path}, outside of its repository"
            continue
        if found.recorded is not None and not name:
            yield f"{file.path!r:.120} is not recorded as a file of {found.urls[0]}: move it away, or leave out --repo"
            continue
        if re.fullmatch("[0-9a-f]{64}", name):
            actual = file.sha256
        elif re.fullmatch("[0-9a-f]{40}", name) and (file.size or 0) <= _GIT_FILE:
            with open(path, "rb") as stream:
                data = stream.read()
            actual = hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
        else:
            continue  # a copy, where the file system has no links
        if actual != name:
            yield f"{file.path!r:.120} is damaged: the Hub calls its content {name}, and its digest is {actual}"


def _homes(path: str) -> list[str]:
    """Return the directories that a move takes files from: the adopted one, and its repository in a Hub cache."""
    top = os.path.abspath(path)
    folder = top if os.path.isdir(top) else os.path.dirname(top)
    homes = [os.path.realpath(folder)]
    while (above := os.path.dirname(folder)) != folder:
        if os.path.basename(above) == "snapshots" and is_repository(repository := os.path.dirname(above)):
            homes.append(os.path.realpath(repository))
        folder = above
    return homes


def _is_in(real: str, homes: Iterable[str]) -> bool:
    """Whether a real path is below one of the directories."""
    return any(real.startswith(f"{home.rstrip('/')}/") for home in homes)


def _movable(found: Found, sources: Mapping[str, str], layout: Layout) -> dict[str, str]:
    """Return the files that a move renames.

    Of the others, those in the root were moved before. Another checkpoint may have them, so `ensure` copies them.

    Raises:
        ManifestError: A link leads elsewhere: to a file of another program, perhaps, or to a private key.
    """
    homes, root = _homes(found.path), os.path.realpath(layout.root)
    movable = {sha256: source for sha256, source in sources.items() if _is_in(source, homes)}
    away = [each for sha256, each in sources.items() if sha256 not in movable and not _is_in(each, [root])]
    if away:
        problems = [f"a link leads to {each!r:.200}, outside of it, and a move would take that file" for each in away]
        error = ManifestError(found.path, problems)
        error.hint = "nothing was published; leave out --move, or give the path of the file itself"
        raise error
    return movable


def _move(layout: Layout, checkpoint: Checkpoint, sources: Mapping[str, str], calls: VolumeSession) -> None:
    """Rename each file to its published path, and leave a relative link at its old path.

    A crash at any point loses nothing: a file is at one of both paths, and a second call goes on. The link is made
    first, so that `finish_moves` can put it in place.
    """
    store_root.make_root(layout)
    device = os.stat(layout.root).st_dev
    for source in sources.values():
        if os.stat(source).st_dev != device:
            raise StorageError(
                f"{source} and {layout.root} are on different file systems, so the file cannot be moved",
                hint="leave out --move: files are then copied; nothing was changed",
                path=source,
            )
    files = {file.sha256: file for file in checkpoint.files}
    with calls.writing():
        for sha256, source in sources.items():
            if not os.path.lexists(layout.file(checkpoint, files[sha256])):  # else `ensure` heals it with a copy
                _rename(layout, checkpoint, files[sha256], source)


def _rename(layout: Layout, checkpoint: Checkpoint, file: File, source: str) -> None:
    target = layout.file(checkpoint, file)
    folder, link = os.path.dirname(source), _aside(source)
    real = f"{os.path.realpath(os.path.dirname(target))}/{os.path.basename(target)}"
    try:
        with suppress(FileNotFoundError):
            os.unlink(link)
        os.symlink(os.path.relpath(real, folder), link)
    except OSError as error:
        raise StorageError.of(error, "create a link beside", source) from None
    try:
        publish_file(layout, checkpoint, file, source)
        os.replace(link, source)
    except VanishedError:
        raise changed_while_read(source) from None
    except OSError as error:
        raise StorageError.of(error, "create a link at", source) from None
    finally:
        with suppress(OSError):
            _settle(link, source)
