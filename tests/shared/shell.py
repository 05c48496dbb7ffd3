"""The shell blocks of a page, and the commands that they name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def commands(folder: Path, *names: str) -> Path:
    """Make a directory for PATH, in which each name is a command that runs the module of this Python; return it."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {name} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


def shell(text: str, directory: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a block as a user pastes it, but stop at the first command that fails."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
