"""A miss on a root that cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from origin import Origin
from support import blob, one
from weightcache import ensure, status

DATA = blob(4321)


def test_a_read_only_root_serves_two_names_of_one_digest(
    origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is ready, and the other has no receipt: the first is not taken for missing."""
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"), name="a")
    manifest["checkpoints"] |= one(DATA, origin.url("/a"), name="b")["checkpoints"]
    paths = dict(ensure(manifest, root=root, progress=False))
    next((root / ".weightcache/receipts/b").iterdir()).unlink()
    assert [each.state for each in status(manifest, root=root)] == ["ready", "unverified"]
    monkeypatch.setattr("weightcache._engine.run_miss.store_root.is_read_only", lambda _: True)
    weights = ensure(manifest, root=root, progress=False)
    assert dict(weights) == paths
    assert [weights.report[name].outcome for name in "ab"] == ["hit", "adopted"]
