"""`publish`: copy weights that were made here into the root, with the receipt and commits of a download.

Two passes. The first hashes the source, because the digest decides the version directory: if that is ready, nothing is
written. The second is an `ensure` that copies instead of fetching and compares the digest of what it copied. A single
pass would read only once, but would write everything to a Volume that may hold it already.
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from weightcache._coordination.lock import root_lock
from weightcache._coordination.volume import VolumeSession
from weightcache._runtime.owned_descriptors import close_on_interrupt
from weightcache._store import file_operations as store_files
from weightcache._store import root_checks as store_root
from weightcache._store.content_sniffing import HEAD, POINTER, foreign_content
from weightcache._store.shard_index import MAX_INDEX_BYTES, is_index, missing_shards
from weightcache._store.tags import declared
from weightcache._transfer.progress import make_progress
from weightcache._views.weights import weights_if_ready
from weightcache.errors import ManifestError, StorageError, VolumeError
from weightcache.manifest.validate import user_path

from .commit_evidence import CommitEvidence
from .ensure_options import EnsureOptions
from .execute_plan import changed_while_read
from .miss_protocol import MAX_ATTEMPTS
from .run_miss import ensure_on_miss
from .tags import check_keep, move_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from weightcache._coordination.lock import Holder
    from weightcache._coordination.volume import Volume
    from weightcache._store.layout import Layout
    from weightcache.manifest import Checkpoint, Tag

_log = logging.getLogger("weightcache")

WAIT = 300.0  # seconds without progress of another process in this container, as in `ensure`
OURS = ".weightcache"  # is skipped: the source directory is itself a root
UNKNOWN = "0" * 64  # a placeholder digest while only the names are checked


def publish_path(
    path: str | os.PathLike[str],
    name: str,
    layout: Layout,
    volume: Volume | None,
    tag: Tag | None = None,
    keep: int | None = None,
) -> Checkpoint:
    """See `weightcache.publish`."""
    check_keep(keep)
    if tag is None and keep is not None:
        raise ValueError("keep= is how many versions a tag keeps: give tag= too")
    checkpoint, local_sources = copy_in(path, name, layout, volume)
    for attempt in range(MAX_ATTEMPTS if tag else 0):
        if tag is None or move_tag(layout, volume, tag, checkpoint, keep):
            break
        if attempt == MAX_ATTEMPTS - 1:
            raise VolumeError(
                f"{checkpoint.name} was deleted from {layout.root} {MAX_ATTEMPTS} times after it was published",
                hint="end what deletes there, such as a prune in a loop, and publish again",
                operation="commit",
            )
        checkpoint, local_sources = copy_in(path, name, layout, volume)  # a prune in another container deleted it
    for text in shard_warnings(checkpoint, local_sources):
        _log.warning("%s: %s", name, text)
    return checkpoint


@close_on_interrupt
def copy_in(
    path: str | os.PathLike[str],
    name: str,
    layout: Layout,
    volume: Volume | None,
    *,
    may_link: bool = False,
    pointers: bool = False,
    skip: str = "",
    hashes_known: Callable[[Checkpoint, Mapping[str, str], VolumeSession], None] | None = None,
) -> tuple[Checkpoint, dict[str, str]]:
    """Publish; return what `hashed` returns, whose ``pointers`` and ``skip`` it takes.

    Args:
        path: See `weightcache.publish`, also for the next three.
        name: Name of the checkpoint.
        layout: The root.
        volume: The Volume, or ``None``.
        may_link: See `EnsureOptions`.
        pointers: See `hashed`.
        skip: See `hashed`.
        hashes_known: Called under the lock before anything is published, unless all is there; it may raise.
    """
    top = _absolute(path, name, layout)
    store_root.check_root(layout)  # first, because hashing the source may take an hour
    calls = VolumeSession(layout.root, volume)
    # Under the lock: the source may be on the Volume itself, and an open file makes another process's commit fail.
    with root_lock(layout.root, wait=WAIT, say=make_progress(None, []).say, check=lambda: None) as (holder, _):
        checkpoint, local_sources = hashed(top, name, holder, pointers=pointers, skip=skip)
        ready = _is_ready(layout, checkpoint, calls)
        if hashes_known is not None and not ready:
            store_root.refuse_read_only(layout, "publish to")
            hashes_known(checkpoint, local_sources, calls)
    if not ready:
        store_root.refuse_read_only(layout, "publish to")
        options = EnsureOptions(
            volume=volume, lease=None, offline=True, wait=WAIT, local_sources=local_sources, may_link=may_link
        )
        report = ensure_on_miss(layout, [checkpoint], options).report
        if report.committed is False:
            raise _not_committed(layout, checkpoint, report.warnings[-1])
    return checkpoint, local_sources


def _is_ready(layout: Layout, checkpoint: Checkpoint, calls: VolumeSession) -> bool:
    """Whether the version is in the root, also for the other containers.

    This container may not have committed it, and a prune in another one may have deleted it since the last reload here.

    Raises:
        VolumeError: No commit took it.
    """
    if weights_if_ready(layout, [checkpoint]) is None:
        return False
    if store_root.is_read_only(layout):
        calls.reload()
    # The commit comes first: the source may be on the Volume too, and a reload discards what no commit has taken.
    elif not calls.commit_and_reload(CommitEvidence(layout).files([checkpoint])):
        raise _not_committed(layout, checkpoint, calls.warnings[-1])
    return weights_if_ready(layout, [checkpoint]) is not None


def _not_committed(layout: Layout, checkpoint: Checkpoint, why: str) -> VolumeError:
    return VolumeError(
        f"{checkpoint.name} is at {layout.published(checkpoint)}, but perhaps only in this container: {why}",
        hint="close the files that are open on the volume, and call publish again before the container stops; "
        "nothing is copied a second time",
        operation="commit",
    )


def _absolute(path: str | os.PathLike[str], name: str, layout: Layout) -> str:
    given: object = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(given, str):
        raise TypeError(f"path must be a path, not {type(path).__name__}")
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {type(name).__name__}")
    if not given or "\0" in given:
        raise ValueError(f"path must be the path of a file or a directory, got {given!r}")
    top = os.path.abspath(user_path(given))
    real, root, home = (os.path.realpath(each) for each in (top, layout.root, layout.home))
    if os.path.commonpath([real, root]) == real:
        raise ValueError(f"{top} contains the root {layout.root} itself; publish a directory beside or below the root")
    if os.path.commonpath([real, home]) == home:
        raise ValueError(f"{top} is in {layout.home}, where files are not verified yet")
    return top


class _Found(NamedTuple):
    """A file to publish, and the attributes that change when something writes to it."""

    path: str
    device: int
    inode: int
    size: int  # bytes
    modified: int  # nanoseconds


class _Survey(NamedTuple):
    """What is there to publish. One look finds both: a later one can fail, and a directory would pass for a file."""

    files: dict[str, _Found]  # by their paths in the checkpoint
    is_directory: bool


def hashed(
    top: str, name: str, holder: Holder | None = None, *, pointers: bool = False, skip: str = ""
) -> tuple[Checkpoint, dict[str, str]]:
    """Return the checkpoint at ``top``, and by digest where its files are.

    Args:
        top: A file, or a directory of files.
        name: Name of the checkpoint.
        holder: Shows other processes that this one makes progress.
        pointers: Whether a Git LFS pointer is published like any other file.
        skip: Path of a directory in it that is left out; empty for none.

    Raises:
        ManifestError: A name breaks the rules of manifests, or something is not a file, or is a Git LFS pointer.
        StorageError: It cannot be read, or changed while it was read.
    """
    found, is_directory = _survey(top, name, pointers=pointers, skip=skip)
    if holder is not None:
        holder.phase("hashing the files to publish", sum(file.size for file in found.values()))

    def sha256(file: _Found, check: Callable[[], None]) -> str:
        if (found := store_files.hash_file(file.path, check, follow=True)) is None:
            raise changed_while_read(file.path)
        return found.sha256

    def tick() -> None:
        if holder is not None:
            holder.advance(store_files.HASH_CHUNK)

    digests = store_files.parallel_map(sha256, list(found.values()), tick)
    then = _survey(top, name, pointers=True, skip=skip).files  # a difference means that the source changed
    if changed := [inner for inner in {**found, **then} if found.get(inner) != then.get(inner)]:
        raise changed_while_read(os.path.join(top, changed[0]) if is_directory else top)
    files = {inner: {"sha256": digest, "size": found[inner].size} for inner, digest in zip(found, digests, strict=True)}
    # Resolved, because a hard link to a symbolic link (of a Hub cache) would be one, too.
    local_sources = {digest: os.path.realpath(file.path) for file, digest in zip(found.values(), digests, strict=True)}
    return declared(name, files, is_directory=is_directory), local_sources


def shard_warnings(checkpoint: Checkpoint, local_sources: Mapping[str, str]) -> list[str]:
    """Return a warning for each index of shards that names a missing shard. ``local_sources``: digest → path."""
    warnings = []
    for file in checkpoint.files:
        if is_index(file.path) and (file.size or 0) <= MAX_INDEX_BYTES:
            with suppress(OSError), open(local_sources[file.sha256], "rb") as stream:
                warnings.append(
                    missing_shards(file.path, stream.read(MAX_INDEX_BYTES), {each.path for each in checkpoint.files})
                )
    return [text for text in warnings if text]


def _survey(top: str, name: str, *, pointers: bool, skip: str) -> _Survey:
    """Return every file to publish.

    Raises:
        ManifestError: With all problems, before anything is hashed.
        StorageError: The source does not exist, or cannot be read.
    """
    found: dict[str, _Found] = {}
    problems: list[str] = []
    try:
        is_directory = stat.S_ISDIR(os.stat(top).st_mode)
        for path in _entries(top, skip) if is_directory else [top]:
            inner = os.path.relpath(path, top) if is_directory else os.path.basename(top)
            leads_nowhere = path != top and os.path.islink(path) and not os.path.exists(path)
            seen = os.lstat(path) if leads_nowhere else os.stat(path)
            found[inner] = _Found(path, seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)
            problem = _problem(path, seen) or ("" if pointers else _pointer_problem(path, seen.st_size))
            if problem:
                problems.append(f"{inner!r:.120} {problem}")
    except OSError as error:
        raise StorageError.of(error, "read", error.filename or top) from None
    try:
        unknown = {inner: {"sha256": UNKNOWN, "size": file.size} for inner, file in found.items()}
        declared(name, unknown, is_directory=is_directory)
    except ManifestError as error:
        problems += error.problems
    if problems:
        refused = ManifestError(top, problems)
        refused.hint = "rename or remove what is named above, or choose another name; nothing was published"
        raise refused
    return _Survey(found, is_directory)


def _entries(top: str, skip: str) -> Iterator[str]:
    """Yield every path below ``top`` except directories, which are not kept, and except what is below ``skip``."""

    def fail(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(top, onerror=fail):
        kept = {each for each in folders if each != OURS and not os.path.islink(os.path.join(folder, each))}
        yield from (os.path.join(folder, each) for each in [*folders, *names] if each not in kept)
        folders[:] = [each for each in kept if os.path.join(folder, each) != skip]


def _pointer_problem(path: str, size: int) -> str:
    if not 0 < size <= HEAD:  # no pointer of Git LFS is longer
        return ""
    with open(path, "rb") as stream:
        is_pointer = foreign_content(stream.read(HEAD), name=path) == POINTER
    return "is a Git LFS pointer, and not the file itself: run `git lfs pull` in its clone" if is_pointer else ""


def _problem(path: str, seen: os.stat_result) -> str | None:
    if stat.S_ISLNK(seen.st_mode):
        return "is a symbolic link to nothing"
    if os.path.islink(path) and stat.S_ISDIR(seen.st_mode):
        return "is a link to a directory, which may lead back; put the directory itself there"
    if stat.S_ISDIR(seen.st_mode):
        return "is the data of a root; publish one of its version directories instead"
    return None if stat.S_ISREG(seen.st_mode) else "is not a regular file"
