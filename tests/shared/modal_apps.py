"""Run an app with the real client against the control plane of the tests, and see what its Volumes hold."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from control_plane import ControlPlane, needs_namespaces

RUN = """

@app.local_entrypoint()
def main():
    import json
    print("REPORTED", json.dumps([each.remote() for each in (CALLS)]))
"""


def modal_client(plane: ControlPlane, folder: Path, code: str, verb: str) -> subprocess.CompletedProcess[str]:
    """Write the app into ``folder``, and ``run`` or ``deploy`` it."""
    (folder / "uses.py").write_text(code)
    return plane.client("-m", "modal", verb, str(folder / "uses.py"))


def modal_run(plane: ControlPlane, folder: Path, code: str, calls: str) -> list[Any]:
    """Run the app and return what each of ``calls``, which are called in turn, returned."""
    needs_namespaces()
    done = modal_client(plane, folder, code + RUN.replace("CALLS", calls), "run")
    assert done.returncode == 0, done.stdout + done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("REPORTED ")]
    found: list[Any] = json.loads(line.removeprefix("REPORTED "))
    return found


def held(plane: ControlPlane, name: str) -> list[str]:
    """What a Volume holds, but the library's own notes."""
    [volume] = [each for each in plane.volumes.values() if each.name == name]
    return sorted(path for path in volume.files if ".weightcache/" not in path)
