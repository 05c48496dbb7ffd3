"""Prefetch: reading weights off the Volume in the background, while Python imports what will load them.

One stream of a network volume is slow, and many at once are fast; every loader of ``.pt`` files uses one. Here a few
threads read aligned chunks of all files, in the order in which they will be wanted. Only the standard library is
imported, since this runs before the heavy imports that it hides behind; and a failure of the network, the
disk or Modal is not raised, since a failed prefetch makes a start slow and not wrong.
"""

from __future__ import annotations

import os
import stat

from weightcache._spans import in_phase
from weightcache._store.inspect import inspect
from weightcache._store.layout import Layout
from weightcache.errors import WeightCacheError
from weightcache.manifest import Manifest, Tag

from .prefetched_file import PrefetchedFile, PrefetchStats, reason
from .prefetcher import Prefetch

TYPE_CHECKING = False  # a type checker takes it for true; the top of a module need not import typing's ABCs
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from weightcache.manifest import WeightSource

__all__ = ["Prefetch", "PrefetchStats", "prefetch", "prefetch_files"]


@in_phase("inspect")
def prefetch(
    manifest: WeightSource,
    *,
    root: str | os.PathLike[str],
    only: Collection[str] | None = None,
    into: str = "cache",
    threads: int | None = None,
) -> Prefetch:
    """Begin to read what the root holds of a manifest, in the background and in the manifest's order.

    Called at the top of a module, before the heavy imports. It reads only files that are there: on the machine
    that deploys the module, where the root does not exist, it reads nothing. A manifest that cannot be read, or a file
    that is gone, is not an error: ``.stats.skipped`` names it.

    Args:
        manifest: As in `ensure`.
        root: As in `ensure`.
        only: Names of the checkpoints wanted; ``None`` for all.
        into: ``"cache"`` fills the page cache, which serves every loader that takes a path. ``"memory"`` reads into
            memory of this process, and `Prefetch.path` returns its paths. It takes the size of the files; a file that
            does not fit is not read.
        threads: How many reads at once. ``None`` adapts the number to the speed of the reads: one where the files are
            cached, up to 16 where one read at a time is slow.

    Raises:
        ValueError: ``into``, ``threads`` or ``root`` is invalid.
        TypeError: ``root`` is not a path, ``only`` is a string, or ``manifest`` has a wrong type.
    """
    paths: list[str] = []
    skipped: list[str] = []
    try:
        layout = Layout(root)
        if isinstance(manifest, Tag):
            from weightcache._store.tags import newest

            if (found := newest(layout, tag := manifest)) is None:
                skipped.append(f"the {tag} has no publication in {layout.root}")
            manifest = Manifest([found.checkpoint] if found else [])
        for checkpoint in Manifest.load(manifest).select(only):
            seen = inspect(layout, checkpoint)
            if seen.state in ("ready", "unverified"):
                paths += [layout.file(checkpoint, file) for file in checkpoint.files]
            else:
                skipped.append(f"{checkpoint.name}: {seen.detail}")
    except WeightCacheError as error:
        skipped.append(str(error.args[0]))
    return _begin(paths, into, threads, skipped)


def prefetch_files(*paths: str | os.PathLike[str], into: str = "cache", threads: int | None = None) -> Prefetch:
    """Begin to read files, in the background and in this order. See `prefetch` for the arguments.

    Raises:
        ValueError: ``into`` or ``threads`` is invalid.
        TypeError: A path has a wrong type.
    """
    return _begin([os.fspath(path) for path in paths], into, threads, [])


def _begin(paths: Iterable[str], into: str, threads: int | None, skipped: list[str]) -> Prefetch:
    if into not in ("cache", "memory"):
        raise ValueError(f"into must be 'cache' or 'memory', not {into!r}")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ValueError(f"threads must be None or a number, 1 or more, not {threads!r}")
    files: dict[str, PrefetchedFile] = {}
    for path in dict.fromkeys(paths):
        try:
            # Absolute: the working directory may be another one when it is opened. Real: one file, read once.
            absolute = os.path.abspath(path)
            real = os.path.realpath(absolute) if into == "memory" else absolute
            found = os.stat(absolute)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            skipped.append(f"{path}: {reason(error)}")
            continue
        if stat.S_ISREG(found.st_mode):
            files.setdefault(real, PrefetchedFile(absolute, found.st_size, found.st_mtime_ns))
        else:
            skipped.append(f"{path}: is no regular file")
    return Prefetch(files, into_memory=into == "memory", threads=threads, skipped=skipped)
