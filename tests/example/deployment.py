"""The example as it is deployed, with stand-ins for its weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import StandIns
    from origin import Origin

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion_crop"


def copy_example(folder: Path, stand_ins: StandIns, origin: Origin) -> Path:
    """Copy the example, let its manifest name the stand-ins at ``origin`` and its app know the size of the models."""
    for file in stand_ins.files.rglob("*"):
        if file.is_file():
            origin.put(f"/{file.relative_to(stand_ins.files)}", file)
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    manifest = stand_ins.manifest.read_text().replace(stand_ins.files.as_uri(), origin.url(""))
    (folder / "weights.toml").write_text(manifest)
    text = (folder / "app.py").read_text()
    assert text.count("reading=reading,") == 1
    (folder / "app.py").write_text(text.replace("reading=reading,", "reading=reading, stand_ins=True,"))
    return folder / "app.py"
