"""``weightcache status``: show the state of checkpoints without hashing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import weightcache

from .command_spec import Command
from .output import print_statuses
from .shared_flags import ENV, JSON, MANIFEST, NAMES, ROOT, TAG, VOLUME, source_of

if TYPE_CHECKING:
    import argparse

FLAGS = (NAMES, MANIFEST, TAG, ROOT, JSON, VOLUME, ENV)


def run(options: argparse.Namespace) -> int:
    """Print the state of the named checkpoints."""
    source, names = source_of(options)
    return print_statuses(weightcache.status(source, root=options.root, only=names), options)


COMMAND = Command(
    "status",
    "show what the root holds, without hashing",
    FLAGS,
    run,
    remote=True,
)
