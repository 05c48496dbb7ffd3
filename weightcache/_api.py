"""The public functions. Each inspects the root first, and imports the engine only if there is more to do."""

from __future__ import annotations

import sys

from weightcache._store.layout import Layout, needs_reload
from weightcache._views.weights import weights_if_ready
from weightcache.errors import lazy_imports
from weightcache.manifest import Manifest, Tag

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    import os
    from collections.abc import Collection
    from typing import Any, Literal, TypeAlias, overload

    from typing_extensions import Unpack

    from weightcache._coordination.kv import LeaseSource
    from weightcache._coordination.volume import Volume
    from weightcache._engine.ensure_options import EnsureArguments
    from weightcache._transfer.progress import ProgressCallback
    from weightcache._views.weights import Weights
    from weightcache.manifest import Checkpoint, WeightSource
    from weightcache.reports import Plan, Status

    Root: TypeAlias = str | os.PathLike[str]

__all__ = ["aensure", "ensure", "publish", "status", "verify"]


if TYPE_CHECKING:  # ``dry_run`` decides what is returned

    @overload
    def ensure(
        manifest: WeightSource, *, root: Root, dry_run: Literal[False] = False, **options: Unpack[EnsureArguments]
    ) -> Weights: ...
    @overload
    def ensure(
        manifest: WeightSource, *, root: Root, dry_run: Literal[True], **options: Unpack[EnsureArguments]
    ) -> Plan: ...
    @overload
    def ensure(
        manifest: WeightSource, *, root: Root, dry_run: bool, **options: Unpack[EnsureArguments]
    ) -> Weights | Plan: ...


def ensure(
    manifest: WeightSource,
    *,
    root: Root,
    volume: Volume | None = None,
    lease: LeaseSource = "auto",
    only: Collection[str] | None = None,
    offline: bool = False,
    rehash: bool = False,
    wait: float = 300.0,
    patience: float = 180.0,
    progress: bool | ProgressCallback | None = None,
    dry_run: bool = False,
    time_limit: float | None = None,
) -> Weights | Plan:
    """Return the verified path of every checkpoint, fetching what is missing.

    If everything is there (a hit), this reads one receipt a checkpoint and stats each file: no network, lock, hash or
    commit. Otherwise what is missing is downloaded, hashed while it is written, published by rename and committed.
    A returned path always held exactly the declared bytes when it was verified.

    Args:
        manifest: Path of a ``weights.toml``, a mapping of the same shape, a `Manifest`, or a `Tag`. With ``volume``, a
            tag, and a file on that Volume, are read after a reload: at most `Tag.poll` (10 for a file) seconds ago.
        root: Directory on the mounted Volume (or any disk). It is made if it does not exist.
        volume: The Volume mounted there: anything with ``commit()`` and ``reload()``. ``None``: a plain disk.
        lease: Decides which of several containers downloads. ``"auto"``: on a miss with a ``modal.Volume``, a
            ``modal.Dict`` named after its id, so that ten containers make one download. ``None``: each downloads for
            itself. Or anything with ``put(key, value, skip_if_exists=...)``, ``get``, ``pop``. It saves bandwidth only.
        only: Names of the checkpoints wanted; ``None`` for all.
        offline: Forbid every URL. Files in the root are still adopted, and the volume is still reloaded.
        rehash: Hash every published file, and heal what is wrong.
        wait: Seconds to wait for another download that makes no progress. After them, a download of another process in
            this container is an error; from one of another container, this call stops waiting and downloads too.
        patience: Seconds that a mirror which has delivered bytes of this download may stay silent before it is given
            up; another one is asked meanwhile. A mirror that never delivered is given up after five tries, within
            seconds. Keep it below the ``wait`` of others: they see no progress meanwhile.
        progress: ``None`` for bars on a terminal and plain lines elsewhere (to stderr), ``False`` for nothing, or
            a function called with name, bytes done and bytes in all (``None`` if a size is not declared).
        dry_run: Return a `Plan` of what this call would do, from names and sizes alone; change nothing.
        time_limit: Seconds until this container or call is stopped by others. `ensure` warns of a download that takes
            longer. ``None``: in a Modal Function, what is left of its ``startup_timeout`` or ``timeout``.

    Raises:
        ManifestError: The manifest has problems; all are listed.
        UnknownCheckpointError: ``only`` names a checkpoint that is not declared.
        NotCachedError: Something is missing, and ``offline`` or a read-only root forbids fetching it.
        IntegrityError: A mirror delivered another file than the declared one.
        DownloadError: No mirror delivered a file.
        LockTimeoutError: Another process of this container holds the lock of the root and makes no progress.
        StorageError: The disk is full, or root cannot be used.
        VolumeError: In a Modal container, ``root`` is not on ``volume``, or the manifest is a file on a Volume that is
            not reloaded; or the volume lost what was committed.
        TypeError, ValueError: An argument is of the wrong kind.
    """
    layout = Layout(root)
    _check_arguments(lease, progress, wait=wait, patience=patience, time_limit=time_limit or 0)
    if not (isinstance(manifest, Tag) or needs_reload(layout.root, manifest, has_volume=volume is not None)):
        with _span("inspect"):
            checkpoints = (manifest := Manifest.load(manifest)).select(only)
            if not (rehash or dry_run) and (weights := weights_if_ready(layout, checkpoints)) is not None:
                return weights

    with lazy_imports:
        from weightcache._engine.ensure import ensure_with
        from weightcache._engine.ensure_options import EnsureOptions
    options = EnsureOptions(
        volume=volume,
        lease=lease,
        offline=offline,
        rehash=rehash,
        wait=wait,
        patience=patience,
        progress=progress,
        dry_run=dry_run,
        time_limit=time_limit,
    )
    return ensure_with(manifest, root, only, options)


