"""``weightcache publish``: what this machine made, into a root; prints the entry that declares it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import weightcache
from weightcache._store.layout import Layout

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a file, or a directory of files; it is copied")
    parser.add_argument("name", metavar="NAME", help="what the checkpoint is to be called")


def publish(options: argparse.Namespace) -> int:
    checkpoint = weightcache.publish(options.path, name=options.name, root=options.root, volume=options.mounted)
    path = Layout(options.root).published(checkpoint)
    if options.json:
        from weightcache._engine.publish import shard_warnings  # not at the top: `status` need not wait for requests

        own = {file.sha256: Layout(options.root).file(checkpoint, file) for file in checkpoint.files}
        files = {file.path: {"sha256": file.sha256, "size": file.size} for file in checkpoint.files}
        told = {"name": checkpoint.name, "path": path, "digest": checkpoint.digest, "files": files}
        told["warnings"] = shard_warnings(checkpoint, own)
        print(json.dumps({**told, "entry": f"{checkpoint}\n"}, indent=1))
    else:
        # Nothing else, so that `>> weights.toml` declares it; first a line end, which that file may lack.
        print(f"\n{checkpoint}")
        print(f"weightcache: {checkpoint.name} is at {path}", file=sys.stderr)
    return 0
