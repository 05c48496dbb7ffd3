"""``weightcache publish``: copy weights that were made on this machine into a root; print their entry."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import weightcache
from weightcache._store.layout import Layout

from .command_spec import Command, Flag
from .output import echo, print_json
from .shared_flags import JSON, KEEP, ROOT, TAG

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> int:
    """Copy files into the root as a checkpoint and print its entry."""
    checkpoint = weightcache.publish(
        options.path,
        name=options.name,
        root=options.root,
        volume=options.mounted,
        tag=options.tag,
        keep=options.keep,
    )
    path = Layout(options.root).published(checkpoint)
    if options.json:
        from weightcache._engine.publish_local_weights import (
            shard_warnings,  # not at the top: it imports requests, which `status` does not need
        )

        own = {file.sha256: Layout(options.root).file(checkpoint, file) for file in checkpoint.files}
        files = {file.path: {"sha256": file.sha256, "size": file.size} for file in checkpoint.files}
        document = {"name": checkpoint.name, "path": path, "digest": checkpoint.digest, "files": files}
        document["warnings"] = shard_warnings(checkpoint, own)
        print_json(options, {**document, "entry": f"{checkpoint}\n"})
    else:
        # Only the entry, so that `>> weights.toml` declares it; first a line end, because that file may lack one.
        print(f"\n{checkpoint}")
        echo(f"{checkpoint.name} is at {path}")
    return 0


COMMAND = Command(
    "publish",
    "copy weights that were made here into the root; print their manifest entry",
    (
        Flag(("path",), "a file, or a directory of files; it is copied", metavar="PATH", completes="file"),
        Flag(("name",), "the name of the checkpoint", metavar="NAME"),
        replace(TAG, help="let this tag of NAME stand for these weights"),
        KEEP,
        ROOT,
        JSON,
    ),
    run,
)
