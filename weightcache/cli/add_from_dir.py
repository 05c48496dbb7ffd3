"""``weightcache add --from-dir``: declare and publish the files of a directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from weightcache._pinning.unpinned_entries import Draft, Pin
from weightcache._store.layout import Layout
from weightcache.errors import ManifestError, StorageError
from weightcache.manifest.urls import checkpoint_name
from weightcache.manifest.validate import user_path

from .output import echo

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from weightcache.manifest import Checkpoint


def directory_drafts(sources: Sequence[tuple[str, str]], *, expected: bool) -> list[Draft]:
    """Hash files and directories; return their drafts.

    Args:
        sources: Name and path of each checkpoint.
        expected: Whether the user gave the digest: then Git LFS pointers are accepted.
    """
    from weightcache._engine.publish_local_weights import hashed, shard_warnings

    found = []
    for name, path in sources:
        checkpoint, own = hashed(path, name, pointers=expected)
        draft = _local(checkpoint)
        for text in shard_warnings(checkpoint, own):
            draft.warn(text)
        found.append(draft)
    return found


def directory_sources(options: argparse.Namespace, manifest: str) -> list[tuple[str, str]]:
    """Return name and path of each checkpoint: the whole directory if a name is given, otherwise each entry in it.

    The manifest and the root may be in that directory. They are left out, because this command changes them.

    Raises:
        StorageError: The directory cannot be read.
        ValueError: It is not a directory, or the files cannot be declared.
    """
    top = os.path.abspath(user_path(options.from_dir))
    if not os.path.isdir(top):
        raise ValueError(f"--from-dir {top} is not a directory")
    if options.name:
        sources = [(options.name, top)]
    else:
        excluded = {manifest, os.path.realpath(Layout(options.root).root) if options.root else manifest}
        try:
            listed = os.listdir(top)
        except OSError as error:
            raise StorageError.of(error, "read", top) from None
        inner = sorted(each for each in listed if not each.startswith("."))
        inner = [each for each in inner if os.path.realpath(os.path.join(top, each)) not in excluded]
        if not inner:
            raise ValueError(f"--from-dir {top} is empty")
        sources = _named(top, inner)
    for name, path in sources:
        if not options.print and manifest.startswith(f"{os.path.realpath(path)}/"):
            raise ValueError(f"{manifest} is in {path}, and would become part of {name}; put it elsewhere (-m)")
    return sources


def _named(top: str, inner: Sequence[str]) -> list[tuple[str, str]]:
    named: dict[str, str] = {}
    for each in inner:
        checkpoint = checkpoint_name(each, is_directory=os.path.isdir(os.path.join(top, each)))
        if checkpoint in named:
            raise ValueError(
                f"{named[checkpoint]} and {each} in {top} would both be called {checkpoint}; add them separately"
            )
        named[checkpoint] = each
    return [(checkpoint, os.path.join(top, each)) for checkpoint, each in named.items()]


def _local(checkpoint: Checkpoint) -> Draft:
    pins = {file.path: Pin(file.sha256, file.size, "computed here") for file in checkpoint.files}
    return Draft(checkpoint.name, [], None, checkpoint.is_directory, pins, say=echo)


def publish_directory(
    options: argparse.Namespace, sources: Sequence[tuple[str, str]], pinned: Sequence[Checkpoint]
) -> None:
    """Copy or link the sources into the root.

    Raises:
        WeightCacheError: A file changed after it was hashed, or cannot be read or written.
    """
    from weightcache._engine.publish_local_weights import copy_in

    layout = Layout(options.root)
    for checkpoint, (name, path) in zip(pinned, sources, strict=True):
        pointers = options.expect is not None
        if copy_in(path, name, layout, None, may_link=options.link, pointers=pointers)[0] != checkpoint:
            raise ManifestError(
                path, [f"changed after {name} was declared; correct its entry with `weightcache publish {path} {name}`"]
            )
