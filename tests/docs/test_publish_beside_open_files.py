"""The page about publishing while a file is open: its app runs, and its second Volume keeps every reload working."""

from __future__ import annotations

import re
from pathlib import Path

from control_plane import ControlPlane, needs_namespaces

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/publish-beside-open-files.md"


def test_the_app_with_two_volumes(tmp_path: Path) -> None:
    needs_namespaces()
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "tagger.py").write_text(code)
    with ControlPlane(tmp_path / "plane") as plane:
        done = plane.client("-m", "modal", "run", str(tmp_path / "tagger.py"))
        [container] = plane.containers
        files = {volume.name: volume.files for volume in plane.volumes.values()}
    assert done.returncode == 0, done.stdout + done.stderr
    versions = re.findall(r"'([0-9a-f]{16})'", done.stdout)
    assert len(versions) == 2
    assert [f"tagger/{version}/tagger.pt" in files["my-models"] for version in versions] == [True, True]
    during = container.calls[: container.calls.index("FunctionPutOutputs")]
    assert during.count("VolumeCommit") == 2 * 2  # none fails, and none is checked
    assert "cannot be reloaded" not in container.log + done.stderr
