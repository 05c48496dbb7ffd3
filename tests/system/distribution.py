"""Build the wheel and the sdist, check both, and run a part of the tests against the installed wheel: ``make dist``.

    python tests/system/distribution.py                # dist/ gets both
    python tests/system/distribution.py --tag v0.2.0   # for a release: refuses what must not be released

The build runs in this environment and needs no network. The wheel is made from the sdist, as pip makes it. Both are
built a second time, elsewhere and under other conditions, and must have the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import NamedTuple

from other_pythons import REPOSITORY, run

# Tests of the public API, the command line, downloads and formats: what a file that lacks in the wheel breaks.
TESTS = (
    "tests/test_api.py",
    "tests/test_errors.py",
    "tests/cli/test_command_spec.py",
    "tests/cli/test_main.py",
    "tests/manifest",
    "tests/runtime/test_import_spans.py",
    "tests/store/test_inspect.py",
    "tests/store/test_receipts.py",
    "tests/transfer/test_download.py",
)
BUILD = ("-m", "build", "--no-isolation", "--outdir")
PYTEST = ("-m", "pytest", "-q", "--no-header", "-p", "no:randomly", "-p", "no:cacheprovider")
WITHOUT_GIT = "1580601600"  # the time that hatchling gives files otherwise
NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", ".cache", ".*_cache", ".hypothesis", "__pycache__", "dist")


class RefusedError(Exception):
    """Something failed or must not be released; the message says what."""


class Distribution(NamedTuple):
    sdist: Path
    wheel: Path


def must(*command: str | Path, **variables: str) -> str:
    """Run a command in the project's folder, and return what it prints.

    Raises:
        RefusedError: It failed; the message has its output.
    """
    done = run("env", *(f"{name}={value}" for name, value in variables.items()), *command)
    if done.returncode:
        raise RefusedError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def source_date() -> str:
    """Return the seconds that every file of a distribution gets: those of the last commit."""
    commit = run("git", "log", "-1", "--format=%ct")
    return os.environ.get("SOURCE_DATE_EPOCH") or (WITHOUT_GIT if commit.returncode else commit.stdout.strip())


def build(source: Path, into: Path, **variables: str) -> Distribution:
    """Build the sdist of ``source``, and from it the wheel."""
    must(sys.executable, *BUILD, into, source, **variables)
    [sdist], [wheel] = into.glob("*.tar.gz"), into.glob("*.whl")
    return Distribution(sdist, wheel)


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def description(wheel: Path) -> str:
    """Return the text of the page on PyPI."""
    text = metadata(wheel).get_payload(decode=True)
    assert isinstance(text, bytes)
    return text.decode()


def check_contents(built: Distribution) -> None:
    """Check the metadata, the text for PyPI and the list of files."""
    must(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *built)
    expected = ("--toplevel", "weightcache", "--package", REPOSITORY / "weightcache")
    must(sys.executable, "-m", "check_wheel_contents", "--no-config", *expected, built.wheel)
    with zipfile.ZipFile(built.wheel) as archive:
        names = set(archive.namelist())
    version = metadata(built.wheel)["Version"]
    for name in ("weightcache/py.typed", f"weightcache-{version}.dist-info/licenses/LICENSE"):
        if name not in names:
            raise RefusedError(f"{built.wheel.name} has no {name}")


def copy_for_one_user(source: str, target: str) -> None:
    """Copy a file, with the time of the copy and without permissions for others."""
    shutil.copyfile(source, target)
    os.chmod(target, os.stat(source).st_mode & 0o700)


def build_again(built: Distribution, epoch: str, folder: Path) -> list[tuple[Path, Path]]:
    """Build once more from a copy, with other times, permissions and settings, the wheel with and without the sdist.

    Returns:
        Each file of ``built`` with each new one that must have the same bytes.
    """
    copy = folder / "elsewhere"
    shutil.copytree(REPOSITORY, copy, ignore=NOT_COPIED, copy_function=copy_for_one_user)
    other = {"TZ": "Asia/Kathmandu", "LC_ALL": "C", "PYTHONHASHSEED": "1", "SOURCE_DATE_EPOCH": epoch}
    again = build(copy, folder / "again", **other)
    must(sys.executable, *BUILD, folder / "direct", "--wheel", copy, **other)
    return [*zip(built, again, strict=True), (built.wheel, folder / "direct" / built.wheel.name)]


def check_same(pairs: list[tuple[Path, Path]]) -> None:
    for first, second in pairs:
        if first.read_bytes() != second.read_bytes():
            raise RefusedError(f"two builds of {first.name} differ: compare {first} with {second}")


def unpack_tests(built: Distribution, folder: Path) -> Path:
    """Unpack the sdist and delete the package in it: what imports it now can only find the installed wheel."""
    with tarfile.open(built.sdist) as archive:
        archive.extractall(folder, filter="data")
    [sources] = folder.glob("weightcache-*")
    shutil.rmtree(sources / "weightcache")
    return sources


def install(wheel: Path, home: Path) -> Path:
    """Install the wheel in a new environment, with the requirements that it declares and those of its tests."""
    python = home / "bin" / "python"
    must(sys.executable, "-m", "venv", home)
    must(python, "-m", "pip", "install", "--quiet", f"weightcache[test] @ {wheel.resolve().as_uri()}")
    return python


def install_offline(requirement: str | Path, home: Path) -> Path:
    """Install a wheel or a source in a new environment that has the packages of the one that runs this program."""
    python = home / "bin" / "python"
    must(sys.executable, "-m", "venv", "--without-pip", home)
    [site] = home.glob("lib/python*/site-packages")
    # Python does not read the .pth files of a folder that stands in one: the sources stay out of sys.path.
    (site / "others.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("-packages")))
    pip = (sys.executable, "-m", "pip", "--quiet", "--python", python, "install")
    must(*pip, "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", requirement)
    return python


def check_installed(python: Path, sources: Path, version: str, tests: tuple[str, ...]) -> str:
    """Run ``tests`` with the installed wheel, in a folder without the package, and return pytest's last line."""
    code = "import weightcache; print(weightcache.__file__, weightcache.__version__)"
    where, found = must("env", "-C", sources, python, "-c", code).split()
    if not Path(where).is_relative_to(python.parents[1]) or found != version:
        raise RefusedError(
            f"installed was weightcache {version} in {python.parents[1]}, and imported {found} from {where}"
        )
    if (said := must(python.with_name("weightcache"), "--version").strip()) != f"weightcache {version}":
        raise RefusedError(f"the command says {said!r}, and the wheel {version!r}")
    return must("env", "-C", sources, python, *PYTEST, *tests).strip().splitlines()[-1]


