"""The tree of errors: all survive pickling with everything they carry."""

from __future__ import annotations

import base64
import copy
import errno
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import weightcache
from weightcache import errors
from weightcache.errors import Attempt, StorageError, redacted

EXAMPLES: list[errors.WeightCacheError] = [
    errors.WeightCacheError("what", hint="do this"),
    errors.ManifestError("weights.toml", ["a: b", "c: d"]),
    errors.UnknownCheckpointError("x", ("a", "b")),
    errors.NotCachedError("not there", hint="h", checkpoints=("a",)),
    errors.DownloadError("m", hint="h", checkpoint="a", file="f", attempts=(Attempt("u", "r", 2),)),
    errors.IntegrityError("m", hint="h", checkpoint="a", file="f", attempts=(), expected="e", actual="a", url="u"),
    errors.LockTimeoutError("m", hint="h", lock_path="/l", waited=3.5, holder="process 1"),
    StorageError.of(OSError(errno.ENOSPC, "No space left on device"), "write to", "/x"),
    StorageError("m", hint="h", path="/x"),
    errors.LoadError("weights.pt", ["a: b", "c: d"], hint="h"),
    errors.VolumeError("m", hint="h", operation="commit"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_pickling(error: errors.WeightCacheError, protocol: int) -> None:
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert getattr(again, "errno", None) == getattr(error, "errno", None)


STORED: dict[str, str] = json.loads((Path(__file__).parent / "data/pickles_0_1.json").read_text())


@pytest.mark.parametrize("name", STORED)
def test_a_pickle_of_0_1_still_loads(name: str) -> None:
    """In a process of its own: elsewhere another test may have imported what the pickle needs."""
    code = (
        "import base64, pickle, sys; again = pickle.loads(base64.b64decode(sys.argv[1])); print(type(again).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code, STORED[name]], capture_output=True, text=True, check=False)
    assert done.stdout.split() == name.split()[:1], done.stderr
    again = pickle.loads(base64.b64decode(STORED[name]))
    written = pickle.dumps(again)
    assert pickle.dumps(pickle.loads(written)) == written
    assert type(again).__module__ in ("weightcache", "weightcache.errors", "weightcache.manifest", "weightcache.modal")


def test_every_public_class_has_a_stored_pickle() -> None:
    classes = {name for name in weightcache.__all__ if isinstance(getattr(weightcache, name), type)} - {"Prefetch"}
    classes -= {"CheckpointPlan", "FilePlan", "Plan", "Publication", "Tag", "Timeline"}  # 0.1 had none
    assert classes <= {name.split()[0] for name in STORED}


def test_every_error_is_among_the_examples() -> None:
    named = {getattr(errors, name) for name in errors.__all__} - {Attempt}
    assert {type(error) for error in EXAMPLES} == named
    assert all(name in weightcache.__all__ for name in errors.__all__ if name != "Attempt")


PAGE = (Path(__file__).parents[1] / "docs/reference/errors.md").read_text()


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name not in ("Attempt", "WeightCacheError")])
def test_the_page_says_how_each_error_comes_about_and_what_to_do(name: str) -> None:
    section = PAGE.partition(f"\n## `{name}`\n")[2].partition("\n## ")[0]
    [table] = re.findall(r"^\| cause \| what to do \|\n\|---\|---\|\n((?:\|.*\n?)+)", section, re.MULTILINE)
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines()]
    assert [row for row in rows if len(row) != 2 or min(len(cell) for cell in row) < 5] == []
    assert len(rows) >= 2
    attributes = getattr(errors, name).__annotations__
    assert [each for each in attributes if f"`{each}`" not in section] == []


