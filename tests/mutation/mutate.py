"""Change the library in small ways, one at a time, and count how many changes a quick subset of the tests notices.

    python tests/mutation/mutate.py --seed 0 --mutants 200    # `make mutants SEED=0 N=200`
    python tests/mutation/mutate.py --seed 0 --again          # only those that no such run has killed yet
    python tests/mutation/mutate.py --seed 0 --only NAME      # one of them, with the output of pytest

Everything happens in a copy of the project, in a temporary directory. A first run of the tests that mirror the four
folders records how long each takes and which lines it runs. It is repeated for the test files that have changed, or for
all if the library has. A mutant meets the tests that run its line: first those of the test file of its module, then
the others, the fastest first, as many as take `--seconds` together. Where there are no such tests (a line that runs in
another process) or where a line runs at the import (a constant of a module), it meets those that run any line of its
module. A test that hangs counts as one that fails. Tests with hypothesis run with few examples, always the same.

Each run of tests is a fork of a process that has imported pytest, because that import takes longer than most tests.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import runpy
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import hypothesis
import pytest
import requests  # noqa: F401 - for the forks, as is what follows
import trustme  # noqa: F401
from coverage import CoverageData
from hypothesis import Phase
from mutants import FOLDERS, PACKAGE, Mutant, path_of, sampled

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = PACKAGE.parent
CACHE = PROJECT / ".cache" / "mutants"
# The tests that mirror the folders, and those that tests/test_layout.py names for their modules.
TESTS = (
    *(f"tests/{folder[1:]}" for folder in FOLDERS),
    "tests/test_api.py",
    "tests/cli/test_adopt.py",
    "tests/prefetch/test_pause.py",
)
ELSEWHERE: dict[str, str] = runpy.run_path(str(PROJECT / "tests/test_layout.py"))["ELSEWHERE"]
SURVIVED = "survived"
SLOW = 1.5  # seconds: tests that take longer are left out
EXAMPLES = 2  # of a test with hypothesis, which makes 100 else, or a multiple of it; ended by SLOW, it would be flaky
PATIENCE = 20.0  # seconds that a run may take beside five times its usual time
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
        imported = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # hypothesis, before the fork
        arguments = ["-p", "no:randomly", "-p", "no:cacheprovider", *imported, *options, *tests]
        sys.stdout.flush()
        with tempfile.TemporaryFile() as output:
            process = os.fork()
            if not process:
                self._run_tests_and_exit(arguments, output.fileno(), compiled=compiled)
            descriptor = os.pidfd_open(process)
            ended, _, _ = select.select([descriptor], [], [], limit)
            os.close(descriptor)
            with suppress(ProcessLookupError):  # with every process that a test has left
                os.killpg(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            output.seek(0)
            return os.waitstatus_to_exitcode(status) if ended else None, output.read().decode(errors="replace")

    def _run_tests_and_exit(self, arguments: list[str], output: int, *, compiled: bool) -> NoReturn:
        status = 1
        try:
            os.setsid()
            os.chdir(self.folder)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.path.insert(0, str(self.folder))
            os.environ |= {"PYTHONPATH": str(self.folder), "COVERAGE_CORE": "ctrace"}
            sys.dont_write_bytecode = not compiled
            if not compiled:
                os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            few = hypothesis.settings(
                max_examples=EXAMPLES, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate)
            )
            hypothesis.settings.register_profile("mutants", few)
            hypothesis.settings.load_profile("mutants")
            status = int(pytest.main(arguments))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def write(self, module: str, source: bytes) -> None:
        """Replace a module; a compiled file of it can look current, because it is compared by size and second."""
        path = path_of(module, self.folder / "weightcache")
        path.write_bytes(source)
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            compiled.unlink()


def digest(paths: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()


def profile(copy: Copy) -> list[Test]:
    """Return the tests that a mutant may meet, from the cache where it is current."""
    cache = CACHE / "profile.json"
    CACHE.mkdir(parents=True, exist_ok=True)
    library = digest(list(PACKAGE.rglob("*.py")))
    known = json.loads(cache.read_text()) if cache.exists() else {}
    if known.get("library") != library:
        known = {"library": library, "files": {}}
    found = list[Test]()
    for path in test_files():
        name, current = str(path.relative_to(PROJECT)), digest([path])
        if known["files"].get(name, {}).get("digest") != current:
            known["files"][name] = {"digest": current, "tests": run_profile(copy, name)}
            cache.write_text(json.dumps(known))
        tests = known["files"][name]["tests"].items()
        found += [Test(name, seconds, frozenset(lines)) for name, (seconds, lines) in tests]
    return found


def test_files() -> list[Path]:
    found = list[Path]()
    for each in TESTS:
        found += sorted((PROJECT / each).glob("test_*.py")) if (PROJECT / each).is_dir() else [PROJECT / each]
    return found


def run_profile(copy: Copy, file: str) -> dict[str, tuple[float, list[str]]]:
    """Run a test file with coverage of each test; return time and lines of those that pass."""
    settings, data = copy.folder / "coverage-of-tests.ini", copy.folder / "coverage-of-tests"
    settings.write_text(f"[run]\nsource = weightcache\ndata_file = {data}\n")
    data.unlink(missing_ok=True)
    options = ["--cov", f"--cov-config={settings}", "--cov-context=test", "--cov-report=", f"--timeout={SLOW}"]
    started = time.monotonic()
    status, output = copy.pytest([file], *options, "-vv", "--durations=0", "--tb=no", limit=600)
    seconds = dict[str, float]()
    for value, name in DURATION.findall(output):
        seconds[name] = seconds.get(name, 0.0) + float(value)
    failed = [name for name in FAILURE.findall(output) if seconds.pop(name, None) is not None]
    print(f"{file}: {time.monotonic() - started:.0f} s, {len(seconds)} tests; left out: {len(failed)}", flush=True)
    if not seconds or not data.exists():
        print(f"no test of it is in the subset; pytest ended with {status}: {output[-500:]}")
        return {}
    lines: dict[str, set[str]] = {name: set() for name in seconds}
    measured = CoverageData(str(data))
    measured.read()
    for path in measured.measured_files():
        module = str(Path(path).relative_to(copy.folder / "weightcache").with_suffix(""))
        if module.startswith(FOLDERS):
            for line, contexts in measured.contexts_by_lineno(path).items():
                for name in {context.rpartition("|")[0] for context in contexts} & lines.keys():
                    lines[name].add(f"{module}:{line}")
    return {name: (round(value, 3), sorted(lines[name])) for name, value in seconds.items()}


def tests_for(mutant: Mutant, tests: list[Test], seconds: float) -> list[Test]:
    """Return the tests that run the line of ``mutant``, else those that run its module, else all.

    Those of the module's own test file come first, and then the fastest. Only as many as take ``seconds`` together, on
    the library as it is.
    """
    wanted = {f"{mutant.module}:{line}" for line in mutant.lines}
    found = [test for test in tests if test.lines & wanted]
    found = found or [test for test in tests if any(line.startswith(f"{mutant.module}:") for line in test.lines)]
    chosen, left = list[Test](), seconds
    folder, _, name = mutant.module.partition("/")
    own = f"{ELSEWHERE.get(mutant.module, f'tests/{folder[1:]}/test_{name}.py')}::"
    for test in sorted(found or tests, key=lambda test: (not test.name.startswith(own), test.seconds, test.name)):
        left -= test.seconds
        if left >= 0:
            chosen.append(test)
    return chosen


def run_mutant(copy: Copy, mutant: Mutant, chosen: list[Test], *, show: bool = False) -> str:
    """Return how a mutant ended: survived, hangs, or the test that killed it."""
    source = path_of(mutant.module).read_bytes()
    usual, longest = sum(test.seconds for test in chosen), max(test.seconds for test in chosen)
    copy.write(mutant.module, mutant.applied(source))
    options = ("-x", "-q", "--tb=short" if show else "--tb=no", f"--timeout={5 * longest + 5:.0f}")
    names = [test.name for test in chosen]
    status, output = copy.pytest(names, *options, limit=5 * usual + PATIENCE, compiled=False)
    if status == pytest.ExitCode.USAGE_ERROR:  # a name of a test has a constant in it that is another one now
        functions = list(dict.fromkeys(name.partition("[")[0] for name in names))
        status, output = copy.pytest(functions, *options, limit=5 * usual + PATIENCE, compiled=False)
    copy.write(mutant.module, source)
    if show:
        print(output)
    if status is None or "Timeout (>" in output or "Timeout >" in output:
        return "hangs"
    return SURVIVED if status == 0 else next(iter(FAILURE.findall(output)), f"pytest ended with {status}")


def report(mutants: list[Mutant], ends: dict[str, str]) -> None:
    print(f"\n{'folder':15} mutants  killed  of them hanging  survived  share")
    for folder in (*FOLDERS, ""):
        all_ends = [ends[each.name] for each in mutants if each.module.startswith(folder) and each.name in ends]
        hanging, survived = all_ends.count("hangs"), all_ends.count(SURVIVED)
        dead = len(all_ends) - survived
        share = dead / max(1, len(all_ends))
        print(f"{folder or 'all':15} {len(all_ends):7} {dead:7} {hanging:16} {survived:9} {share:6.1%}")
    for each in mutants:
        if ends.get(each.name) == SURVIVED:
            print(each.described(path_of(each.module).read_bytes()))


def run_all(copy: Copy, mutants: list[Mutant], seconds: float) -> Iterator[tuple[Mutant, str]]:
    """Yield each mutant, and how it ended."""
    tests = profile(copy)
    names = sorted({test.name.partition("::")[0] for test in tests})
    copy.pytest(names, "--collect-only", "-q", limit=600)  # compiles everything once, instead of for each mutant
    for mutant in mutants:
        started = time.monotonic()
        end = run_mutant(copy, mutant, tests_for(mutant, tests, seconds))
        print(f"{time.monotonic() - started:5.1f} s  {mutant.name}  {end}", flush=True)
        yield mutant, end


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutants", type=int, default=200, metavar="N")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the tests of one mutant may take")
    parser.add_argument("--again", action="store_true", help="only those that no run with this seed has killed yet")
    parser.add_argument("--only", metavar="NAME", help="one of them")
    arguments = parser.parse_args()
    started, mutants = time.monotonic(), sampled(arguments.mutants, arguments.seed)
    results = CACHE / f"seed-{arguments.seed}.json"
    ends: dict[str, str] = json.loads(results.read_text()) if arguments.again else {}
    todo = [each for each in mutants if ends.get(each.name, SURVIVED) == SURVIVED]
    todo.sort(key=lambda each: each.name in ends)  # first those that no run has come to
    with tempfile.TemporaryDirectory() as temporary:
        copy = Copy(Path(temporary) / "project")
        if arguments.only:
            for each in todo:
                if each.name == arguments.only:
                    print(each.described(path_of(each.module).read_bytes()))
                    tests = tests_for(each, profile(copy), arguments.seconds)
                    run_mutant(copy, each, tests, show=True)
            return 0
        for mutant, end in run_all(copy, todo, arguments.seconds):
            ends[mutant.name] = end
            results.write_text(json.dumps(ends, indent=1))
    report(mutants, ends)
    print(f"{time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
