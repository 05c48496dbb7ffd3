"""``weightcache push``: upload checkpoints of this machine's root to a Volume, in the published layout."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

import weightcache
from weightcache._size_text import size_text
from weightcache._store.content_sniffing import HEAD, POINTER, foreign_content
from weightcache._store.inspect import read_bytes, read_receipt
from weightcache._store.layout import Layout, receipt_path, version_path
from weightcache._store.receipts import receipt_bytes
from weightcache.errors import StorageError, redacted
from weightcache.manifest import Manifest

from .command_spec import Command, Flag
from .modal_app import connect, translated
from .output import echo, print_json, print_table
from .shared_flags import CREATE, ENV, JSON, MANIFEST, NAMES, ROOT, VERSION, VOLUME
from .terminal import Cell

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    import modal

    from weightcache.manifest import Checkpoint

CONFIRM_ABOVE = 10**9  # bytes above which the user must confirm an upload


class Row(TypedDict):
    """The result for one checkpoint; ``path`` is its version directory on the Volume."""

    name: str
    outcome: str
    bytes: int
    path: str


def run(options: argparse.Namespace) -> int:
    """Upload the named checkpoints and print what became of each; return 1 if one is missing here."""
    rows = push(options)
    if options.json:
        print_json(options, {"checkpoints": rows})
    else:
        table = [[row["name"], row["outcome"], size_text(row["bytes"]), row["path"]] for row in rows]
        print_table(table, (Cell.NAME, Cell.WORD, Cell.NUMBER, Cell.PATH))
    return 0 if all(row["outcome"] != "missing" for row in rows) else 1


def push(options: argparse.Namespace) -> list[Row]:
    """Upload what the Volume does not have.

    The outcome of a checkpoint is ``there``, ``uploaded``, or ``missing`` if this root does not have it.

    Raises:
        WeightCacheError: The manifest is invalid, the root cannot be read, or the Volume cannot be opened or written.
        ValueError: It is more than `CONFIRM_ABOVE` bytes, and the user did not confirm.
    """
    checkpoints = Manifest.load(options.manifest).select(options.names or None)
    volume = connect(options)
    layout = Layout(options.root)
    with translated(f"list Volume {options.volume}"):
        there = {each.name for each in checkpoints if _is_there(volume, each)}
    uploadable = _verified(options, [each for each in checkpoints if each.name not in there])
    sizes = {each.name: _sizes(layout, each) for each in uploadable}
    _announce(options, layout, uploadable, sizes)
    for each in uploadable:
        with translated(f"upload {each.name} to Volume {options.volume}"):
            _upload(volume, layout, each, sizes[each.name])
        echo(f"{each.name}: uploaded")
    outcomes = dict.fromkeys((each.name for each in uploadable), "uploaded") | dict.fromkeys(there, "there")
    return [
        {
            "name": each.name,
            "outcome": outcomes.get(each.name, "missing"),
            "bytes": sum(sizes.get(each.name, {}).values()),
            "path": _version_dir(each),
        }
        for each in checkpoints
    ]


def _verified(options: argparse.Namespace, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return the checkpoints whose files are right in this root; report the others."""
    # verify, not status: an upload gets a receipt, so comparing sizes is not enough.
    statuses = weightcache.verify(options.manifest, root=options.root, only=[each.name for each in checkpoints])
    right = set()
    for status in statuses:
        if status.state in ("ready", "unverified"):
            right.add(status.name)
        else:
            echo(f"{status.name} is {status.state} here, and is not uploaded: {status.detail}")
    return [each for each in checkpoints if each.name in right]


def _announce(
    options: argparse.Namespace, layout: Layout, checkpoints: Sequence[Checkpoint], sizes: dict[str, dict[str, int]]
) -> None:
    """Print what will be uploaded, and let the user confirm a large upload.

    Raises:
        ValueError: It is more than `CONFIRM_ABOVE` bytes, and the user did not confirm.
    """
    for each in checkpoints:
        for path in _pointers(layout, each, sizes[each.name]):
            echo(f"{each.name}: {path} is a Git LFS pointer instead of the file; the manifest has its digest")
        size = sum(sizes[each.name].values())
        echo(f"{each.name}: {len(each.files)} file(s), {size_text(size)} to {_version_dir(each)}")
    total = sum(sum(each.values()) for each in sizes.values())
    if checkpoints:
        echo(f"{size_text(total)} in all to Volume {options.volume}; Modal does not upload again what it has already")
    if total > CONFIRM_ABOVE and not options.yes and not _confirmed():
        raise ValueError(f"{size_text(total)} would be uploaded: give --yes, or answer y on a terminal")


