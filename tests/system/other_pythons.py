"""Run the core tests on the oldest and the newest supported Python that are on this machine, or with ``--all`` on each.

Each has a virtual environment of its own, and the Python that runs this program is left out. A Python that is not here
is named and not run; one whose tests fail makes this exit with 1. ``make test`` calls it. ``--only 3.12`` runs that
version alone, and ``--oldest`` the oldest one with the oldest version of each requirement that pyproject.toml allows;
both exit with 1 if the Python is not here.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
AT_ONCE = 2
# What takes minutes and rests on no version of Python: the protocol on a model, and the machinery of the tests itself.
ONCE = (
    "campaign",
    "cli/test_modal_runner.py",
    "docs",
    "engine/test_execute_plan.py",
    "engine/test_publish_local_weights_failures.py",
    *(f"fakes/test_control_plane{part}.py" for part in ("", "_apps", "_sandboxes")),
    *(f"modal/test_{name}.py" for name in ("fill", "open_files", "several_volumes", "wrong_uses")),
    "mutation",
    "simulation",
    "slowvol",
    "store/test_file_operations.py",
    *(f"system/test_{name}.py" for name in ("apps", "containers", "cost", "distribution", "errno", "fashion_app")),
    *(f"transfer/test_{name}.py" for name in ("hedge", "mirrors", "scheduler")),
)
TESTS = (
    "-m",
    "pytest",
    "-q",
    "-x",
    "-m",
    "not crash and not fullsize and not transformers",
    "-p",
    "no:randomly",
    "--no-header",
    *(f"--ignore=tests/{path}" for path in ONCE),
)
REPOSITORY = Path(__file__).resolve().parents[2]
# The extras whose oldest versions the tests can run with: tests/fakes/hub.py speaks the protocol of a newer
# huggingface-hub, `make oldest-modal` runs the oldest Modal, and torch is large.
OLDEST_EXTRAS = ("completion", "sign", "tool")


def environment() -> dict[str, str]:
    """Return this environment without what would draw the children into our coverage or our own interpreter."""
    ours = ("COVERAGE_", "COV_CORE_", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "PYENV_VERSION")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def is_python(candidate: str | Path, version: str) -> bool:
    """Whether it runs and is that version: a pyenv shim can be there and do neither."""
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        answer = run(candidate, "-c", code)
    except OSError:
        return False
    return answer.returncode == 0 and answer.stdout.strip() == version


def find(version: str) -> str | None:
    candidates = [path] if (path := shutil.which(f"python{version}")) else []
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates += sorted((str(path) for path in pyenv.glob(f"versions/{version}.*/bin/python")), reverse=True)
    return next((candidate for candidate in candidates if is_python(candidate, version)), None)


def oldest_requirements() -> list[str]:
    """Return the oldest version of each requirement that pyproject.toml allows (Python 3.10 has no TOML reader)."""
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8").partition("\n[project.urls]")
    [dependencies] = re.findall(r"^dependencies = \[$(.*?)^\]$", project[0], re.MULTILINE | re.DOTALL)
    extras = re.findall(rf"^(?:{'|'.join(OLDEST_EXTRAS)}) = \[(.*?)\]", project[2], re.MULTILINE | re.DOTALL)
    found = re.findall(r'^\s*"([\w-]+)>=([\w.]+)', "\n".join([dependencies, *extras]), re.MULTILINE)
    return [f"{name}=={version}" for name, version in found]


def prepare(version: str, interpreter: str, *, oldest: bool = False) -> tuple[Path, str]:
    """Return the environment's python, and what went wrong (or nothing)."""
    home = REPOSITORY / (f".venv-{version}-oldest" if oldest else f".venv-{version}")
    python, stamp, constraints = home / "bin" / "python", home / ".test", home / "constraints.txt"
    if stamp.exists() and stamp.stat().st_mtime > (REPOSITORY / "pyproject.toml").stat().st_mtime:
        return python, ""
    if not is_python(python, version):
        shutil.rmtree(home, ignore_errors=True)
        if (made := run(interpreter, "-m", "venv", home)).returncode:
            return python, made.stdout
    constraints.write_text("\n".join(oldest_requirements() if oldest else []))
    install = ("-m", "pip", "install", "--quiet", "--editable", ".[test]", "--constraint", constraints)
    if (installed := run(python, *install)).returncode:
        return python, installed.stdout
    stamp.touch()
    return python, ""


def check(version: str, *, oldest: bool = False, must_exist: bool = False) -> bool:
    """Run the tests on one version and print one line; what they said only if they failed."""
    title = f"python{version} with the oldest requirements" if oldest else f"python{version}"
    if (interpreter := find(version)) is None:
        print(f"{title}: not present, not run", flush=True)
        return not must_exist
    python, problem = prepare(version, interpreter, oldest=oldest)
    if problem:
        print(f"{title}: cannot be prepared\n{problem}", flush=True)
        return False
    began = time.monotonic()
    tests = run(python, *TESTS)
    seconds = time.monotonic() - began
    if tests.returncode:
        print(f"{title}: FAILED after {seconds:.0f} s (exit {tests.returncode})\n{tests.stdout}", flush=True)
        return False
    passed = re.search(r"(\d+) passed", tests.stdout)
    count = passed[1] if passed else "?"
    print(f"{title}: passed ({count} tests, {seconds:.0f} s)", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the core tests on other versions of Python.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="every supported version but the one that runs this")
    which.add_argument("--only", choices=VERSIONS, help="this version alone")
    which.add_argument("--oldest", action="store_true", help="the oldest version, with the oldest requirements")
    options = parser.parse_args()
    if options.only or options.oldest:
        return 0 if check(options.only or VERSIONS[0], oldest=options.oldest, must_exist=True) else 1
    running = "{}.{}".format(*sys.version_info)
    others = [version for version in VERSIONS if version != running]
    if not options.all:  # those between the oldest and the newest rarely differ from both
        present = [version for version in others if find(version)]
        others = [version for version in others if version not in present[1:-1]]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return 0 if all(list(pool.map(check, others))) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