def test_the_page_has_each_operation_of_a_volume_error() -> None:
    package = Path(errors.__file__).parent
    used = {found for path in package.rglob("*.py") for found in re.findall(r'operation="(\w+)"', path.read_text())}
    table = PAGE.partition("\n## `VolumeError`\n")[2].partition("| cause |")[2]
    assert len(used) >= 4
    assert [each for each in used if f'`"{each}"`' not in table] == []


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (errors.ManifestError, ValueError),
        (errors.UnknownCheckpointError, LookupError),
        (errors.NotCachedError, FileNotFoundError),
        (errors.DownloadError, OSError),
        (errors.IntegrityError, errors.DownloadError),
        (errors.LoadError, RuntimeError),
        (errors.LockTimeoutError, TimeoutError),
        (errors.StorageError, OSError),
        (errors.VolumeError, errors.WeightCacheError),
    ],
)
def test_the_built_in_that_a_caller_would_guess(kind: type, base: type) -> None:
    assert issubclass(kind, base)
    assert issubclass(kind, errors.WeightCacheError)
    assert kind.__name__ in (errors.__doc__ or "")


def test_hints_are_shown() -> None:
    assert str(EXAMPLES[0]) == "what\n  hint: do this"
    assert str(errors.WeightCacheError("what")) == "what"


def test_a_full_disk_is_called_one() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        error = StorageError.of(OSError(number, "x"), "write to", "/x")
        assert "the disk is full" in str(error)
        assert "ephemeral_disk" in error.hint
        assert error.errno == number


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@h:1/p?sig=secret#secret", "https://h:1/p"),
        ("https://h?x=secret", "https://h"),
        ("https://secret@h", "https://h"),
        ("https://a@b@h/p@q?secret", "https://h/p@q"),
        ("file:/x?secret", "file:/x"),
        ("/relative?secret", "/relative"),
        ("/relative?next=https://user:secret@h", "/relative"),
        ("https://h/\x1b[2J\x9b\u202e\n/x", "https://h/[2J/x"),
        ("hf://a\x1b/b", "hf://a/b"),
    ],
)
def test_redacted(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_no_error_writes_control_characters() -> None:
    """Names in a file of weights, or of files on a Volume, are anybody's."""
    error = errors.LoadError("x", ["a\x1b[2J\r\x9b\u202e", "é\udcff"], hint="copy \x07 this")
    assert str(error) == "x: 2 problems\n  a\\x1b[2J\\r\\x9b\\u202e\n  é\\udcff\n  hint: copy \\x07 this"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_hint_that_is_set_later_has_no_control_characters_either() -> None:
    error = errors.ManifestError("weights.toml", ["a: b"])
    error.hint = "copy \x07 this\nand that"
    assert error.hint == "copy \\x07 this\nand that"
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert again.hint == error.hint
        assert vars(again)["hint"] == error.hint  # where 0.1 looks for it


@pytest.mark.parametrize(
    "error",
    [
        errors.ManifestError("w\n  hint: a", ["x\n  hint: b"]),
        errors.LoadError("w\n  hint: a", ["x\n  hint: b"], hint="good"),
        errors.LoadError("w\n  hint: a", ["x\n  hint: b", "y"], hint="good"),
        StorageError.of(OSError(errno.EACCES, "no"), "read", "w\n  hint: a"),
    ],
    ids=["manifest", "load", "loads", "storage"],
)
def test_no_name_begins_a_line_that_looks_like_ours(error: errors.WeightCacheError) -> None:
    assert sum(line.startswith("  hint: ") for line in str(error).splitlines()) == 1
    assert str(error).endswith(f"\n  hint: {error.hint}")


def test_a_message_has_at_most_a_hundred_problems() -> None:
    problems = [f"tensor {number}" for number in range(5000)]
    for error in (errors.LoadError("x", problems, hint="h"), errors.ManifestError("x", problems)):
        assert len(error.problems) == 5000
        assert str(error.args[0]).splitlines()[0] == "x: 5000 problems"
        assert str(error.args[0]).splitlines()[100:] == ["  tensor 99", "  and 4900 more"]


def test_attributes_are_not_lost_when_raised_again() -> None:
    def again(error: errors.WeightCacheError) -> Any:
        try:
            raise pickle.loads(pickle.dumps(error))
        except errors.IntegrityError as caught:
            return caught.expected

    assert again(EXAMPLES[5]) == "e"
