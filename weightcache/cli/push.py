"""``weightcache push``: what this machine's root has, uploaded in the published layout."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypedDict

import weightcache
from weightcache._store.file_kind import HEAD, POINTER, foreign_content
from weightcache._store.inspect import read_bytes, read_receipt
from weightcache._store.layout import Layout, receipt_path, version_path
from weightcache._store.receipts import receipt_bytes
from weightcache.errors import StorageError
from weightcache.manifest import Manifest

from .modal_runner import connect, translated

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    import modal

    from weightcache.manifest import Checkpoint

ASK = 10**9  # bytes above which nothing is uploaded without a yes


class Row(TypedDict):
    """What became of one checkpoint; ``path`` is its place on the Volume."""

    name: str
    outcome: str
    bytes: int
    path: str


def push(options: argparse.Namespace) -> list[Row]:
    """Upload what the Volume lacks; ``outcome`` is ``there``, ``uploaded``, or ``missing`` where this root lacks it.

    Raises:
        WeightCacheError: The manifest is wrong, the root cannot be read, or the Volume cannot be had or written.
        ValueError: It is much, and nobody said yes.
    """
    checkpoints = Manifest.load(options.manifest).select(options.names or None)
    volume = connect(options)
    layout = Layout(options.root)
    with translated(f"list Volume {options.volume}"):
        there = {each.name for each in checkpoints if _is_there(volume, each)}
    lacking = [each.name for each in checkpoints if each.name not in there]
    # verify, not status: what is uploaded gets a receipt, so a size is not enough.
    found = {each.name: each for each in weightcache.verify(options.manifest, root=options.root, only=lacking)}
    able = [each for each in checkpoints if each.name in found and found[each.name].state in ("ready", "unverified")]
    for name, status in found.items():
        if status.state not in ("ready", "unverified"):
            _say(f"{name} is {status.state} here and stays so there: {status.detail}")
    sizes = {each.name: _sizes(layout, each) for each in able}
    total = sum(sum(each.values()) for each in sizes.values())
    for each in able:
        for path in _pointers(layout, each, sizes[each.name]):
            _say(f"{each.name}: {path} is a Git LFS pointer, and not the file itself; the manifest has its digest")
        _say(f"{each.name}: {len(each.files)} file(s), {sum(sizes[each.name].values()) / 1e6:.1f} MB to {_place(each)}")
    if able:
        _say(f"{total / 1e6:.1f} MB in all to Volume {options.volume}; Modal takes what it has already by its digest")
    if total > ASK and not options.yes and not _confirmed():
        raise ValueError(f"{total / 1e9:.1f} GB would be uploaded: give --yes, or answer y on a terminal")
    for each in able:
        with translated(f"upload {each.name} to Volume {options.volume}"):
            _upload(volume, layout, each, sizes[each.name])
        _say(f"{each.name}: uploaded")
    outcomes = dict.fromkeys((each.name for each in able), "uploaded") | dict.fromkeys(there, "there")
    return [
        {
            "name": each.name,
            "outcome": outcomes.get(each.name, "missing"),
            "bytes": sum(sizes.get(each.name, {}).values()),
            "path": _place(each),
        }
        for each in checkpoints
    ]


def _pointers(layout: Layout, checkpoint: Checkpoint, sizes: dict[str, int]) -> Iterator[str]:
    for file in checkpoint.files:
        if sizes[file.path] <= HEAD:
            head = read_bytes(layout.file(checkpoint, file), HEAD) or b""
            if foreign_content(head, name=file.path) == POINTER:
                yield file.path


def _is_there(volume: modal.Volume, checkpoint: Checkpoint) -> bool:
    """Whether the Volume has the receipt and every file in its size: what a look in a container would call ready."""
    receipt = _listed(volume, _receipt(checkpoint))
    if not receipt:
        return False
    place = _place(checkpoint).removeprefix("/")
    held = {path.removeprefix(f"{place}/"): size for path, size in _listed(volume, place).items()}
    return all(file.path in held and file.size in (None, held[file.path]) for file in checkpoint.files)


def _listed(volume: modal.Volume, path: str) -> dict[str, int]:
    """Return path → size of the files below ``path``, or of that file; none if there is no such thing."""
    import modal

    try:
        entries = volume.listdir(path, recursive=True)
    except (modal.exception.NotFoundError, FileNotFoundError):
        return {}
    return {each.path.lstrip("/"): each.size for each in entries if each.type.name == "FILE"}


def _upload(volume: modal.Volume, layout: Layout, checkpoint: Checkpoint, sizes: dict[str, int]) -> None:
    """Upload the data, and only when that is there, the receipt."""
    import modal

    with suppress(modal.exception.NotFoundError, FileNotFoundError):
        volume.remove_file(_receipt(checkpoint))  # as a container heals: no hit from a place that changes
    # Forced: a path without a receipt may hold anything, and whoever else writes it writes the same bytes.
    try:
        with volume.batch_upload(force=True) as batch:
            for file in checkpoint.files:
                batch.put_file(layout.file(checkpoint, file), f"{_place(checkpoint)}/{file.path}")
    except OSError as error:
        raise StorageError.of(error, "upload", error.filename or layout.version_dir(checkpoint)) from error
    with volume.batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(_receipt_bytes(layout, checkpoint, sizes)), f"/{_receipt(checkpoint)}")


def _receipt_bytes(layout: Layout, checkpoint: Checkpoint, sizes: dict[str, int]) -> bytes:
    local: dict[str, Any] = read_receipt(layout.receipt(checkpoint)) or {}
    return receipt_bytes(checkpoint, sizes, local.get("sources", []))


def _sizes(layout: Layout, checkpoint: Checkpoint) -> dict[str, int]:
    return {file.path: os.stat(layout.file(checkpoint, file)).st_size for file in checkpoint.files}


def _place(checkpoint: Checkpoint) -> str:
    return f"/{version_path(checkpoint.name, checkpoint.digest)}"


def _receipt(checkpoint: Checkpoint) -> str:
    return receipt_path(checkpoint.name, checkpoint.digest)


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        return False
    print("upload? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _say(text: str) -> None:
    print(f"weightcache: {text}", file=sys.stderr)
