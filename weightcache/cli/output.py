"""Printing results to stdout and messages to stderr."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from weightcache._message_text import printable, printable_line
from weightcache._size_text import size_text

from .terminal import Cell, message_lines, table_lines, terminal_columns

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence
    from typing import TextIO

    from weightcache import Status

MOST_ON_TERMINAL = 20  # rows that say the same, such as hits; more of them are counted on a terminal
JSON_VERSION = 1  # of every document of --json; docs/reference/json.md says when it grows


def echo(text: str) -> None:
    """Print a message to stderr: stdout is for results. On a terminal, long lines are broken at spaces."""
    _show(_prepared(text))


def _prepared(text: str) -> str:
    text = f"weightcache: {printable(text)}"
    columns = terminal_columns(sys.stderr)
    return text if columns is None else "\n".join(message_lines(text, columns))


def _show(text: str) -> None:
    if "tqdm" in sys.modules:  # bars may be shown: they make room for it, and are drawn again
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr)


class _LogLines(logging.Handler):
    """Prints the library's warnings as messages of the command line."""

    def emit(self, record: logging.LogRecord) -> None:
        echo(f"{record.levelname.lower()}: {record.getMessage()}")


@contextmanager
def log_shown() -> Iterator[None]:
    """Print what the library logs as a warning or an error, unless the program has handlers of its own."""
    log = logging.getLogger("weightcache")
    if log.hasHandlers():
        yield
        return
    handler = _LogLines(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def print_json(options: argparse.Namespace, fields: Mapping[str, Any]) -> None:
    """Print a result as one JSON object, with the version of its form and the command that made it."""
    print(json.dumps({"version": JSON_VERSION, "command": options.verb, **fields}, indent=1))


def print_table(rows: Sequence[Sequence[str]], kinds: Sequence[Cell]) -> None:
    """Print rows in aligned columns, as wide as the terminal at most; in full where they are piped."""
    rows = [[printable_line(cell) for cell in row] for row in rows]  # others name files on the Volume
    for line in table_lines(rows, kinds, terminal_columns(sys.stdout)):
        print(line)


def print_lines(text: str, stream: TextIO | None = None) -> None:
    """Print lines to stdout, or another stream; on a terminal, long ones are broken at spaces."""
    text = printable(text)  # the Hub names files, and the path of a root need not be UTF-8
    stream = stream or sys.stdout
    columns = terminal_columns(stream)
    print(text if columns is None else "\n".join(message_lines(text, columns)), file=stream)


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun, as in "1 checkpoint" or "3 checkpoints"."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def print_statuses(statuses: Sequence[Status], options: argparse.Namespace) -> int:
    """Print the states of checkpoints; return the exit code: 0 if all are ready, else 1."""
    if options.json:
        rows = [{**asdict(status), "path": str(status.path)} for status in statuses]
        print_json(options, {"checkpoints": rows})
    else:
        kinds = (Cell.NAME, Cell.WORD, Cell.NUMBER, Cell.PATH, Cell.TEXT)
        print_table([_status_row(status) for status in statuses], kinds)
        if terminal_columns(sys.stdout) is not None and len(statuses) > 1:
            echo(_states(statuses))
    return 0 if all(status.state == "ready" for status in statuses) else 1


def _states(statuses: Sequence[Status]) -> str:
    """Return how many checkpoints have each state, with the names of a few that are not ready."""
    names: dict[str, list[str]] = {}
    for status in statuses:
        names.setdefault(status.state, []).append(status.name)
    if [*names] == ["ready"]:
        return f"all {counted(len(statuses), 'checkpoint')} are ready"
    parts = [
        f"{len(each)} {state}" + (f" ({listed(each)})" if state != "ready" and 2 * len(each) < len(statuses) else "")
        for state, each in names.items()
    ]
    return f"{counted(len(statuses), 'checkpoint')}: {', '.join(parts)}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return names, at most a few of them, as in "a, b, c and 297 more"."""
    if len(names) <= most:
        return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def _status_row(status: Status) -> list[str]:
    extra = f"{len(status.extra)} extra file(s): {', '.join(status.extra[:3])}" if status.extra else ""
    detail = "; ".join(part for part in (status.detail, extra) if part)
    size = "" if status.size is None else size_text(status.size)
    return [status.name, status.state, size, str(status.path), detail]
