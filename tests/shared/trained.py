"""What training leaves, and what `publish` made of it."""

from __future__ import annotations

from pathlib import Path

from noting_volume import Volume
from support import blob
from weightcache._store.partial_directory import BLOCK

DATA = blob(2 * BLOCK + 5)
FILES = {"config.json": b"{}", "model.bin": DATA, "vocab/.merges": b"", "vocab/words.txt": b"a b"}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def receipts(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob(".weightcache/receipts/*/*.json"))


def kinds(volume: Volume) -> list[str]:
    return [call.partition(":")[0] for call in volume.calls]
