"""Run a command that finds no Modal but one on this machine: the control plane that the tests use.

    python tests/system/local_modal.py bash    # a shell, in which `modal deploy app.py` and `modal run app.py` work

The client, the entrypoint of the containers and the app are the real ones. The images are not: each container has the
Python and the packages of this environment. Volumes last until the command ends. Containers need a mount namespace, so
run it as root on Linux.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "fakes"), str(TESTS / "shared"), str(TESTS.parent / "examples")]

from control_plane import ControlPlane  # noqa: E402 - the folders above have it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, help="the program and its arguments", metavar="COMMAND ..."
    )
    command = parser.parse_args().command
    if not command:
        parser.error("no command: try `bash`")
    if os.geteuid() != 0:
        parser.error("containers need a mount namespace: run it as root")
    with tempfile.TemporaryDirectory() as folder, ControlPlane(Path(folder, "plane")) as plane:
        own = Path(sys.executable).parent
        environment = plane.outside() | {"PATH": f"{own}{os.pathsep}{os.environ['PATH']}"}
        try:
            status = subprocess.run(command, env=environment, check=False).returncode
        except OSError as error:
            parser.error(f"{command[0]}: {error.strerror}")
        if status:  # `modal run` shows the logs of its containers; a call of a deployed app does not
            for container in plane.containers:
                print(*(f"{container.task}: {line}" for line in container.log.splitlines()), sep="\n", file=sys.stderr)
        return status


if __name__ == "__main__":
    raise SystemExit(main())
