"""``weightcache prune``: delete what no manifest declares and no tag keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import weightcache

from .command_spec import Command, Flag, Remote
from .output import echo, print_json, print_table
from .shared_flags import ENV, JSON, MANIFESTS, ROOT, VOLUME, manifests_of
from .terminal import Cell

if TYPE_CHECKING:
    import argparse

    from weightcache.manifest import ManifestSource


def run(options: argparse.Namespace) -> int:
    """List what no manifest declares and no tag keeps; with ``--yes`` delete it."""
    sources: list[ManifestSource] = [*manifests_of(options)] or [weightcache.Manifest([])]
    paths = weightcache.prune(
        *sources,
        root=options.root,
        volume=options.mounted,
        dry_run=not options.yes,
        older_than=options.older_than,
    )
    done = "deleted" if options.yes else "would delete"
    if options.json:
        print_json(options, {done: [str(path) for path in paths]})
        return 0
    print_table([[done, str(path)] for path in paths], (Cell.WORD, Cell.PATH))
    if not paths:
        print("nothing to delete")
    elif not options.yes:
        echo(f"nothing was deleted; --yes deletes {'it' if len(paths) == 1 else f'these {len(paths)}'}")
    return 0


COMMAND = Command(
    "prune",
    "list what no manifest declares and no tag keeps; with --yes, delete it",
    (
        MANIFESTS,
        Flag(("--no-manifest",), "no manifest is in use: keep only what tags keep", Remote.SEND),
        ROOT,
        JSON,
        VOLUME,
        ENV,
        Flag(("--yes",), "delete; without it, only list", Remote.SEND),
        Flag(
            ("--older-than",),
            "keep what was verified, or lost its tag, in the last SECONDS (default: 3600)",
            Remote.SEND,
            metavar="SECONDS",
            type=float,
            default=3600.0,
        ),
    ),
    run,
    remote=True,
)
