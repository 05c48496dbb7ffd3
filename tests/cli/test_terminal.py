"""What each command shows in a terminal of 80 columns and in a pipe, with 3 and with 300 checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from origin import Origin
from support import blob, sha256, toml_of
from terminals import in_terminal, piped
from weightcache import errors
from weightcache.cli import main as entry
from weightcache.cli import terminal
from weightcache.cli.commands import COMMANDS
from weightcache.cli.output import print_lines
from weightcache.cli.terminal import (
    Captured,
    Cell,
    display_width,
    message_lines,
    shortened,
    table_lines,
    terminal_columns,
    wrapped,
)

NAMES = ("sam2", "groundingdino-swint-ogc-cogcoor-with-a-rather-long-name", "bert")
FILE = "模型权重-日本語ファイル名-とても長い.safetensors"


class Project(NamedTuple):
    """A manifest, an empty root, and a file that can be published."""

    count: int
    manifest: Path
    root: Path
    made: Path
    origin: Origin

    def words(self, *words: Any) -> tuple[Any, ...]:
        return (*words, "-m", self.manifest, "--root", self.root)


@pytest.fixture(params=[3, 300])
def project(request: pytest.FixtureRequest, origin: Origin, root: Path, tmp_path: Path) -> Project:
    checkpoints: dict[str, Any] = {}
    for at in range(request.param):
        data = blob(1500 + at, at)
        origin.put(f"/{at}", data)
        name = NAMES[at] if at < len(NAMES) else f"checkpoint-{at:03}"
        entry = {"urls": [origin.url(f"/{at}")], "sha256": sha256(data), "size": len(data)}
        checkpoints[name] = {**entry, "file": FILE if at == 1 else f"weights-{at:03}.pt"}
    made = tmp_path / "made.bin"
    made.write_bytes(b"made")
    manifest = toml_of({"version": 1, "checkpoints": checkpoints}, tmp_path / "weights.toml")
    return Project(request.param, manifest, root, made, origin)


def commands(project: Project) -> dict[str, list[tuple[Any, ...]]]:
    """Return the command lines of each command, in an order in which they succeed."""
    root, other = ("--root", project.root), project.manifest.with_name("other.toml")
    project.origin.put("/added.pt", blob(2000, 999))
    return {
        "status": [project.words("status")],
        "ensure": [project.words("ensure", "--dry-run"), project.words("ensure"), project.words("ensure")],
        "verify": [project.words("verify")],
        "prune": [("prune", "--no-manifest", "--older-than", "0", *root)],
        "add": [("add", "added", project.origin.url("/added.pt"), "-m", other, *root)],
        "pin": [("pin", "-m", project.manifest), ("pin", "--check", "-m", project.manifest)],
        "push": [project.words("push", "--volume", "no-such-volume")],
        "publish": [("publish", project.made, "mine", "--tag", "newest", *root)],
        "tag": [("tag", *root)],
        "adopt": [("adopt", project.made, "adopted", *root)],
        "bench": [("bench", *root)],
        "doctor": [project.words("doctor")],
    }


def is_fluid(line: str) -> bool:
    """Whether a line may be longer: an entry of TOML, or one word, such as a path, that is not broken to be copied.

    Modal's own warning on Python 3.10 may, too.
    """
    return (
        "DeprecationError: 2026-11-04: Python 3.10 is EOL" in line
        or line.startswith(("urls = ", "sha256 = ", "file = "))
        or " " not in line.strip()
    )


def test_each_command_in_a_terminal(project: Project, tmp_path: Path) -> None:
    lines_of = commands(project)
    assert {*lines_of, "completion"} == {command.name for command in COMMANDS}
    without_account = {"HOME": str(tmp_path), "MODAL_CONFIG_PATH": str(tmp_path / "none"), "MODAL_TOKEN_ID": ""}
    for name, lines in lines_of.items():
        for words in lines:
            shown = in_terminal(*words, **without_account)
            assert shown.code == (1 if name == "status" else 5 if name == "push" else 0), shown.text
            assert [line for line in shown.lines if display_width(line) > 80 and not is_fluid(line)] == []
            assert shown.escapes <= {"A"}, "a bar moves up a line; nothing sets a colour"
            assert "Traceback" not in shown.text


def test_each_command_in_a_pipe(project: Project, tmp_path: Path) -> None:
    without_account = {"HOME": str(tmp_path), "MODAL_CONFIG_PATH": str(tmp_path / "none"), "MODAL_TOKEN_ID": ""}
    for name, lines in commands(project).items():
        for words in lines:
            code, out, err = piped(*words, COLUMNS="80", FORCE_COLOR="1", **without_account)
            assert "\x1b" not in out + err
            assert "…" not in out + err
            if name in ("ensure", "status", "verify") and "--dry-run" not in words:
                assert [line.split()[0] for line in out.splitlines()][:3] == [*NAMES]
                assert len(out.splitlines()) == project.count
                assert all(f"{project.root}/" in line for line in out.splitlines())
                assert f"/{FILE}" in out
            assert code == (1 if name == "status" else 5 if name == "push" else 0), err


def test_ensure_ends_with_a_summary(project: Project) -> None:
    shown = in_terminal(*project.words("ensure"))
    end = " ".join(" ".join(shown.lines).split("weightcache: ")[-1].split())
    assert end.startswith(f"{project.count} checkpoints ready: ")
    assert f" fetched from {project.origin.url('')[7:]} in " in end
    assert end.endswith("/s); the next start is a hit")
    hits = in_terminal(*project.words("ensure"))
    assert hits.lines[-1].startswith(f"weightcache: {project.count} checkpoints ready: all hits, ")
    assert hits.lines[-1].endswith(" ms") or hits.lines[-1].endswith(" s")
    assert len(hits.lines) == (4 if project.count == 3 else 1)
    assert len(shown.lines) < 30
    assert "groundingdino-s…" in shown.text  # what its bar is called
    _, out, err = piped(*project.words("ensure"))
    assert len(out.splitlines()) == project.count
    assert err.splitlines()[-1].startswith(f"weightcache: {project.count} checkpoints ready: all hits, ")
    assert piped(*project.words("ensure", "-q"))[2] == ""


def test_pin_counts_what_was_pinned_already(project: Project) -> None:
    shown = in_terminal("pin", "-m", project.manifest)
    assert len(shown.lines) == (12 if project.count == 3 else 1)
    assert ("300 entries pinned already" in shown.text) == (project.count == 300)
    assert len(piped("pin", "-m", project.manifest)[1].splitlines()) == 4 * project.count


def test_status_ends_with_a_count(project: Project) -> None:
    piped(*project.words("ensure", "-q"))
    assert in_terminal(*project.words("status")).lines[-1] == f"weightcache: all {project.count} checkpoints are ready"
    [path] = project.root.glob("bert/*/*")
    path.unlink()
    shown = in_terminal(*project.words("status"))
    assert shown.lines[-1] == f"weightcache: {project.count} checkpoints: {project.count - 1} ready, 1 damaged (bert)"
    assert piped(*project.words("status"))[2] == ""


@pytest.mark.parametrize("project", [3], indirect=True)
@pytest.mark.parametrize("columns", [40, 60, 100, 0])
def test_other_widths(project: Project, columns: int) -> None:
    shown = in_terminal(*project.words("status"), columns=columns)
    assert [line for line in shown.lines if display_width(line) > (columns or 80)] == []
    assert "sam2" in shown.text


@pytest.mark.parametrize("project", [3], indirect=True)
def test_a_terminal_that_knows_no_wide_letters(project: Project) -> None:
    code, out, err = piped(*project.words("status"), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (code, err) == (1, "")
    assert "\\u6a21\\u578b" in out
    shown = in_terminal(*project.words("status"), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert "..." in shown.text
    assert shown.code == 1


@pytest.mark.parametrize("words", [("--help",), *[(command.name, "--help") for command in COMMANDS]])
def test_help_fits_and_has_no_colour(words: tuple[str, ...]) -> None:
    shown = in_terminal(*words)
    assert (shown.code, shown.escapes) == (0, set())
    assert [line for line in shown.lines if display_width(line) > 80] == []


LONG = " ".join(["it takes a long sentence to say what happened here"] * 4)
ERRORS = [
    errors.WeightCacheError(LONG, hint=LONG),
    errors.ManifestError("weights.toml", [f"checkpoints.a{at}: {LONG}" for at in range(3)]),
    errors.UnknownCheckpointError("samm2", [f"sam{at}" for at in range(300)]),
    errors.NotCachedError(LONG, hint=LONG, checkpoints=("a",)),
    errors.DownloadError(f"{LONG}\n  https://h/a: HTTP 404\n  https://h/b: {LONG}", hint=LONG),
    errors.IntegrityError(f"{LONG}\n  expected {'0' * 64}\n  actual   {'1' * 64}", hint=LONG),
    errors.LockTimeoutError(LONG, hint=LONG),
    errors.StorageError.of(OSError(28, "No space left on device"), "write to", "/weights/a"),
    errors.LoadError("model.pt", [LONG, LONG], hint=LONG),
    errors.VolumeError(LONG, hint=LONG),
]


def test_every_class_of_error_is_here() -> None:
    classes = {getattr(errors, name) for name in errors.__all__}
    trees = {each for each in classes if issubclass(each, errors.WeightCacheError)}
    assert {type(error) for error in ERRORS} == trees


@pytest.mark.parametrize("columns", [80, None])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_one_block_with_the_hint_last(
    error: errors.WeightCacheError, columns: int | None, root: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("weightcache.status", fail)
    monkeypatch.setattr("weightcache.cli.output.terminal_columns", lambda _: columns)
    assert entry.main(["status", "--root", str(root)]) in (1, 2, 3, 4, 5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("weightcache: error: ")
    assert not any(line.startswith(("weightcache", "Traceback")) for line in lines[1:])
    last = max(at for at, line in enumerate(lines) if line.startswith("  hint: "))
    assert " ".join(line.strip() for line in lines[last:]) == f"hint: {error.hint}"
    if columns:
        assert [line for line in lines if display_width(line) > columns and not is_fluid(line)] == []
    else:
        assert "\n".join(lines) == f"weightcache: error: {error}"
    assert len("".join(lines)) < 2000


def test_a_name_that_is_not_declared_is_answered_with_the_closest() -> None:
    assert "sam2" in str(ERRORS[2])
    assert "and 29" in str(ERRORS[2])
    assert str(errors.UnknownCheckpointError("x", ["a", "b"])).startswith(
        "no checkpoint is called 'x'; declared are: a, b\n"
    )


def test_300_missing_checkpoints_are_a_short_error(project: Project) -> None:
    code, _, err = piped(*project.words("ensure", "--offline", "-q"))
    assert code == 1
    assert len(err) < 1500
    assert ("and 290 more" in err) == (project.count == 300)


@pytest.mark.parametrize("project", [3], indirect=True)
def test_a_warning_of_the_library_is_a_message(project: Project) -> None:
    manifest = project.manifest
    manifest.write_text(manifest.read_text().replace('urls = ["', f'urls = ["{project.origin.url("/gone")}", "', 1))
    code, _, err = piped(*project.words("ensure"))
    assert code == 0
    assert [line for line in err.splitlines() if not line.startswith("weightcache: ")] == []
    assert "weightcache: warning: sam2: " in err


# texts ---------------------------------------------------------------------------------------------------------


def test_widths() -> None:
    assert [display_width(text) for text in ("", "abc", "模型", "e\u0301", "ä", "🎉")] == [0, 3, 4, 1, 1, 2]
    assert shortened("abcdefghij", 7) == "abc…hij"
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("/a/b/c/model.pt", 11, head=0.25) == "/a…model.pt"
    assert [display_width(shortened("模型权重模型权重", width)) <= width for width in range(1, 16)] == [True] * 15


def test_wrapping() -> None:
    assert wrapped("a  b", 80) == ["a  b"]
    assert wrapped("one two three", 7) == ["one two", "three"]
    assert wrapped("one https://host/long two", 7) == ["one", "https://host/long", "two"]
    assert wrapped("one abcdefghij", 4, breaks=True) == ["one", "abcd", "efgh", "ij"]
    assert [*message_lines("one two three\n  four five six", 11)] == [
        "one two",
        "  three",
        "  four",
        "    five",
        "    six",
    ]


@pytest.mark.parametrize("letter", ["ä", "模", "\u0301"], ids=["one", "two", "none"])
def test_a_long_word_is_measured_a_few_times(letter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file on the Volume may have any name, and a manifest any URL."""
    measured = 0

    def counting(text: str) -> int:
        nonlocal measured
        measured += len(text)
        return display_width(text)

    monkeypatch.setattr(terminal, "display_width", counting)
    lines = wrapped(f"a {letter * 5000} b", 20, breaks=True)
    assert "".join(lines).count(letter) == 5000
    assert measured < 6 * 5000