def _pointers(layout: Layout, checkpoint: Checkpoint, sizes: dict[str, int]) -> Iterator[str]:
    for file in checkpoint.files:
        if sizes[file.path] <= HEAD:
            head = read_bytes(layout.file(checkpoint, file), HEAD) or b""
            if foreign_content(head, name=file.path) == POINTER:
                yield file.path


def _is_there(volume: modal.Volume, checkpoint: Checkpoint) -> bool:
    """Whether the Volume has the receipt and all files in the right sizes: `status` there would say ready."""
    receipt = _listed(volume, _receipt(checkpoint))
    if not receipt:
        return False
    directory = _version_dir(checkpoint).removeprefix("/")
    held = {path.removeprefix(f"{directory}/"): size for path, size in _listed(volume, directory).items()}
    return all(file.path in held and file.size in (None, held[file.path]) for file in checkpoint.files)


def _listed(volume: modal.Volume, path: str) -> dict[str, int]:
    """Return path → size of the files below ``path``, or of that file; empty without one."""
    import modal

    try:
        entries = volume.listdir(path, recursive=True)
    except (modal.exception.NotFoundError, FileNotFoundError):
        return {}
    return {each.path.lstrip("/"): each.size for each in entries if each.type.name == "FILE"}


def _upload(volume: modal.Volume, layout: Layout, checkpoint: Checkpoint, sizes: dict[str, int]) -> None:
    """Upload the data, and after that the receipt."""
    import modal

    with suppress(modal.exception.NotFoundError, FileNotFoundError):
        volume.remove_file(_receipt(checkpoint))  # no container may have a hit while the files change
    # Forced: a path without a receipt may have any content, and any other process writes the same bytes there.
    try:
        with volume.batch_upload(force=True) as batch:
            for file in checkpoint.files:
                batch.put_file(layout.file(checkpoint, file), f"{_version_dir(checkpoint)}/{file.path}")
    except OSError as error:
        raise StorageError.of(error, "upload", error.filename or layout.version_dir(checkpoint)) from error
    with volume.batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(_receipt_bytes(layout, checkpoint, sizes)), f"/{_receipt(checkpoint)}")


def _receipt_bytes(layout: Layout, checkpoint: Checkpoint, sizes: dict[str, int]) -> bytes:
    """Return the receipt for the Volume. The one of this root may have been written by anybody, with anything in it."""
    local: dict[str, Any] = read_receipt(layout.receipt(checkpoint)) or {}
    sources = local.get("sources")
    mirrors = [redacted(each) for each in sources if isinstance(each, str)] if isinstance(sources, list) else []
    return receipt_bytes(checkpoint, sizes, mirrors)


def _sizes(layout: Layout, checkpoint: Checkpoint) -> dict[str, int]:
    try:
        return {file.path: os.stat(layout.file(checkpoint, file)).st_size for file in checkpoint.files}
    except OSError as error:  # another process deleted it after it was verified
        raise StorageError.of(error, "read", error.filename or layout.version_dir(checkpoint)) from None


def _version_dir(checkpoint: Checkpoint) -> str:
    return f"/{version_path(checkpoint.name, checkpoint.digest)}"


def _receipt(checkpoint: Checkpoint) -> str:
    return receipt_path(checkpoint.name, checkpoint.digest)


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        return False
    print("upload? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


COMMAND = Command(
    "push",
    "verify the checkpoints of this root and upload them to a Volume",
    (
        NAMES,
        MANIFEST,
        ROOT,
        JSON,
        replace(VOLUME, help="the Volume to upload to", required=True),
        ENV,
        CREATE,
        VERSION,
        Flag(("--yes",), "do not ask for confirmation, whatever the size"),
    ),
    run,
)
