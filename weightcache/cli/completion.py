"""``weightcache completion``: print a script that completes commands and flags in a shell. Needs ``shtab``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .command_spec import Command, Flag
from .parser import build_parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

SHELLS = ("bash", "zsh", "tcsh")


def command_for(others: Sequence[Command]) -> Command:
    """Return the command, which completes itself and the other commands."""

    def run(options: argparse.Namespace) -> int:
        print(script(options.shell, (*others, command)))
        return 0

    command = Command(
        "completion",
        "print a script for shell completion",
        (Flag(("shell",), "the shell", metavar="|".join(SHELLS), choices=SHELLS),),
        run,
        needs_root=False,
    )
    return command


def script(shell: str, commands: Sequence[Command]) -> str:
    """Return the script that completes these commands in a shell.

    Args:
        shell: One of `SHELLS`.
        commands: All commands.

    Raises:
        ValueError: The package shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise ValueError("completion needs shtab: pip install 'weightcache[completion]'") from None
    parser = build_parser(commands, {"file": shtab.FILE, "directory": shtab.DIRECTORY})
    return str(shtab.complete(parser, shell))
