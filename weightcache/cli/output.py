"""Printing results to stdout and messages to stderr."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from weightcache._size_text import size_text
from weightcache.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weightcache import Status


def echo(text: str) -> None:
    """Print a message to stderr: stdout is for results."""
    print(f"weightcache: {printable(text)}", file=sys.stderr)


def print_json(value: object) -> None:
    """Print a result as one JSON document."""
    print(json.dumps(value, indent=1))


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns."""
    rows = [[printable(cell).replace("\n", r"\n") for cell in row] for row in rows]  # others name files on the Volume
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_statuses(statuses: Sequence[Status], *, as_json: bool) -> int:
    """Print the states of checkpoints; return the exit code: 0 if all are ready, else 1."""
    if as_json:
        print_json([{**asdict(status), "path": str(status.path)} for status in statuses])
    else:
        print_table([_status_row(status) for status in statuses])
    return 0 if all(status.state == "ready" for status in statuses) else 1


def _status_row(status: Status) -> list[str]:
    extra = f"{len(status.extra)} extra file(s): {', '.join(status.extra[:3])}" if status.extra else ""
    detail = "; ".join(part for part in (status.detail, extra) if part)
    size = "" if status.size is None else size_text(status.size)
    return [status.name, status.state, size, str(status.path), detail]
