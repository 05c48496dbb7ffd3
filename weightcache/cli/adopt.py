"""``weightcache adopt``: publish weights that another program downloaded, and print their entries."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from weightcache._size_text import size_text
from weightcache._store.layout import Layout
from weightcache.manifest.validate import user_path

from .command_spec import Command, Flag, Remote
from .output import echo, print_json
from .shared_flags import ENV, JSON, ROOT, VOLUME

if TYPE_CHECKING:
    import argparse

    from weightcache._engine.adopt import Adopted
    from weightcache._engine.existing_weights import Found


def run(options: argparse.Namespace) -> int:
    """Publish what is found at a path, and print one entry for each checkpoint.

    Raises:
        WeightCacheError: Nothing can be adopted there, a file is damaged, or the root cannot be written.
        ValueError: ``--repo`` names no repository.
    """
    # Not at the top: they import requests, which `status` does not need.
    from weightcache._engine.adopt import adopt, finish_moves
    from weightcache._engine.existing_weights import find_weights

    layout = Layout(options.root)
    path, rows = user_path(options.path), []
    if options.move:
        finish_moves(path)
    for found in find_weights(path, options.name, layout, options.repo):
        adopted = adopt(found, layout, options.mounted, move=options.move)
        rows.append(_to_json(found, adopted, layout))
        if not options.json:
            # First a line end, because the file of `>> weights.toml` may lack one.
            print(f"\n{adopted.checkpoint}", flush=True)
            echo(f"{adopted.checkpoint.name}: {_in_words(adopted)}, at {layout.published(adopted.checkpoint)}")
            if found.note:
                echo(f"{adopted.checkpoint.name}: {found.note}")
    if options.json:
        print_json(options, {"checkpoints": rows})
    return 0


def _to_json(found: Found, adopted: Adopted, layout: Layout) -> dict[str, Any]:
    checkpoint = adopted.checkpoint
    counts = {"linked": adopted.linked, "copied": adopted.copied, "moved": adopted.moved}
    about = {"name": checkpoint.name, "path": layout.published(checkpoint), "digest": checkpoint.digest}
    files = {file.path: {"sha256": file.sha256, "size": file.size} for file in checkpoint.files}
    return {**about, "files": files, **counts, "note": found.note, "entry": f"{checkpoint}\n"}


def _in_words(adopted: Adopted) -> str:
    counts = {"linked": adopted.linked, "copied": adopted.copied, "moved": adopted.moved}
    listed = [f"{count} file(s) {what}" for what, count in counts.items() if count]
    size = adopted.checkpoint.size or 0
    return f"{' and '.join(listed)} ({size_text(size)})"


def path_on_volume(path: str, mount: str) -> str:
    """Return the path in a container of a path on the Volume.

    Raises:
        ValueError: It leads out of the Volume.
    """
    inside = os.path.normpath(f"{mount}/{path}")
    if inside != mount and not inside.startswith(f"{mount}/"):
        raise ValueError(f"PATH {path} leads out of the Volume; with --volume it begins at the top of the Volume")
    return inside


COMMAND = Command(
    "adopt",
    "publish weights that another program downloaded, without a download; print their entries",
    (
        Flag(
            ("path",),
            "a Hub cache, a repository or snapshot in it, a directory, or a file; with --volume, a path on it",
            Remote.REPLACE,
            metavar="PATH",
            completes="file",
        ),
        Flag(
            ("name",), "the name of the checkpoint (default: of the repository)", Remote.SEND, metavar="NAME", nargs="?"
        ),
        Flag(
            ("--repo",),
            "the repository of a local_dir of `hf download`, also ORG/NAME@COMMIT: its entry gets its URL",
            Remote.SEND,
            metavar="ORG/NAME",
        ),
        ROOT,
        JSON,
        VOLUME,
        ENV,
        Flag(
            ("--move",),
            "rename the files into the root, and leave links to them (default: hard links, or copies where the file "
            "system has none)",
            Remote.SEND,
        ),
    ),
    run,
    remote=True,
)
