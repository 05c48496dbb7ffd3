"""What the tests of `add` and `pin` share: files to pin, and the manifest in the working directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hub import File
from support import blob
from weightcache._pinning.hash_remote import CHUNK

DATA = blob(300_001)
LARGE = blob(3 * CHUNK + 17, seed=3)
MODEL = File(DATA, lfs=True)
FILES: dict[str, Any] = {
    "config.json": b"{}\n",
    "model.safetensors": MODEL,
    "onnx/model.onnx": File(b"o" * 50, lfs=True),
}


def text() -> str:
    return Path("weights.toml").read_text()
