"""The page about an old note: its commands run with today's client, and the names that it calls old are refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import modal
import pytest

from control_plane import ControlPlane
from shell import commands, shell

PAGE = (Path(__file__).resolve().parents[2] / "docs/from-the-note.md").read_text()
OLD = {"keep_warm": 1, "container_idle_timeout": 600, "concurrency_limit": 4, "allow_concurrent_inputs": 4}
START = """
import modal
app = modal.App('note')
image = modal.Image.debian_slim()
model_volume = modal.Volume.from_name('v')
"""


def test_the_commands_run(plane: ControlPlane, tmp_path: Path) -> None:
    [block] = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "notes.txt").write_text("x")
    volume = plane.volumes[plane.volume("fashion-models")]
    for path in ("notes.txt", "sam2/sam2_hiera_large.pt"):
        volume.put(path, tmp_path / "notes.txt")
    tools = commands(tmp_path / "bin", "modal")
    environment = plane.outside() | {"PATH": f"{tools}:{os.environ['PATH']}"}
    done = shell(block, tmp_path, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sam2_hiera_large.pt" in done.stdout
    assert (tmp_path / "copy-of-notes.txt").read_text() == "x"
    assert "notes.txt" not in volume.files
    assert volume not in plane.volumes.values()

    old = shell("modal volume get fashion-models", tmp_path, environment)
    assert old.returncode == 2
    assert "REMOTE_PATH" in old.stdout + old.stderr


def test_the_settings_of_today_are_taken() -> None:
    [block] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {"__name__": "note"}
    exec(compile(START + block, "the code of the page", "exec"), names)
    assert isinstance(names["fastapi_app"], modal.Function)
    assert re.findall(r"# was (\w+)", block) == list(OLD)


@pytest.mark.parametrize("name", OLD)
def test_an_old_name_is_refused(name: str) -> None:
    assert f"`{name}" in PAGE
    options: dict[str, Any] = {name: OLD[name], "serialized": True}
    with pytest.raises(modal.exception.DeprecationError):
        modal.App("note").function(**options)(lambda: None)
