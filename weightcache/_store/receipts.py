"""Receipts: the record that a version was verified. A receipt is withdrawn before its version changes."""

from __future__ import annotations

import json
import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from weightcache._runtime.atomic_replace import replace_file
from weightcache._runtime.unannounced_write_check import require_writing
from weightcache._runtime.writer_identity import Writer
from weightcache.errors import StorageError
from weightcache.manifest.validate import digest_problem, is_size, name_problem, path_problem

from .inspect import RECEIPT_FORMAT, list_directories, list_names, read_receipt
from .layout import version_path
from .partial_directory import UNFINISHED_RECEIPT
from .partial_file import VanishedError
from .root_checks import find_symlink, refuse_links

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from weightcache.manifest import Checkpoint

    from .layout import Layout


def receipt_files(data: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Return path → (sha256, size) of a receipt; entries that no receipt of ours would hold are left out."""
    files = {}
    for path, entry in data["files"].items():
        if path_problem(path) is None and isinstance(entry, dict):
            sha256, size = entry.get("sha256"), entry.get("size")
            if isinstance(sha256, str) and digest_problem(sha256) is None and is_size(size):
                files[path] = (sha256, size)
    return files


def iter_receipts(layout: Layout, ending: str = "json") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (name, full digest, receipt) of every version in the root that has a receipt with this ending.

    Raises:
        StorageError: A directory of them, or one of them, cannot be read.
    """
    for name in list_directories(layout.receipts):
        for entry in list_names(f"{layout.receipts}/{name}"):
            digest, _, suffix = entry.partition(".")
            if suffix != ending or name_problem(name) or digest_problem(digest):
                continue
            data = read_receipt(f"{layout.receipts}/{name}/{entry}")
            if data and data.get("name") == name and data.get("digest") == digest:
                yield name, digest, data


def files_by_digest(layout: Layout) -> dict[str, list[str]]:
    """Return sha256 → paths of the files in the root that have a receipt; their bytes are still to be hashed."""
    held: dict[str, list[str]] = {}
    with suppress(StorageError):  # what is not found here is fetched
        for name, digest, receipt in iter_receipts(layout):
            for path, (sha256, _) in receipt_files(receipt).items():
                held.setdefault(sha256, []).append(f"{layout.root}/{version_path(name, digest)}/{path}")
    return held


def receipt_bytes(checkpoint: Checkpoint, sizes: Mapping[str, int], sources: Sequence[str]) -> bytes:
    """Return the content of a receipt that is written now; see `write_receipt` for the arguments."""
    receipt = {
        "format": RECEIPT_FORMAT,
        "name": checkpoint.name,
        "digest": checkpoint.digest,
        "verified": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "sources": list(sources),
        "files": {file.path: {"sha256": file.sha256, "size": sizes[file.path]} for file in checkpoint.files},
    }
    return f"{json.dumps(receipt, indent=1)}\n".encode()


def write_receipt(layout: Layout, checkpoint: Checkpoint, sizes: Mapping[str, int], sources: Sequence[str]) -> None:
    """Record that a version was verified. The receipt is replaced at once, so that nobody reads a part of it.

    Args:
        layout: The root.
        checkpoint: What was verified.
        sizes: By path, how many bytes of each file went into its sha256. Never the current size: a file
            that was changed meanwhile would count as verified.
        sources: The mirrors that delivered it, without credentials and query.

    Raises:
        StorageError: It cannot be written.
        VanishedError: A published file is gone, or has another size.
    """
    require_writing(layout.root)
    path = layout.receipt(checkpoint)
    fresh = f"{layout.partials}/{UNFINISHED_RECEIPT}.{Writer.new(layout.root)}"  # there it is swept if we die
    for file in checkpoint.files:
        try:
            found = os.lstat(layout.file(checkpoint, file))
        except OSError:
            raise VanishedError(layout.version_dir(checkpoint)) from None
        if not stat.S_ISREG(found.st_mode) or found.st_size != sizes[file.path]:
            raise VanishedError(layout.file(checkpoint, file))
    refuse_links(layout, os.path.dirname(path), layout.partials)
    try:
        for folder in (os.path.dirname(path), layout.partials):
            os.makedirs(folder, exist_ok=True)  # a commit of a Volume reloads, and that may drop empty directories
        replace_file(path, receipt_bytes(checkpoint, sizes, sources), fresh, durable=True)
        with suppress(FileNotFoundError):
            os.unlink(
                path.removesuffix("json") + "pruning"
            )  # else a prune that was killed would continue to delete this version
    except OSError as error:
        raise StorageError.of(error, "write the receipt", path) from None


def receipts_of_directory(layout: Layout, name: str, digest: str) -> list[str]:
    """Return the paths of the receipts of the version directory of ``name`` and full ``digest``.

    There is at most one, unless two files were made whose digests begin with the same 16 digits. What is behind a link
    is no receipt.

    Raises:
        StorageError: Their directory cannot be read.
    """
    folder = f"{layout.receipts}/{name}"
    if find_symlink(layout, folder):
        return []
    place = version_path(name, digest)
    digests = (file.removesuffix(".json") for file in list_names(folder) if file.endswith(".json"))
    valid = (each for each in digests if digest_problem(each) is None)
    return [f"{folder}/{each}.json" for each in valid if version_path(name, each) == place]


def receipted_places(layout: Layout, names: Iterable[str]) -> set[str]:
    """Return the version directories of checkpoints of these names that have a receipt, as paths below the root.

    Raises:
        StorageError: A directory of receipts cannot be read.
    """
    return {
        version_path(name, digest)
        for name in names
        if not find_symlink(layout, f"{layout.receipts}/{name}")
        for digest, _, suffix in (entry.partition(".") for entry in list_names(f"{layout.receipts}/{name}"))
        if suffix == "json" and digest_problem(digest) is None
    }


def withdraw_receipt(layout: Layout, path: str) -> None:
    """Remove a receipt before its version changes, so that no hit is served meanwhile.

    Raises:
        StorageError: It cannot be removed.
    """
    require_writing(layout.root)
    try:
        with suppress(FileNotFoundError, IsADirectoryError):  # a directory is no receipt
            os.unlink(path)
    except OSError as error:
        raise StorageError.of(error, "withdraw the receipt", path) from None