def test_lines_have_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines("a\x1b[2J\udcff\n  b")
    assert capsys.readouterr().out == "a\\x1b[2J\\udcff\n  b\n"


def test_tables() -> None:
    kinds = (Cell.NAME, Cell.NUMBER, Cell.TEXT)
    rows = [["a", "1 byte", "what was found"], ["bb", "10.0 MB", ""]]
    assert [*table_lines(rows, kinds, None)] == ["a    1 byte  what was found", "bb  10.0 MB"]
    assert [*table_lines([], kinds, 80)] == []
    narrow = [*table_lines([["n" * 30, "1 byte", "word " * 20]], kinds, 60)]
    assert max(map(len, narrow)) <= 60
    assert narrow[0].startswith("nnn")
    assert " ".join(narrow).count("word") == 20
    one_letter = [*table_lines([["名" * 9, "1 byte", "b" * 30]], kinds, 14)]
    assert all(display_width(line) <= 20 for line in one_letter)


def test_which_stream_is_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal_columns(Captured(None)) is None
    assert terminal_columns(Captured(72)) == 72
    with open(os.devnull, "w") as stream:
        assert terminal_columns(stream) is None
        monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((0, 0)))
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as stream:
        assert terminal_columns(stream) == 80
        monkeypatch.setenv("COLUMNS", "132")
        assert terminal_columns(stream) == 132
        monkeypatch.setenv("COLUMNS", "wide")
        assert terminal_columns(stream) == 80
    os.close(ours)
