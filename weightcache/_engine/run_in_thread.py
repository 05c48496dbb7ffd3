"""Run a blocking call in a thread for `aensure`, and end it early if the task that waits for it is cancelled."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from weightcache._runtime.cancel import Cancel

T = TypeVar("T")


async def in_thread(call: Callable[[], T], cancel: Cancel) -> T:
    """Return what ``call`` returns. If this task is cancelled, set ``cancel`` and wait until ``call`` has ended."""
    # With the context of the task: in it, Modal keeps which input this container handles.
    work = asyncio.get_running_loop().run_in_executor(None, copy_context().run, call)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        cancel.set()
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:  # a second cancellation does not close the files any sooner
                continue
        with suppress(Exception):
            work.result()  # retrieved, so that asyncio does not log it; the caller no longer wants it
        raise
