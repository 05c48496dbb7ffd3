"""``weightcache verify``: hash every published file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import weightcache

from .command_spec import Command
from .status import FLAGS, print_states

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> int:
    """Hash the named checkpoints and print their state."""
    return print_states(weightcache.verify, options)


COMMAND = Command("verify", "hash every published file; write nothing", FLAGS, run, remote=True)
