"""Runs `weightcache` commands with Modal's real client, each in a fork of this process, and lets one end at a call.

It reads one request a line (JSON: ``words``, ``at``, ``after``), and answers with one line: ``code``, ``calls`` and
``text``. It has no threads, because Modal's client starts its own in the fork.
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import modal  # noqa: F401  (before the fork)

import weightcache._engine.verify
import weightcache.cli.push  # noqa: F401
from call_layer import COUNTED, SENT, CallLayer
from forked_child import forked
from weightcache.cli.main import main


def answered(words: list[str], at: int, *, after: bool) -> dict[str, Any]:
    """Run one command, and return how it ended."""

    def work(report: int) -> Any:
        layer = CallLayer(at, after=after, report=report, counted=COUNTED | SENT)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
            code = main(words)
        return code, layer.calls, said.getvalue()

    ended = forked(work)
    if ended.code < 0:
        return {"code": ended.code, "calls": at, "text": ended.report[0]}
    code, calls, text = (70, 0, ended.report) if ended.code else ended.report
    return {"code": code, "calls": calls, "text": text}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(answered(asked["words"], asked["at"], after=asked["after"])), file=answers, flush=True)
