"""The example as it is deployed, with stand-ins for its weights."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import StandIns
    from origin import Origin

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion_crop"
DEFAULTS = (
    ("models/grounding_dino.py", r'size: Size = "full"', 'size: Size = "stand-in"'),
    ("models/sam.py", r'size: Size = "full"', 'size: Size = "stand-in"'),
    ("web/backend.py", "stand_ins: bool = False", "stand_ins: bool = True"),
)


def copy_example(folder: Path, stand_ins: StandIns, origin: Origin) -> Path:
    """Copy the example, let its manifest name the stand-ins at ``origin``, and return its app, which is as it was.

    Only defaults of the models are others: their size.
    """
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    serve_stand_ins(folder, stand_ins, origin)
    return folder / "app.py"


def serve_stand_ins(folder: Path, stand_ins: StandIns, origin: Origin) -> None:
    """Let a copy of the example build the stand-ins, and have them downloaded from ``origin``."""
    for file in stand_ins.files.rglob("*"):
        if file.is_file():
            origin.put(f"/{file.relative_to(stand_ins.files)}", file)
    manifest = stand_ins.manifest.read_text().replace(stand_ins.files.as_uri(), origin.url(""))
    (folder / "weights.toml").write_text(manifest)
    for name, full, small in DEFAULTS:
        if (folder / name).exists():
            text, times = re.subn(full, small, (folder / name).read_text())
            assert times, (name, full)
            (folder / name).write_text(text)
