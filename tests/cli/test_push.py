"""`push`: what a root that others can write to does to it; tests/campaign/test_push_campaign.py has its crashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support import blob, one, sha256
from weightcache import ensure
from weightcache.cli import push

DATA = blob(1000)


class PlainVolume:
    """What `push` calls of a Volume that is empty; it keeps the last file that was written."""

    def __init__(self) -> None:
        self.last = b""

    def listdir(self, *_: Any, **__: Any) -> list[Any]:
        return []

    def remove_file(self, _: str) -> None:
        pass

    def batch_upload(self, *, force: bool) -> PlainVolume:
        return self

    def __enter__(self) -> PlainVolume:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def put_file(self, source: Any, _: str) -> None:
        self.last = source.read() if hasattr(source, "read") else Path(source).read_bytes()


@pytest.fixture
def volume(run: Any, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlainVolume:
    """An empty Volume, and a root with a checkpoint that a manifest declares."""
    (tmp_path / "a").write_bytes(DATA)
    manifest = one(DATA, f"file://{tmp_path}/a")
    [(name, entry)] = manifest["checkpoints"].items()
    lines = [f"[checkpoints.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in entry.items())]
    Path("weights.toml").write_text("\n".join(lines))
    ensure("weights.toml", root=root, progress=False)
    found = PlainVolume()
    monkeypatch.setattr(push, "connect", lambda _: found)
    return found


@pytest.mark.parametrize(
    ("sources", "uploaded"),
    [
        (5, []),
        (None, []),
        ("https://h/x", []),
        ({"a": 1}, []),
        ([5, ["x"], "https://h/x"], ["https://h/x"]),
        (["https://user:SeCrEt@h/x?sig=SeCrEt"], ["https://h/x"]),
    ],
    ids=str,
)
def test_a_receipt_with_anything_as_its_sources(
    sources: Any, uploaded: list[str], volume: PlainVolume, run: Any, root: Path
) -> None:
    [receipt] = root.glob(f".weightcache/receipts/*/{sha256(DATA)}.json")
    receipt.write_text(json.dumps({**json.loads(receipt.read_text()), "sources": sources}))
    code, _, err = run("push", "--volume", "v", "--root", root)
    assert (code, json.loads(volume.last)["sources"]) == (0, uploaded), err


def test_a_file_that_is_deleted_before_it_is_uploaded(
    volume: PlainVolume, run: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = push._verified

    def deleted(*words: Any) -> Any:
        found = verified(*words)
        [path] = (path for path in root.glob("[a-z]*/*/*") if path.is_file())
        path.unlink()
        return found

    monkeypatch.setattr(push, "_verified", deleted)
    code, _, err = run("push", "--volume", "v", "--root", root)
    assert (code, f"cannot read {root}" in err, volume.last) == (5, True, b""), err
