"""Run tests, or any command, inside gVisor, the sandbox that Modal uses.

    python tests/system/in_gvisor.py --sample            # what CI runs: a part of the tests, a few minutes
    python tests/system/in_gvisor.py tests/store -k root  # these arguments of pytest, in each build of gVisor
    python tests/system/in_gvisor.py --build trixie --command python3 -c 'print(1)'

Two builds of gVisor are taken from Debian's archive, by the machine's own apt, into ``.cache/gvisor``: the one of
Debian 12 (2022), where each process has another pid namespace and there is no boot id, and that of Debian 13 (2024).
Where there is no such apt, or this machine lets no sandbox start, the reason is printed and nothing runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
HOME = REPOSITORY / ".cache" / "gvisor"
BUILDS = {"bookworm": "ptrace", "trixie": "systrap"}  # release of Debian → the fastest platform of its gVisor
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
LIMIT, SAMPLE_LIMIT = 3600, 300  # seconds in one build

# What rests on the kernel: files, links, locks, processes, crashes, sockets and memory.
SAMPLE = (
    "tests/coordination/test_lock.py",
    *(f"tests/prefetch/test_{name}.py" for name in ("memory_limit", "prefetcher")),
    *(f"tests/runtime/test_{name}.py" for name in ("link_count_check", "owned_descriptors", "start_threads")),
    *(f"tests/store/test_{name}.py" for name in ("best_effort_removal", "partial_directory", "writeback")),
    *(f"tests/system/test_{name}.py" for name in ("gvisor", "processes")),
    "tests/views/test_symlinks.py",
)
# Simulations and documentation rest on no kernel; the others need FUSE, a browser or exact CPU times.
LEFT_OUT = ("docs", "example", "simulation", "slowvol", *(f"system/test_{name}.py" for name in ("cost", "fashion_app")))
PYTEST = (
    "-m",
    "pytest",
    "-q",
    "--no-header",
    "-p",
    "no:cacheprovider",
    "-m",
    "not fullsize and not transformers and not crash",
    *(f"--ignore=tests/{path}" for path in LEFT_OUT),
)


class UnavailableError(Exception):
    """There is no gVisor here; the text says why."""


def _apt(release: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run apt with lists of its own: it reads one release, and leaves those of the machine as they are."""
    home = HOME / release
    places = {"Etc::SourceList": home / "sources.list", "Etc::SourceParts": "/dev/null"}
    places |= {"State::Lists": home / "lists", "Cache": home / "cache"}
    options = [f"-oDir::{name}={place}" for name, place in places.items()]
    command = ["apt-get", *options, "-oAcquire::Languages=none", "-oAPT::Sandbox::User=root", *words]
    return subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)


def _archive() -> str:
    """Return where this machine's apt finds Debian's main archive."""
    if not shutil.which("apt-get") or not shutil.which("dpkg") or not os.path.exists(KEYS):
        raise UnavailableError("no apt of Debian on this machine")
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN)/$(LABEL)", "Created-By: Packages"]
    for line in subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines():
        place, _, whose = line.partition(" ")
        if whose == "Debian/Debian":
            return place
    raise UnavailableError("apt knows no archive of Debian; run apt-get update once")


def runsc(release: str) -> Path:
    """Return the program, which is downloaded the first time.

    Raises:
        UnavailableError: It cannot be downloaded.
    """
    home = HOME / release
    program = home / "package" / "usr" / "bin" / "runsc"
    if program.exists():
        return program
    archive = _archive()
    (home / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (home / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    (home / "sources.list").write_text(f"deb [signed-by={KEYS}] {archive} {release} main\n")
    for words in (("update", "-qq"), ("download", "-qq", "runsc")):
        done = _apt(release, *words)
        if done.returncode:
            raise UnavailableError(f"apt-get {words[0]}: {done.stderr.strip()[-300:]}")
    shutil.rmtree(home / "lists")  # 100 MB, of no more use
    package = next(home.glob("runsc_*.deb"))
    subprocess.run(["dpkg", "-x", package, home / "package"], check=True)
    return program


def sandbox(release: str) -> list[str]:
    """Return the words before a command that runs it in a sandbox of its own, which sees this machine's files.

    ``--network=none`` has a loopback interface, and nothing else. Without an overlay, files are reached as on a Volume:
    through another process.

    Raises:
        UnavailableError: No sandbox can be started here.
    """
    state = HOME / release / "state"
    state.mkdir(parents=True, exist_ok=True)
    flags = ["--network=none", f"--platform={BUILDS[release]}", f"--root={state}", "--ignore-cgroups"]
    flags += [] if os.geteuid() == 0 else ["--rootless"]
    words = [str(runsc(release)), *flags, "do", "-force-overlay=false"]
    tried = subprocess.run([*words, "true"], capture_output=True, text=True, check=False, timeout=60)
    if tried.returncode:
        why = (tried.stderr.strip() or tried.stdout.strip() or f"exit {tried.returncode}").splitlines()[-1]
        raise UnavailableError(f"no sandbox starts on this machine: {why[:300]}")
    return words


def run(release: str, command: list[str], limit: int) -> int:
    """Run a command in a sandbox, print what it prints, and return its exit status: 124 after ``limit`` seconds."""
    words = [*sandbox(release), "timeout", "-k", "10", str(limit), *command]
    # Through a pipe: the sandbox has an offset of its own, and would write over the beginning of a file.
    with subprocess.Popen(
        words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
    return process.returncode


def main() -> int:
    arguments = argparse.ArgumentParser(description="Run tests inside gVisor.")
    arguments.add_argument("--build", choices=BUILDS, action="append", help="Debian's release (default: each)")
    arguments.add_argument("--sample", action="store_true", help="the part that CI runs")
    arguments.add_argument("--command", action="store_true", help="run a command and not pytest")
    options, rest = arguments.parse_known_args()
    status = 0
    for release in options.build or BUILDS:
        began = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="gvisor-") as folder:
                # pytest lists what other runs have in the usual place, which fails in the older build if it changes.
                tests = [sys.executable, *PYTEST, f"--basetemp={folder}/tests", *(SAMPLE if options.sample else ())]
                tests += () if options.sample else ("--numprocesses", "2", "--dist", "worksteal")
                command = rest if options.command else [*tests, *rest]
                ended = run(release, command, SAMPLE_LIMIT if options.sample else LIMIT)
        except UnavailableError as error:
            print(f"gVisor of {release}: not run: {error}", flush=True)
            continue
        status = ended or status
        print(f"gVisor of {release}: exit {ended}, {time.monotonic() - began:.0f} s", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
