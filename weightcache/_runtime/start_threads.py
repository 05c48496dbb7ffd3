"""Threads beside the caller's, in a program that may not have any.

None starts where the limit of processes is reached or the interpreter ends; and a subinterpreter may have none at all,
or none that are daemons. Each of these is a `RuntimeError` of Python; its text says which.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("weightcache")


def daemon_threads_allowed() -> bool:
    """Whether threads may be daemons here: at the end of the interpreter nothing waits for those."""
    try:
        threading.Thread(daemon=True)
    except RuntimeError:
        return False
    return True


def thread_error_hint(error: RuntimeError) -> str:
    """Return what to do about a thread that could not be started."""
    text = str(error)
    if "shutdown" in text:
        return "call it before the program ends, not from atexit or from a thread that outlives the main thread"
    if "interpreter" in text:
        return "call it in the main interpreter"
    return "raise the limit of processes (ulimit -u, or that of the container)"


def run_in_threads(run: Callable[[], None], threads: int, name: str, failed: list[BaseException]) -> None:
    """Do the same work in this thread and in up to ``threads`` more, and wait for all of them.

    Args:
        run: Takes one part of the work after another until none is left, or ``failed`` holds anything.
        threads: How many more are wanted. Without any, this thread does everything.
        name: What they are called.
        failed: Gets what ends this thread early, so that the others end too.
    """
    begun = list[threading.Thread]()
    try:
        for number in range(threads):
            thread = threading.Thread(target=run, name=f"{name}-{number}")
            thread.start()
            begun.append(thread)
    except RuntimeError as error:
        _log.info("%s goes on with %d threads: %s", name, len(begun) + 1, error)
    try:
        run()
        for thread in begun:
            thread.join()
    except BaseException as error:
        failed.append(error)
        for thread in begun:
            thread.join()
        raise
