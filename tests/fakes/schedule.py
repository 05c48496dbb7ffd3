"""What a `Scheduler` works on, without a disk and without a network."""

from __future__ import annotations

import random
from typing import Any

from weightcache import Manifest
from weightcache._runtime.tuning_constants import Settings
from weightcache._transfer.file_transfer import FileTask
from weightcache._transfer.mirror_stream import Body
from weightcache._transfer.scheduler import Scheduler
from weightcache._transfer.transfer_types import PART, Job

SIZE = 4000 * PART


class Nowhere:
    """A partial without a disk."""

    def open(self) -> None:
        pass

    def present(self) -> dict[int, int]:
        return {}


class Answer(Body):
    def __init__(self, task: FileTask) -> None:
        self.offset, self.end, self.total = task.segment.position, task.segment.end, SIZE

    def read_into(self, view: memoryview) -> int:
        raise NotImplementedError

    def close(self) -> None:
        pass


def scheduler_of_a_file(**limits: Any) -> Scheduler:
    """One file of one server."""
    manifest = {"checkpoints": {"c": {"urls": ["http://h/a"], "sha256": "0" * 64, "size": SIZE}}}
    checkpoint = Manifest.load(manifest)["c"]
    disk: Any = Nowhere()
    return Scheduler([Job(checkpoint, checkpoint.files[0], disk)], Settings(**limits), 180.0, random.uniform)


def answered(scheduler: Scheduler, now: float = 0.0) -> FileTask:
    """A task whose response has begun."""
    task = scheduler.assign(now)
    assert task is not None
    assert scheduler.on_response(task, Answer(task), now)
    return task


def read(scheduler: Scheduler, task: FileTask, count: int, now: float) -> None:
    """Let a task read ``count`` bytes of its next block."""
    scheduler.begin_block(task).on_read(count)
    scheduler.on_bytes(task, count, 0.0, now)
