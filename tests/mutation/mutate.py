"""Change the library in small ways, one at a time, and count how many changes a quick subset of the tests notices.

    python tests/mutation/mutate.py --seed 0 --mutants 200    # `make mutants SEED=0 N=200`
    python tests/mutation/mutate.py --seed 0 --survivors      # only those that survived the last such run
    python tests/mutation/mutate.py --seed 0 --only NAME      # one of them, with the output of pytest

Everything happens in a copy of the project, in a temporary directory. A first run of the tests records how long each
takes and which lines it runs; it is repeated for the test files that have changed, or for all if the library has. The
subset is chosen from that: the tests that run most lines in least time, until it takes `--seconds`. Each mutant then
meets the tests of the subset that run its line, the fastest first. Where there are no such tests (a constant of a
module, a line that runs in another process), it meets those that run any line of its module. A test that hangs counts
as one that fails.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from coverage import CoverageData
from mutants import FOLDERS, PACKAGE, Mutant, path_of, sampled

PROJECT = PACKAGE.parent
CACHE = PROJECT / ".cache" / "mutants"
# The tests that mirror the four folders, and those that tests/test_layout.py names for modules of these folders.
TESTS = (
    *(f"tests/{folder[1:]}" for folder in FOLDERS),
    "tests/test_api.py",
    "tests/cli/test_adopt.py",
    "tests/prefetch/test_pause.py",
)
SLOW = 3.0  # seconds: no test that takes longer is in the subset
PATIENCE = 30.0  # seconds that a run may take beside five times its usual time
DURATION = re.compile(r"^\s*([\d.]+)s (?:call|setup|teardown)\s+(\S.*)$", re.MULTILINE)
FAILURE = re.compile(r"^(?:FAILED|ERROR) (\S+(?:\[.*?\])?)(?: - .*)?$", re.MULTILINE)


class Test(NamedTuple):
    """What is known of a test: how long it takes, in seconds, and the lines that it runs, as module:line."""

    name: str
    seconds: float
    lines: frozenset[str]


class Copy:
    """A copy of the project that mutants may change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "demo-volume")
        shutil.copytree(PROJECT, folder, ignore=ignored, symlinks=True)

    def pytest(self, tests: list[str], *options: str, limit: float, compiled: bool = True) -> tuple[int | None, str]:
        """Run tests in their given order; return the exit status, or None where they took too long, and the output."""
        command = [sys.executable, "-m", "pytest", "-p", "no:randomly", "-p", "no:cacheprovider", *options, *tests]
        environment = os.environ | {"PYTHONPATH": str(self.folder), "COVERAGE_CORE": "ctrace"}
        if not compiled:
            environment["PYTHONDONTWRITEBYTECODE"] = "1"
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )
            try:
                status: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = None
            finally:  # with every process that a test has left
                _kill_group(process.pid)
                process.wait()
            output.seek(0)
            return status, output.read()

    def write(self, module: str, source: bytes) -> None:
        """Replace a module; a compiled file of it can look current, because it is compared by size and second."""
        path = path_of(module, self.folder / "weightcache")
        path.write_bytes(source)
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            compiled.unlink()


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def digest(paths: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()


def profile(copy: Copy) -> list[Test]:
    """Return all tests that may be in the subset, from the cache where it is current."""
    cache, files = CACHE / "profile.json", list[Path]()
    for each in TESTS:
        files += sorted((PROJECT / each).glob("test_*.py")) if (PROJECT / each).is_dir() else [PROJECT / each]
    current = {str(path.relative_to(PROJECT)): digest([path]) for path in files}
    library = digest(list(PACKAGE.rglob("*.py")))
    known = json.loads(cache.read_text()) if cache.exists() else {}
    if known.get("library") != library:
        known = {"library": library, "files": {}}
    stale = [name for name, value in current.items() if known["files"].get(name, {}).get("digest") != value]
    if stale:
        print(f"running {len(stale)} test files to see how long their tests take and what they run", flush=True)
        for name, tests in run_profile(copy, stale).items():
            known["files"][name] = {"digest": current[name], "tests": tests}
        CACHE.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(known))
    return [
        Test(name, seconds, frozenset(lines))
        for file, value in sorted(known["files"].items())
        if file in current
        for name, (seconds, lines) in value["tests"].items()
    ]


def run_profile(copy: Copy, files: list[str]) -> dict[str, dict[str, tuple[float, list[str]]]]:
    """Run test files with coverage of each test; return time and lines of those that pass, by file and name."""
    settings, data = copy.folder / "coverage-of-tests.ini", copy.folder / "coverage-of-tests"
    settings.write_text(f"[run]\nsource = weightcache\ndata_file = {data}\n")
    options = ["--cov", f"--cov-config={settings}", "--cov-context=test", "--cov-report=", f"--timeout={SLOW}"]
    _, output = copy.pytest(files, *options, "-q", "-vv", "--durations=0", "--durations-min=0", "--tb=no", limit=3600)
    seconds = Counter[str]()
    for value, name in DURATION.findall(output):
        seconds[name] += float(value)
    for name in FAILURE.findall(output):
        print(f"not in the subset, because it failed or took over {SLOW:.0f} s: {name}")
        seconds.pop(name, None)
    lines: dict[str, set[str]] = {name: set() for name in seconds}
    measured = CoverageData(str(data))
    measured.read()
    for path in measured.measured_files():
        module = str(Path(path).relative_to(copy.folder / "weightcache").with_suffix(""))
        if module.startswith(FOLDERS):
            for line, contexts in measured.contexts_by_lineno(path).items():
                for name in {context.rpartition("|")[0] for context in contexts} & lines.keys():
                    lines[name].add(f"{module}:{line}")
    found: dict[str, dict[str, tuple[float, list[str]]]] = {file: {} for file in files}
    for name, value in seconds.items():
        found[name.partition("::")[0]][name] = (round(value, 3), sorted(lines[name]))
    return found


