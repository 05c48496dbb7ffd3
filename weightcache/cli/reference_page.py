"""Write the ``--help`` of every command into the reference page: ``python -m weightcache.cli.reference_page PAGE``."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .commands import COMMANDS
from .parser import build_parser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .command_spec import Command


def help_texts(commands: Sequence[Command]) -> dict[str, str]:
    """Return what each ``--help`` prints, by its command line."""
    parser = build_parser(commands)
    [verbs] = [action.choices for action in parser._actions if isinstance(action.choices, dict)]  # noqa: SLF001
    texts = {"weightcache --help": parser.format_help()}
    return texts | {f"weightcache {name} --help": verb.format_help() for name, verb in verbs.items()}


def updated(page: str, commands: Sequence[Command]) -> str:
    """Return a page with the help of every command; a command without a section gets one at the end."""
    for line, text in help_texts(commands).items():
        block = f"```text\n$ {line}\n{text}```"
        if found := re.search(rf"```text\n\$ {re.escape(line)}\n.*?```", page, re.DOTALL):
            page = page[: found.start()] + block + page[found.end() :]
        else:
            page = f"{page.rstrip()}\n\n## `{line.removesuffix(' --help')}`\n\n{block}\n"
    return page


def main(path: str) -> None:
    """Update a page in place."""
    os.environ["NO_COLOR"] = "1"  # argparse of Python 3.14 colours help texts on a terminal
    page = Path(path)
    page.write_text(updated(page.read_text(), COMMANDS))


if __name__ == "__main__":
    main(*sys.argv[1:])
