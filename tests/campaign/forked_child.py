"""Forks a child for each step of the campaign, and returns what it reports: nothing is imported twice."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

HANG = 60  # seconds after which a child counts as one that does not end


class Ended(NamedTuple):
    """How a child ended: its exit code (negative for a signal), and what it reported."""

    code: int
    report: Any


def forked(work: Callable[[int], Any]) -> Ended:
    """Run ``work`` in a forked child; it gets a descriptor for its report, or returns the report.

    An exception is reported as text, with exit code 1.
    """
    readable, writable = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if not process:
        os.close(readable)
        signal.alarm(HANG)
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
    os.close(writable)
    data = b""
    with open(readable, "rb") as stream:
        data = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code == -signal.SIGALRM:
        return Ended(1, f"it did not end within {HANG} seconds")
    return Ended(code, pickle.loads(data) if data else None)
