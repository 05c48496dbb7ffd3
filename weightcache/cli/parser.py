"""Build the argparse parser from the list of commands."""

from __future__ import annotations

import argparse
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import weightcache
from weightcache._message_text import printable

from .command_spec import Group
from .terminal import message_lines, terminal_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

    from .command_spec import Command, Flag

WIDTH = 80  # of help texts, on every terminal: docs/reference/cli.md shows the same
EXIT_CODES = """\
exit codes:
  0  success
  1  a checkpoint is not ready (missing, partial, unverified, damaged, or not
     cached with --offline)
  2  invalid usage or manifest
  3  a download failed, or delivered wrong bytes
  4  waited too long for another process
  5  the Volume or the storage failed
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Print the same help on every Python: 3.13 writes options with values differently than 3.12."""

    def __init__(self, prog: str, **_: Any) -> None:
        super().__init__(prog, max_help_position=26, width=WIDTH)
        self._action_max_length = 14  # of the longest verb, indented: some versions forget the indentation

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        metavar = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {metavar}"


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage in one line and a hint, not below the usage of all flags, which may fill the screen."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.color = False  # Python 3.14 colours help texts on a terminal, and not every terminal has its background

    def error(self, message: str) -> NoReturn:
        lines = f"{self.prog}: error: {message}\n  hint: `{self.prog} --help` lists what it takes"
        columns = terminal_columns(sys.stderr)
        self.exit(2, "\n".join([lines] if columns is None else message_lines(printable(lines), columns)) + "\n")


class _Version(argparse.Action):
    """Read the version only for ``--version``: a container that mounts a source checkout has no package metadata."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"weightcache {weightcache.__version__}")
        parser.exit()


class _Once(argparse.Action):
    """Refuse a flag that is given twice, where argparse would silently keep the last value."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, *_: object) -> None:
        if getattr(namespace, self.dest) is not self.default:
            parser.error(f"{'/'.join(self.option_strings)} is given twice; this verb takes one manifest")
        setattr(namespace, self.dest, value)


def build_parser(
    commands: Sequence[Command], completions: Mapping[str, object] | None = None
) -> argparse.ArgumentParser:
    """Return the parser of the whole command line.

    Args:
        commands: All commands; parsed options have the name of one as ``verb``, and as ``usage_error`` what prints the
            usage of that verb with a problem and exits.
        completions: What shtab completes for each value of `Flag.completes`; ``None`` outside of shell completion.
    """
    parser = _Parser(
        prog="weightcache",
        description="Pinned, verified model weights in one root directory.",
        epilog=EXIT_CODES,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for command in commands:
        sub = verbs.add_parser(
            command.name,
            help=command.summary,
            description=textwrap.fill(f"{command.summary[0].upper()}{command.summary[1:]}.", WIDTH),
            epilog=EXIT_CODES,
            formatter_class=_Formatter,
        )
        sub.set_defaults(usage_error=sub.error)
        _add_flags(sub, command, completions or {})
    return parser


def _add_flags(parser: argparse.ArgumentParser, command: Command, completions: Mapping[str, object]) -> None:
    groups: dict[Group, argparse._ActionsContainer] = {Group.OPTIONS: parser}
    for flag in command.flags:
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group.value)
        action = groups[flag.group].add_argument(*flag.names, **_action(flag), **flag.arguments())
        if flag.completes in completions:
            action.complete = completions[flag.completes]  # type: ignore[attr-defined]  # shtab reads it


def _action(flag: Flag) -> dict[str, Any]:
    if flag.is_switch:
        return {"action": "store_true"}
    if flag.repeat:
        return {"action": "append"}
    return {"action": _Once} if flag.once else {}
