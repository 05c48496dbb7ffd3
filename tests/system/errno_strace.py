"""Let the kernel fail in a process of its own: strace stands between it and its system calls."""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from errno_injection import SCENARIOS, BrokenError, Case, Outcome, World, open_in, short_waits
from weightcache import WeightCacheError

if TYPE_CHECKING:
    from types import TracebackType

HANG = 30.0  # seconds


class Traced:
    """A process that forks a child for each case, so that no case imports anything."""

    def __init__(self, world: World) -> None:
        self._world = world
        command = [sys.executable, __file__, world.folder]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._ask, self._answers = self._server.stdin, self._server.stdout
        assert self._answers.readline() == "ready\n"

    def __enter__(self) -> Traced:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ask.close()
        self._answers.close()
        self._server.wait(60)

    def attempt(self, _: World, case: Case) -> Outcome:
        """Run one case.

        Raises:
            BrokenError: A promise is broken.
        """
        root = self._world.prepared(case.scenario)
        self._ask.write(f"{case.scenario} {root}\n")
        self._ask.flush()
        child = int(self._answers.readline())
        _wait_for(child, "State:\tT")
        inject = f"inject={case.call}:error={case.error}:when={case.when}{'+' * case.lasting}"
        command = ["strace", "-q", "-f", "-p", str(child), "-o", os.devnull, "-e", f"trace={case.call}", "-e", inject]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            try:
                _wait_for(child, "TracerPid:\t", unless="TracerPid:\t0\n", tracer=tracer)
                os.kill(child, signal.SIGCONT)
                hangs = not select.select([self._answers], [], [], HANG)[0]
            finally:
                if tracer.poll() is None and not select.select([self._answers], [], [], 0)[0]:
                    os.kill(child, signal.SIGKILL)
            said, text, open_then, threads = json.loads(self._answers.readline())
        if hangs:
            raise BrokenError("it hangs")
        if said == "not ours":
            raise BrokenError(f"an exception that is not ours: {text}")
        if open_then and case.call != "close":  # strace's close fails without closing anything
            raise BrokenError(f"open in the root: {open_then}")
        if threads:
            raise BrokenError(f"threads are left: {threads}")
        self._world.judge(case.scenario, root)
        shutil.rmtree(os.path.dirname(root), ignore_errors=True)
        return Outcome(said, 0, text)


def _wait_for(process: int, line: str, unless: str = "", tracer: subprocess.Popen[str] | None = None) -> None:
    until = time.monotonic() + HANG
    while True:
        text = Path(f"/proc/{process}/status").read_text()
        if line in text and not (unless and unless in text):
            return
        if tracer is not None and tracer.poll() is not None:
            raise PermissionError(f"strace does not work here: {tracer.communicate()[1][-200:]}")
        assert time.monotonic() < until, text
        time.sleep(0.002)


def _act(world: World, scenario: str, root: str) -> list[object]:
    said, text, open_then = "ok", "", list[str]()
    try:
        open_then = world.act(scenario, root).open
    except WeightCacheError as error:
        said, text = type(error).__name__, str(error)
    except BaseException:
        said, text = "not ours", traceback.format_exc()[-1500:]
    return [said, text, open_then]


def _child(world: World, scenario: str, root: str, answer: int) -> None:
    signal.raise_signal(signal.SIGSTOP)
    told = _act(world, scenario, root)
    for thread in threading.enumerate():
        if thread.name.startswith("weightcache"):
            thread.join(5)
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("weightcache")]
    with suppress(OSError):  # the fault goes on, and nothing can be seen
        told[2] = told[2] or open_in(root)
    os.writev(answer, [json.dumps([*told, left]).encode()])  # a call that never fails here


def _serve(world: World) -> None:
    for scenario in SCENARIOS:  # what it imports is imported here
        world.act(scenario, world.prepared(scenario))
    print("ready", flush=True)
    for line in sys.stdin:
        scenario, root = line.split()
        answers, answer = os.pipe()
        child = os.fork()
        if not child:
            os.close(answers)
            try:
                _child(world, scenario, root, answer)
            finally:
                os._exit(0)
        os.close(answer)
        print(child, flush=True)
        told = b""
        while part := os.read(answers, 65536):
            told += part
        os.close(answers)
        os.waitpid(child, 0)
        print((told or b'["not ours", "it was killed", [], []]').decode(), flush=True)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    short_waits()
    _serve(World(sys.argv[1], "warm"))
