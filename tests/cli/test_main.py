"""The command line: what it prints, its JSON, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import weightcache
from command_line import run
from origin import Origin
from origin import status as answer
from support import blob, one, sha256, toml_of
from weightcache._runtime.writer_identity import note_path
from weightcache.cli import doctor
from weightcache.cli.command_spec import Command
from weightcache.cli.commands import COMMANDS
from weightcache.cli.output import echo

DATA = blob(200_000)


@pytest.fixture
def manifest(origin: Origin, tmp_path: Path) -> Path:
    origin.put("/a", DATA)
    return toml_of(one(DATA, origin.url("/a")), tmp_path / "weights.toml")


def test_a_manifest_that_is_given_twice(manifest: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "status", "-m", manifest, "-m", manifest, "--root", root)
    assert code == 2
    assert "-m/--manifest is given twice" in err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_usage_error_names_its_verb(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    given = [flag.metavar or "" for flag in command.flags if flag.is_positional and not flag.nargs]
    needed = [word for flag in command.flags if flag.required for word in (flag.name, "x")]
    words = [*given, *needed] if command.name != "completion" else ["bash"]
    code, _, err = run(capsys, command.name, *words, "--no-such-flag")
    problem, hint = err.splitlines()
    assert (code, problem) == (2, f"weightcache {command.name}: error: unrecognized arguments: --no-such-flag")
    assert hint == f"  hint: `weightcache {command.name} --help` lists what it takes"


@pytest.mark.parametrize(
    "words",
    [
        ("status",),  # without a root
        ("ensure", "--wait", "-1", "--root", "w"),  # a ValueError of the library
        ("status", "--env", "e", "--root", "w"),  # an option without --volume
        ("verify", "--root"),  # what argparse itself finds
    ],
)
def test_every_kind_of_usage_error_does(
    words: tuple[str, ...], manifest: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(manifest.parent)
    monkeypatch.delenv("WEIGHTCACHE_ROOT", raising=False)
    code, _, err = run(capsys, *words)
    assert code == 2
    assert err.startswith(f"weightcache {words[0]}: error: ")
    assert err.endswith(f"\n  hint: `weightcache {words[0]} --help` lists what it takes\n")


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf"])
def test_an_age_that_is_none(seconds: str, manifest: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "prune", "-m", manifest, "--root", root, f"--older-than={seconds}")[0] == 2


def test_all_verbs(manifest: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("-m", manifest, "--root", root)
    path = str(root / "sam2" / sha256(DATA)[:16] / "weights.pt")
    assert run(capsys, "status", *where)[:2] == (1, f"sam2  missing  0.2 MB  {path}  is not there\n")
    code, out, _ = run(capsys, "ensure", "--offline", *where)
    assert (code, out) == (1, "")
    code, out, err = run(capsys, "ensure", *where)
    assert code == 0
    assert out.split()[:4] == ["sam2", "downloaded", "0.2", "MB"]
    assert out.split()[-1] == path
    assert "weightcache: 0.2 MB of 1 file(s)" in err
    assert run(capsys, "ensure", "--quiet", "sam2", *where)[1].split()[1] == "hit"
    assert run(capsys, "status", *where)[:2] == (0, f"sam2  ready  0.2 MB  {path}\n")
    Path(path).parent.joinpath("extra").write_bytes(b"")
    assert run(capsys, "verify", *where)[:2] == (0, f"sam2  ready  0.2 MB  {path}  1 extra file(s): extra\n")
    Path(path).write_bytes(bytes(len(DATA)))
    code, out, _ = run(capsys, "verify", "--json", *where)
    assert code == 1
    [found] = json.loads(out)["checkpoints"]
    assert (found["state"], found["path"], found["extra"]) == ("damaged", path, ["extra"])
    code, out, _ = run(capsys, "ensure", "--rehash", "--json", "-q", *where)
    assert json.loads(out)["checkpoints"][0]["outcome"] == "healed"
    assert json.loads(run(capsys, "status", "--json", *where)[1])["checkpoints"][0]["state"] == "ready"


def test_names_that_others_gave_are_printed_without_control_characters(
    manifest: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "ensure", "-q", "-m", manifest, "--root", root)
    [path] = root.rglob("weights.pt")
    path.parent.joinpath(os.fsdecode(b"\x1b[2J\xff\n")).write_bytes(b"")
    code, out, _ = run(capsys, "verify", "-m", manifest, "--root", root)
    assert (code, out.count("\n")) == (0, 1)
    assert out.endswith(r"1 extra file(s): \x1b[2J\udcff\n" + "\n")
    echo("a\x1b\nb")
    assert capsys.readouterr().err == "weightcache: a\\x1b\nb\n"


@pytest.mark.parametrize("words", [["--help"], ["push", "--help"], ["completion", "--help"], ["status"]])
def test_what_only_looks_loads_nothing_that_downloads(words: list[str], manifest: Path, root: Path) -> None:
    code = (
        "import atexit, sys; from weightcache.cli.main import main\n"
        "lazy = ('requests', 'tqdm', 'modal', 'tomlkit', 'huggingface_hub', 'shtab')\n"
        "atexit.register(lambda: print([name for name in lazy if name in sys.modules]))\n"
        "main(sys.argv[1:])"
    )
    where = [] if "--help" in words else ["-m", manifest, "--root", root]
    command = [sys.executable, "-c", code, *words, *where]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1] == "[]"


def test_prune(manifest: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "ensure", "-q", "-m", manifest, "--root", root)
    other = toml_of(one(b"other"), tmp_path / "other.toml")
    where = ("--root", root, "--older-than", 0)
    place = root / "sam2" / sha256(DATA)[:16]
    assert run(capsys, "prune", "-m", other, "--root", root)[:2] == (0, "nothing to delete\n")
    assert run(capsys, "prune", "-m", other, "-m", manifest, *where)[:2] == (0, "nothing to delete\n")
    assert run(capsys, "prune", "-m", other, *where)[:2] == (0, f"would delete  {place}\n")
    assert json.loads(run(capsys, "prune", "-m", other, "--json", *where)[1])["would delete"] == [str(place)]
    assert place.exists()
    assert run(capsys, "prune", "-m", other, "--yes", *where)[:2] == (0, f"deleted  {place}\n")
    assert not place.exists()


def test_defaults(manifest: Path, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(manifest.parent)
    assert "no root: give --root DIR or set WEIGHTCACHE_ROOT" in run(capsys, "status")[2]
    monkeypatch.setenv("WEIGHTCACHE_ROOT", str(root))
    assert run(capsys, "status")[0] == 1
    assert run(capsys, "prune")[:2] == (0, "nothing to delete\n")


def test_exit_codes(manifest: Path, root: Path, origin: Origin, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("-m", manifest, "--root", root)
    assert run(capsys, "nonsense")[0] == 2
    assert run(capsys, "status", "-m", "no.toml", "--root", root)[0] == 2
    assert run(capsys, "status", "unknown", *where)[0] == 2
    assert run(capsys, "ensure", "--wait", "-1", *where)[0] == 2
    origin.files["/a"].always = answer(404)
    code, out, err = run(capsys, "ensure", "--json", *where)
    assert code == 3
    assert json.loads(out)["error"] == "DownloadError"
    assert "HTTP 404" in json.loads(out)["message"]
    assert "hint:" in err
    code, _, err = run(capsys, "ensure", "-m", manifest, "--root", manifest)
    assert code == 5
    assert "root must be a directory" in err
    import fcntl

    with open(note_path(str(root), "lock"), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, err = run(capsys, "ensure", "--wait", "0.1", *where)
    assert code == 4
    assert "made no progress for 0.1 s" in err


def test_the_other_ends(
    manifest: Path, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(weightcache, "ensure", interrupted)
        patch.setattr(weightcache, "verify", interrupted)
        told = "weightcache: interrupted; each MiB of a file that was complete is kept\n"
        assert run(capsys, "ensure", "-m", manifest, "--root", root) == (130, "", told)
        assert run(capsys, "verify", "-m", manifest, "--root", root) == (130, "", "weightcache: interrupted\n")
    assert run(capsys, "--version")[1] == f"weightcache {weightcache.__version__}\n"


def test_as_a_program(manifest: Path, root: Path) -> None:
    command = [sys.executable, "-m", "weightcache", "ensure", "-m", manifest, "--root", root]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("sam2  downloaded")
    pipe = f"'{sys.executable}' -m weightcache status --json -m '{manifest}' --root '{root}' | true"
    assert subprocess.run(["bash", "-c", pipe], capture_output=True, check=True).stderr == b""


# doctor -------------------------------------------------------------------------------------------------------


def findings(manifest: Path, root: Path) -> dict[str, doctor.Finding]:
    return {each.check: each for each in doctor.examine([str(manifest)], str(root))}


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and working directory, so that the scan for weights in the image sees only what a test puts."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return home


def test_doctor_finds_all_well(manifest: Path, root: Path, nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root.mkdir()
    found = findings(manifest, root)
    assert {check for check, each in found.items() if not each.ok} == set(), found
    assert set(found) == {"manifest", "volume", "root", "locks", "requests", "room", "image"}
    assert "could be written" in found["room"].text
    code, out, _ = run(capsys, "doctor", "-m", manifest, "--root", root)
    assert code == 0
    assert out.count("ok") >= 7
    assert len(json.loads(run(capsys, "doctor", "--json", "-m", manifest, "--root", root)[1])["findings"]) == 7
    assert list(root.iterdir()) == []  # it leaves nothing behind
    assert "can be created in" in findings(manifest, root / "new")["root"].text


def test_doctor_finds_what_is_wrong(
    manifest: Path, root: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root.mkdir()
    assert findings(root / "no.toml", root)["manifest"].code == 2
    assert findings(manifest, manifest)["root"].code == 5
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    assert "is not on a Modal Volume" in findings(manifest, root)["volume"].text
    monkeypatch.setattr(doctor, "MODAL_VOLUMES", f"{os.path.realpath(root.parent)}/")
    assert "is on the Modal Volume root" in findings(manifest, root)["volume"].text
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    assert "have no effect" in findings(manifest, root)["locks"].text
    assert run(capsys, "doctor", "-m", root / "no.toml", "--root", root)[0] == 2


def test_doctor_finds_no_locks(manifest: Path, root: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", fail)
    assert "no kernel locks" in findings(manifest, root)["locks"].text


def test_doctor_finds_a_missing_token(
    origin: Origin, root: Path, tmp_path: Path, nowhere: Path, monkeypatch: Any
) -> None:
    path = tmp_path / "weights.toml"
    path.write_text(f'[checkpoints.a]\nurls = ["https://h/x"]\nauth = "MY_TOKEN"\nsha256 = "{"0" * 64}"\n')
    found = findings(path, root)["token"]
    assert (found.ok, found.code) == (False, 3)
    assert "MY_TOKEN is not set, and a needs it" in found.text
    monkeypatch.setenv("MY_TOKEN", "x")
    assert findings(path, root)["token"].ok
    assert findings(path, root)["room"].text == "nothing of declared size is missing"


def test_doctor_finds_too_little_room(small_disk: Path, tmp_path: Path, nowhere: Path, monkeypatch: Any) -> None:
    path = tmp_path / "weights.toml"
    entry = f'[checkpoints.a]\nurls = ["https://h/x"]\nsha256 = "{"0" * 64}"\nsize = 50000000\n'
    path.write_text(entry)
    assert "less is free" in findings(path, small_disk)["room"].text
    # On a Volume statfs gives placeholder values: only a write shows the room.
    monkeypatch.setattr(doctor, "MODAL_VOLUMES", f"{os.path.realpath(tmp_path)}/")
    found = findings(path, small_disk)["room"]
    assert (found.code, found.ok) == (5, False)
    assert "No space left" in found.text
    assert list(small_disk.iterdir()) == []
    assert "cannot be tested" in findings(path, tmp_path / "not-there")["room"].text


def test_doctor_finds_weights_in_the_image(origin: Origin, root: Path, tmp_path: Path, nowhere: Path) -> None:
    big = blob(2_000_000)
    manifest = toml_of(one(big, origin.url("/a")), tmp_path / "weights.toml")
    (nowhere / "cache").mkdir()
    (nowhere / "cache" / "weights.pt").write_bytes(big)
    assert str(nowhere / "cache" / "weights.pt") in findings(manifest, root)["image"].text
    (nowhere / "cache" / "weights.pt").write_bytes(big[:-1])
    assert findings(manifest, root)["image"].ok
