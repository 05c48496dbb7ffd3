"""The page about an app without a Modal account: its commands and its code, as a newcomer pastes them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from control_plane import needs_namespaces
from shell import shell

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs/how-to/try-without-an-account.md").read_text()
PROGRAM = REPOSITORY / "tests/system/local_modal.py"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_the_page(tmp_path: Path) -> None:
    needs_namespaces()
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "tests").symlink_to(REPOSITORY / "tests")
    serve, run = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert "<<" not in code
    end = "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n"  # also where a command fails
    text = f"{end}{serve}cat > app.py <<'END'\n{code}END\n{run}".replace("8765", str(free_port()))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}  # where .venv has it installed from
    done = shell(text, tmp_path, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = re.findall(r"^50000000 bytes, (\w+)$", done.stdout, re.MULTILINE)
    assert outcomes == ["downloaded", "hit"]
    for outcome in outcomes:
        assert f"`50000000 bytes, {outcome}`" in PAGE


def test_what_it_says_of_a_wrong_command(tmp_path: Path) -> None:
    for command, wanted in (
        ([], "no command: try `bash`"),
        (["./not-there"], "./not-there: No such file or directory"),
    ):
        done = subprocess.run([sys.executable, PROGRAM, *command], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2
        assert wanted in done.stderr
