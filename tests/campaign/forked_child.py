"""Forks a child for each step of the campaign, and returns what it reports: nothing is imported twice."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from campaign_table import Limit

HANG = 60  # seconds after which a child counts as one that does not end
PROCESSES = len(os.sched_getaffinity(0))  # that work side by side
T = TypeVar("T")


class Ended(NamedTuple):
    """How a child ended: its exit code (negative for a signal), and what it reported."""

    code: int
    report: Any


def forked(work: Callable[[int], Any]) -> Ended:
    """Run ``work`` in a forked child; it gets a descriptor for its report, or returns the report.

    An exception is reported as text, with exit code 1.
    """
    return _ended(*_started(work, HANG))


def side_by_side(work: Callable[[T], Any], items: Sequence[T], limit: Limit, title: str = "") -> list[tuple[T, Any]]:
    """Do ``work`` for the items, in their order, in `PROCESSES` forked children; return each with what it returned.

    A child takes every n-th item, until the limit is reached. With a title, the first one prints once a minute how far
    it is.

    Raises:
        RuntimeError: An exception of ``work``, as text.
    """

    def part(first: int) -> list[tuple[int, Any]]:
        found, began, minutes = list[tuple[int, Any]](), time.monotonic(), 0
        for index in range(first, len(items), PROCESSES):
            if limit.reached(index):
                break
            if title and first == 0 and (now := int(time.monotonic() - began) // 60) > minutes:
                minutes = now
                print(f"{title}: {index / len(items):.1%} after {now} min", file=sys.stderr, flush=True)
            found.append((index, work(items[index])))
        return found

    running = [_started(lambda _, first=first: part(first), patience=0) for first in range(PROCESSES)]
    ended = [_ended(*each) for each in running]
    if broken := [each for each in ended if each.code]:
        raise RuntimeError(f"a process of the campaign ended with {broken[0].code}: {broken[0].report}")
    found = dict(pair for each in ended for pair in each.report)
    return [(items[index], found[index]) for index in sorted(found)]


def _started(work: Callable[[int], Any], patience: int) -> tuple[int, int]:
    """Fork a child that SIGALRM ends after ``patience`` seconds (0: never); return its number and its report's pipe."""
    readable, writable = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process:
        os.close(writable)
        return process, readable
    os.close(readable)
    signal.alarm(patience)
    code, write = 0, os.write
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            report = pickle.dumps(work(writable))
        except BaseException:
            code, report = 1, pickle.dumps(traceback.format_exc()[-1500:])
    while report:
        report = report[write(writable, report) :]
    os._exit(code)


def _ended(process: int, readable: int) -> Ended:
    with open(readable, "rb") as stream:
        data = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code == -signal.SIGALRM:
        return Ended(1, f"it did not end within {HANG} seconds")
    return Ended(code, pickle.loads(data) if data else None)
