"""Run the tests of Modal's client with its oldest supported version, or with the newest one (``--newest``).

The suite itself runs with the version that pyproject.toml pins. A failure with the oldest version makes this exit with
1: ``make test`` ends with it. The newest one may be newer than everything here: it is reported, and never fails.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from other_pythons import REPOSITORY, run

OLDEST = "1.5.0"  # of the versions that weightcache/modal/client_version.py accepts
TESTS = (
    "tests/fakes/test_control_plane.py",
    "tests/fakes/test_control_plane_apps.py",
    "tests/fakes/test_control_plane_sandboxes.py",
    "tests/modal/test_weight_volume.py",
    "tests/modal/test_fill.py",
    "tests/modal/test_client_version.py",
    "tests/runtime/test_container_timeout.py",
    "tests/cli/test_modal_runner.py",
)
PYTEST = ("-m", "pytest", "-q", "--no-header", "-p", "no:randomly", "--numprocesses", "2")


def prepare(name: str, requirement: str) -> tuple[Path, str]:
    """Return the environment's python, and what went wrong (or nothing)."""
    home = REPOSITORY / f".venv-modal-{name}"
    python, stamp = home / "bin" / "python", home / ".test"
    is_current = stamp.exists() and stamp.stat().st_mtime > (REPOSITORY / "pyproject.toml").stat().st_mtime
    steps: list[tuple[str | Path, ...]] = [] if python.exists() else [(sys.executable, "-m", "venv", home)]
    if not is_current:
        steps.append((python, "-m", "pip", "install", "--quiet", "--editable", ".[test]"))
    if not is_current or name == "newest":
        steps.append((python, "-m", "pip", "install", "--quiet", "--upgrade", requirement))  # not the pinned version
    for step in steps:
        if (done := run(*step)).returncode:
            return python, done.stdout
    stamp.touch()
    return python, ""


def version_in(python: str | Path) -> str:
    return run(python, "-c", "import modal; print(modal.__version__)").stdout.strip().splitlines()[-1]


def main(name: str) -> int:
    python, problem = prepare(name, f"modal=={OLDEST}" if name == "oldest" else "modal")
    if problem:
        print(f"modal, {name}: cannot be prepared\n{problem}", flush=True)
        return 1
    version = version_in(python)
    if version == version_in(sys.executable):
        print(f"modal {version} ({name}) is the version of the other tests", flush=True)
        return 0
    began = time.monotonic()
    tests = run(python, *PYTEST, *TESTS)
    result = (re.findall(r"\d+ (?:passed|failed|error)[^\n]*", tests.stdout) or ["no result"])[-1]
    seconds = time.monotonic() - began
    print(f"modal {version} ({name}): {result} ({seconds:.0f} s, exit {tests.returncode})", flush=True)
    if tests.returncode:
        print(tests.stdout, flush=True)
    return tests.returncode


if __name__ == "__main__":
    try:
        is_newest = sys.argv[1:] == ["--newest"]
        code = main("newest" if is_newest else "oldest")
        sys.exit(0 if is_newest else code)
    except KeyboardInterrupt:
        sys.exit(130)