if TYPE_CHECKING:

    @overload
    async def aensure(
        manifest: WeightSource, *, root: Root, dry_run: Literal[False] = False, **options: Unpack[EnsureArguments]
    ) -> Weights: ...
    @overload
    async def aensure(
        manifest: WeightSource, *, root: Root, dry_run: Literal[True], **options: Unpack[EnsureArguments]
    ) -> Plan: ...
    @overload
    async def aensure(
        manifest: WeightSource, *, root: Root, dry_run: bool, **options: Unpack[EnsureArguments]
    ) -> Weights | Plan: ...


async def aensure(
    manifest: WeightSource,
    *,
    root: Root,
    volume: Volume | None = None,
    lease: LeaseSource = "auto",
    only: Collection[str] | None = None,
    offline: bool = False,
    rehash: bool = False,
    wait: float = 300.0,
    patience: float = 180.0,
    progress: bool | ProgressCallback | None = None,
    dry_run: bool = False,
    time_limit: float | None = None,
) -> Weights | Plan:
    """Run `ensure` in a thread, so that the event loop continues.

    If the task is cancelled, the work ends with its files closed, and each complete MiB is kept for the next call:
    within moments while bytes arrive, and after the stall timeout (30 s) at the latest while a mirror does not answer.
    See `ensure` for arguments and errors.
    """
    with lazy_imports:
        from weightcache._engine.ensure import ensure_with
        from weightcache._engine.ensure_options import EnsureOptions
        from weightcache._engine.run_in_thread import in_thread
    _check_arguments(lease, progress, wait=wait, patience=patience, time_limit=time_limit or 0)
    options = EnsureOptions(
        volume=volume,
        lease=lease,
        offline=offline,
        rehash=rehash,
        wait=wait,
        patience=patience,
        progress=progress,
        dry_run=dry_run,
        time_limit=time_limit,
    )
    return await in_thread(lambda: ensure_with(manifest, root, only, options), options.cancel)


class _NoSpan:
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


def _span(name: str) -> Any:
    # `timeline` imports the module; a hit without it must not.
    return spans.span(name) if (spans := sys.modules.get("weightcache._spans")) else _NoSpan()


def _check_arguments(lease: LeaseSource, progress: bool | ProgressCallback | None, **times: float) -> None:
    for name, seconds in times.items():
        if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not seconds >= 0:
            raise ValueError(f"{name} must be a number of seconds, 0 or more, not {seconds!r}")
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise TypeError(f"progress must be None, a bool or a function, not {type(progress).__name__}")
    if not (lease is None or lease == "auto" or all(callable(getattr(lease, n, None)) for n in ("put", "get", "pop"))):
        raise TypeError(f"lease must be 'auto', None or have put(), get() and pop(), and {lease!r} does not")


