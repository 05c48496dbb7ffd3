"""``weightcache ensure``: make checkpoints ready."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import weightcache
from weightcache._size_text import size_text

from .command_spec import Command, Flag, Group, Remote
from .dry_run import dry_run
from .output import MOST_ON_TERMINAL, echo, print_json, print_table
from .shared_flags import CREATE, ENV, JSON, MANIFEST, NAMES, QUIET, ROOT, TAG, VERSION, VOLUME, source_of
from .summary import summary
from .terminal import Cell, terminal_columns

if TYPE_CHECKING:
    import argparse

    from weightcache import Weights


def run(options: argparse.Namespace) -> int:
    """Make the named checkpoints ready and print where they are."""
    if options.dry_run:
        return dry_run(options)
    source, selected = source_of(options)
    began = time.perf_counter()  # the report of a hit has no seconds: to measure them would cost a hit time
    weights = weightcache.ensure(
        source,
        root=options.root,
        volume=options.mounted,
        only=selected,
        offline=options.offline,
        rehash=options.rehash,
        wait=options.wait,
        patience=options.patience,
        progress=False if options.quiet else None,
    )
    seconds = time.perf_counter() - began
    if options.json:
        print_json(options, _to_json(weights))
        return 0
    names = [*weights]
    hidden = 0
    if terminal_columns(sys.stdout) is not None and len(names) > MOST_ON_TERMINAL:
        names = [name for name in names if weights.report[name].outcome != "hit"][:MOST_ON_TERMINAL]
        hidden = len(weights) - len(names)
    print_table([_row(weights, name) for name in names], (Cell.NAME, Cell.WORD, Cell.NUMBER, Cell.NUMBER, Cell.PATH))
    if hidden and names:
        print(f"and {hidden} more; the command `status` lists them")
    if not options.quiet:
        echo(summary(weights.report, options.root, seconds, has_volume=options.mounted is not None))
    return 0


def _to_json(weights: Weights) -> dict[str, object]:
    report = weights.report
    return {
        "dry_run": False,
        "checkpoints": [{"name": name, "path": str(weights[name]), **asdict(report[name])} for name in weights],
        "bytes_fetched": report.bytes_fetched,
        "committed": report.committed,
        "seconds": report.seconds,
        "waited": report.waited,
        "waited_for": report.waited_for,
        "warnings": report.warnings,
    }


def _row(weights: Weights, name: str) -> list[str]:
    report = weights.report[name]
    fetched, seconds = size_text(report.bytes_fetched), f"{report.seconds:.1f} s"
    return [name, report.outcome, fetched, seconds, str(weights[name])]


COMMAND = Command(
    "ensure",
    "make checkpoints ready: verify, adopt, or download what is missing",
    (
        NAMES,
        MANIFEST,
        TAG,
        ROOT,
        JSON,
        VOLUME,
        ENV,
        Flag(
            ("--secret",),
            "a Modal Secret with the tokens that the manifest names; may be repeated",
            Remote.LOCAL,
            metavar="NAME",
            repeat=True,
            group=Group.ON_MODAL,
        ),
        CREATE,
        VERSION,
        Flag(("--offline",), "open no URL; use only what the root holds", Remote.SEND),
        Flag(("--rehash",), "hash the published files, and download damaged ones again", Remote.SEND),
        Flag(
            ("--wait",),
            "how long another's download may make no progress (default: 300)",
            Remote.SEND,
            metavar="SECONDS",
            type=float,
            default=300.0,
        ),
        Flag(
            ("--patience",),
            "how long a mirror may stall after it delivered data (default: 180)",
            Remote.SEND,
            metavar="SECONDS",
            type=float,
            default=180.0,
        ),
        QUIET,
        Flag(("--dry-run",), "list what would be done and downloaded; change nothing", Remote.SEND),
    ),
    run,
    remote=True,
    note_on_interrupt="; each MiB of a file that was complete is kept",
)
