"""When a checkpoint is ready, and what a call says that it did."""

from __future__ import annotations

import pytest

from support import one
from weightcache import Manifest
from weightcache._engine.checkpoint_task import CheckpointTask
from weightcache._store.inspect import READY, Inspection

CHECKPOINT = Manifest.load(one(b"data", "https://weights.example/a"))["sam2"]


def test_a_rehash_believes_no_receipt_before_the_bytes_are_hashed() -> None:
    task = CheckpointTask(CHECKPOINT, READY)
    assert (task.is_ready(rehash=False), task.is_ready(rehash=True)) == (True, False)
    task.examined({"weights.pt": 4})
    assert (task.is_ready(rehash=True), task.missing) == (True, [])


def test_what_has_no_receipt_is_ready_only_if_this_call_installed_it() -> None:
    task = CheckpointTask(CHECKPOINT, Inspection("unverified"))
    assert not task.is_ready(rehash=False)
    task.installed("adopted")
    assert task.is_ready(rehash=False)
    task.lost()
    assert not task.is_ready(rehash=False)


@pytest.mark.parametrize(
    ("state", "resumed", "outcome"),
    [("missing", False, "downloaded"), ("partial", True, "resumed"), ("damaged", False, "healed")],
)
def test_the_outcome_says_what_was_there(state: str, resumed: bool, outcome: str) -> None:
    task = CheckpointTask(CHECKPOINT, Inspection(state))  # type: ignore[arg-type]
    task.examined({})
    task.placed(CHECKPOINT.files[0], 4, resumed=resumed)
    task.installed("downloaded")
    assert task.report().outcome == outcome