def status(manifest: WeightSource, *, root: Root, only: Collection[str] | None = None) -> list[Status]:
    """Report what the root holds, as cheaply as a hit. Writes nothing, fetches nothing, never waits for a download.

    Args:
        manifest: As in `ensure`.
        root: As in `ensure`; if it does not exist, everything is missing.
        only: Names of the checkpoints wanted; ``None`` for all.

    Returns:
        One `Status` a checkpoint, in manifest order.

    Raises:
        ManifestError: The manifest has problems.
        UnknownCheckpointError: ``only`` names a checkpoint that is not declared.
        StorageError: Root is no directory, or may not be read.
    """
    with lazy_imports:
        from weightcache._engine.status import statuses
    return statuses(layout := Layout(root), _load(manifest, layout).select(only))


def verify(manifest: WeightSource, *, root: Root, only: Collection[str] | None = None) -> list[Status]:
    """Hash every published byte, files in parallel. Never writes; `ensure(rehash=True)` heals.

    Args:
        manifest: As in `ensure`.
        root: As in `ensure`.
        only: Names of the checkpoints wanted; ``None`` for all.

    Returns:
        One `Status` a checkpoint, in manifest order: ``damaged`` if any byte is wrong, ``unverified`` if the bytes
        are right and there is no receipt; ``extra`` lists files that the manifest does not name.

    Raises:
        ManifestError: The manifest has problems.
        UnknownCheckpointError: ``only`` names a checkpoint that is not declared.
        StorageError: A file cannot be read, or root is no directory.
    """
    with lazy_imports:
        from weightcache._engine.verify import verify_places
    layout = Layout(root)
    declared = _load(manifest, layout)
    return verify_places(layout, declared.select(only), status(declared, root=root, only=only))


def _load(source: WeightSource, layout: Layout) -> Manifest:
    if not isinstance(source, Tag):
        return Manifest.load(source)
    with lazy_imports:
        from weightcache._engine.tags import load
    return load(source, layout, None)[0]


def publish(
    path: str | os.PathLike[str],
    *,
    name: str,
    root: Root,
    volume: Volume | None = None,
    tag: str | None = None,
    keep: int | None = None,
) -> Checkpoint:
    """Copy weights that were made here into the root, with the receipt and commits of a download.

    The files are copied, never moved or linked, and hashed twice: once for their digest, and again while they are
    copied. If they are published already, they are hashed once and not copied: the volume is committed and reloaded, to
    see whether they are still there. When this returns, everything is committed if a volume is given.

    Args:
        path: A file, or a directory of files. A directory may hold regular files, also hidden ones, and links to them;
            anything else in it, such as a link to a directory, is refused. Empty directories are not kept.
        name: Name of the checkpoint.
        root: As in `ensure`.
        volume: As in `ensure`.
        tag: Let this tag of the checkpoint stand for these weights as soon as they are committed. The volume is
            committed, then reloaded, so that this publication follows all others, and committed again.
        keep: How many versions `prune` keeps for ``tag``, this one included. ``None``: what the last publication of the
            tag says; of the first one, all.

    Returns:
        The checkpoint, with its digests and sizes and without URLs. ``str()`` of it is its entry in a ``weights.toml``;
        ``Manifest([checkpoint])`` is a manifest for `ensure`. It can be pickled.

    Raises:
        ManifestError: ``name`` or the name of a file breaks the rules of manifests, a directory is empty, or something
            in it cannot be published. All problems are listed, and nothing was published.
        StorageError: ``path`` is not there, cannot be read, or changed meanwhile; the disk is full, or root cannot be
            used. Nothing of a file is visible.
        VolumeError: It is published in this container, and no commit took it. Call it again; nothing is copied twice.
        LockTimeoutError: Another process of this container holds the lock of the root and makes no progress.
        TypeError, ValueError: An argument is of the wrong kind, or ``path`` holds the root or lies among its partials.
    """
    with lazy_imports:
        from weightcache._engine.publish_local_weights import publish_path
    return publish_path(path, name, Layout(root), volume, None if tag is None else Tag(name, tag), keep)