def reasons_against(tag: str, version: str) -> Iterator[str]:
    """Yield each reason why the commit must not be released as ``tag``."""
    if tag != f"v{version}":
        yield f"the tag is {tag}, and the version in pyproject.toml {version}"
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", read("CHANGELOG.md"), re.MULTILINE):
        yield f"CHANGELOG.md has no section `## [{version}] - YYYY-MM-DD`"
    if "/OWNER/" in read("pyproject.toml"):
        yield "OWNER in [project.urls] of pyproject.toml is a placeholder"
    if "not on PyPI yet" in read("README.md"):
        yield "README.md says that weightcache is not on PyPI yet"
    if changed := run("git", "status", "--porcelain").stdout.strip():
        yield f"files are not committed:\n{changed}"


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the wheel and the sdist, and check both.")
    parser.add_argument("--tag", default="", help="the tag of a release, such as v0.2.0")
    parser.add_argument("--into", type=Path, default=REPOSITORY / "dist", help="the folder; its files are deleted")
    options = parser.parse_args()
    shutil.rmtree(options.into, ignore_errors=True)
    epoch = source_date()
    folder = Path(tempfile.mkdtemp(prefix="weightcache-dist-"))  # kept if something is refused, to see why
    try:
        built = build(REPOSITORY, folder / "dist", SOURCE_DATE_EPOCH=epoch)
        version = metadata(built.wheel)["Version"]
        if options.tag and (reasons := list(reasons_against(options.tag, version))):
            raise RefusedError("not released: " + "; ".join(reasons))
        check_contents(built)
        check_same(build_again(built, epoch, folder))
        print("the metadata and contents are right, and a second build has the same bytes", flush=True)
        python = install(built.wheel, folder / "venv")
        print(check_installed(python, unpack_tests(built, folder / "tests"), version, TESTS), flush=True)
    except RefusedError as refusal:
        print(refusal)
        return 1
    shutil.copytree(folder / "dist", options.into)
    shutil.rmtree(folder)
    for path in sorted(options.into.iterdir()):
        print(hashlib.sha256(path.read_bytes()).hexdigest(), path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
