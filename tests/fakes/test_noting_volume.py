"""The fake Volume notes what the root holds at each call, and fails as often as it is asked to."""

from __future__ import annotations

from pathlib import Path

import pytest

from noting_volume import Volume
from support import one
from weightcache import ensure


def test_each_call_is_noted_with_what_the_root_holds(root: Path, tmp_path: Path) -> None:
    root.mkdir(exist_ok=True)
    volume = Volume(root)
    volume.reload()
    (tmp_path / "source").write_bytes(b"data")
    ensure(one(b"data", f"file://{tmp_path}/source"), root=root, progress=False)
    volume.commit()
    assert volume.calls == ["reload: 0 published, 0 receipts", "commit: 1 published, 1 receipts"]


def test_it_fails_so_many_times_and_notes_that_too(root: Path) -> None:
    root.mkdir(exist_ok=True)
    volume = Volume(root, commit=2)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="open files"):
            volume.commit()
    volume.commit()
    volume.reload()
    assert [call.partition(":")[0] for call in volume.calls] == ["commit", "commit", "commit", "reload"]
