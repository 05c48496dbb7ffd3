"""The table of a campaign: its rows, when a part of it ends, and how it is printed.

Each campaign is a function ``rows(seed, seconds)``. It returns its rows, and one line for each failure, which
`campaign.py --repeat` runs again.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple


class Row(NamedTuple):
    """A line of the table."""

    campaign: str
    scenario: str
    tried: int
    failed: int
    note: str


@dataclass(frozen=True)
class Limit:
    """When to end: at a time of `time.monotonic`, or after a number of cases."""

    until: float = float("inf")
    most: int = sys.maxsize

    def reached(self, tried: int) -> bool:
        return tried >= self.most or time.monotonic() > self.until


@contextmanager
def silent() -> Iterator[None]:
    """Log nothing of what is expected to go wrong; afterwards, as before."""
    log = logging.getLogger("weightcache")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def table(rows: list[Row]) -> str:
    """Return the rows as a table of Markdown, with a last line for all of them."""
    lines = ["| Campaign | Scenario | Tried | Failed | |", "|---|---|---:|---:|---|"]
    lines += [f"| {row.campaign} | {row.scenario} | {row.tried} | {row.failed} | {row.note} |" for row in rows]
    tried, failed = sum(row.tried for row in rows), sum(row.failed for row in rows)
    return "\n".join([*lines, f"| all | | {tried} | {failed} | |"])
