"""``weightcache verify``: hash every published file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import weightcache

from .command_spec import Command
from .output import print_statuses
from .shared_flags import ENV, JSON, MANIFEST, NAMES, ROOT, TAG, VOLUME, source_of

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> int:
    """Hash the named checkpoints and print their state."""
    source, names = source_of(options)
    statuses = weightcache.verify(source, root=options.root, only=names)
    return print_statuses(statuses, as_json=options.json)


COMMAND = Command(
    "verify",
    "hash every published file; write nothing",
    (NAMES, MANIFEST, TAG, ROOT, JSON, VOLUME, ENV),
    run,
    remote=True,
)
