"""Sandboxes on the control plane of the tests, by the real client: as far as they start a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from control_plane import ControlPlane, needs_namespaces

CODE = """
import os, sys
import modal

app = modal.App.lookup("boxes", create_if_missing=True)
volume = modal.Volume.from_name("w", create_if_missing=True)
write = "echo $TOKEN $MODAL_TASK_ID $MODAL_IS_REMOTE > /data/shown; exit $CODE"
options = {"app": app, "image": modal.Image.debian_slim(), "volumes": {"/data": volume}}
for code in ("0", "7"):
    secrets = [modal.Secret.from_name("token"), modal.Secret.from_dict({"CODE": code})]
    box = modal.Sandbox.create("sh", "-c", write, secrets=secrets, **options)
    box.wait(raise_on_termination=False)
    print(box.returncode)
box = modal.Sandbox.create(**options)
print(box.poll())
box.terminate()
box.wait(raise_on_termination=False)
"""


@pytest.mark.parametrize("newer", ["0", "1"])
def test_a_sandbox_runs_its_command_on_a_volume(newer: str, tmp_path: Path) -> None:
    needs_namespaces()
    with ControlPlane(tmp_path / "plane") as plane:
        plane.secret("token", TOKEN="hush")
        code = f"import os; os.environ['MODAL_SANDBOX_V2'] = {newer!r}\n{CODE}"
        done = plane.client("-c", code)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines() == ["0", "7", "None"]
        [volume] = plane.volumes.values()
        *_, second, third = plane.containers
        assert volume.read("shown").decode() == f"hush {second.task}\n"  # as on Modal, it is no Function
        assert third.process
        assert list(third.process.args)[-2:] == ["sleep", "infinity"]  # without a command it runs until it is ended
        assert third.process.poll() is not None