def subset(tests: list[Test], seconds: float) -> list[Test]:
    """Choose tests that together take ``seconds``: first those that run most new lines a second, then the fastest."""
    usable = {test.name: test for test in tests if test.seconds <= SLOW}
    heap = [(-len(test.lines) / (test.seconds + 0.01), name) for name, test in usable.items()]
    heapq.heapify(heap)
    chosen, seen, left = dict[str, Test](), set[str](), seconds
    while heap:
        _, name = heapq.heappop(heap)
        test = usable[name]
        gain = -len(test.lines - seen) / (test.seconds + 0.01)
        if heap and gain > heap[0][0]:
            if gain:
                heapq.heappush(heap, (gain, name))
        elif gain and test.seconds <= left:
            chosen[name], left = test, left - test.seconds
            seen |= test.lines
    for test in sorted(usable.values(), key=lambda test: (test.seconds, test.name)):
        if test.name not in chosen and test.seconds <= left:
            chosen[test.name], left = test, left - test.seconds
    return sorted(chosen.values(), key=lambda test: (test.seconds, test.name))


def tests_for(mutant: Mutant, tests: list[Test]) -> list[Test]:
    """Return the tests that run the line of ``mutant``, else those that run its module, else those of its folder."""
    wanted = {f"{mutant.module}:{line}" for line in mutant.lines}
    found = [test for test in tests if test.lines & wanted]
    found = found or [test for test in tests if any(line.startswith(f"{mutant.module}:") for line in test.lines)]
    return found or [test for test in tests if test.name.startswith(f"tests/{mutant.folder[1:]}/")]


def run_mutant(copy: Copy, mutant: Mutant, tests: list[Test], *, show: bool = False) -> str:
    """Return how a mutant ended: killed, hangs, or survived."""
    source, chosen = path_of(mutant.module).read_bytes(), tests_for(mutant, tests)
    usual, longest = sum(test.seconds for test in chosen), max(test.seconds for test in chosen)
    copy.write(mutant.module, mutant.applied(source))
    options = ("-x", "-q", "--tb=short" if show else "--tb=no", f"--timeout={5 * longest + 5:.0f}")
    names = [test.name for test in chosen]
    status, output = copy.pytest(names, *options, limit=5 * usual + PATIENCE, compiled=False)
    copy.write(mutant.module, source)
    if show:
        print(output)
    if status is None or "Timeout (>" in output or "Timeout >" in output:
        return "hangs"
    return "survived" if status == 0 else "killed"


def without_failures(copy: Copy, tests: list[Test]) -> list[Test]:
    """Run the subset on the library as it is, and return what passes; this also compiles everything once."""
    started = time.monotonic()
    _, output = copy.pytest([test.name for test in tests], "-q", "--tb=no", limit=3600)
    failed = set(FAILURE.findall(output))
    for name in failed:
        print(f"not in the subset, because it fails on the library as it is: {name}")
    print(f"the subset: {len(tests) - len(failed)} tests in {time.monotonic() - started:.0f} s", flush=True)
    return [test for test in tests if test.name not in failed]


def run_all(copy: Copy, mutants: list[Mutant], tests: list[Test], ends: dict[str, str], results: Path) -> None:
    for number, mutant in enumerate(mutants, 1):
        started = time.monotonic()
        ends[mutant.name] = end = run_mutant(copy, mutant, tests)
        print(f"{number:4} {end:8} {time.monotonic() - started:5.1f} s  {mutant.name}", flush=True)
        results.write_text(json.dumps(ends, indent=1))


def report(mutants: list[Mutant], ends: dict[str, str]) -> None:
    print(f"\n{'folder':15} mutants  killed  of them hanging  survived  share")
    for folder in (*FOLDERS, ""):
        count = Counter(ends[each.name] for each in mutants if each.module.startswith(folder) and each.name in ends)
        dead = count["killed"] + count["hangs"]
        share = dead / max(1, count.total())
        print(f"{folder or 'all':15} {count.total():7} {dead:7} {count['hangs']:16} {count['survived']:9} {share:6.1%}")
    for each in mutants:
        if ends.get(each.name) == "survived":
            print(each.described(path_of(each.module).read_bytes()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutants", type=int, default=200, metavar="N")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the subset of the tests may take")
    parser.add_argument("--survivors", action="store_true", help="only those that survived the last run with this seed")
    parser.add_argument("--only", metavar="NAME", help="one of them")
    arguments = parser.parse_args()
    started, mutants = time.monotonic(), sampled(arguments.mutants, arguments.seed)
    results = CACHE / f"seed-{arguments.seed}.json"
    ends: dict[str, str] = json.loads(results.read_text()) if arguments.survivors else {}
    if arguments.survivors:
        todo = [each for each in mutants if ends.get(each.name) == "survived"]
    else:
        todo = [each for each in mutants if arguments.only in (None, each.name)]
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder) / "project")
        tests = subset(profile(copy), arguments.seconds)
        if arguments.only:
            for each in todo:
                print(each.described(path_of(each.module).read_bytes()), run_mutant(copy, each, tests, show=True))
            return 0
        run_all(copy, todo, without_failures(copy, tests), ends, results)
    report(mutants, ends)
    print(f"{time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
