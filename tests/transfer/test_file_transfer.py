"""One file of a download, step by step. test_scheduler.py drives it through any order of events."""

from __future__ import annotations

from schedule import answered, read, scheduler_of_a_file


def test_what_a_revoked_task_has_of_a_block_counts_no_more() -> None:
    scheduler = scheduler_of_a_file()
    task = answered(scheduler)
    read(scheduler, task, 1000, 1.0)
    assert task.counts.present == 1000
    task.revoke()
    scheduler.release(task, 1.0)
    assert (task.counts.present, task.counts.received) == (0, 1000)


def test_what_a_hedge_has_of_a_block_never_counts() -> None:
    scheduler = scheduler_of_a_file()
    task = answered(scheduler)
    read(scheduler, task, 1000, 1.0)
    hedge = task.transfer.add_hedge(task, 1.0)
    scheduler.tasks.add(hedge)
    read(scheduler, hedge, 500, 2.0)
    assert task.counts.present == 1000
    scheduler.release(hedge, 2.0)
    assert (task.counts.present, task.counts.received) == (1000, 1500)
