"""The page of the project's status: its script runs, and each open question of docs/volumes.md has an answer in it."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from control_plane import ControlPlane
from origin import Origin
from support import blob, one, toml_of

HERE = Path(__file__).resolve().parents[2]
PAGE = (HERE / "docs/status.md").read_text()
VOLUMES = (HERE / "docs/volumes.md").read_text()
ROWS = re.findall(r"^\| (.+?) \| (`.+?`|no command) \| (.*) \|$", PAGE.partition("## A script of ten minutes")[2], re.M)


@pytest.fixture
def found(plane: ControlPlane, origin: Origin, tmp_path: Path, namespaces: None) -> dict[str, Any]:
    """Run the script of the page with Modal's real client against a control plane on this machine."""
    data = blob(300_000)
    origin.put("/w", data)
    manifest = toml_of(one(data, origin.url("/w")), tmp_path / "weights.toml")
    out = tmp_path / "out.json"
    words = ("--manifest", str(manifest), "--versions", "1", "--size", "1", "--out", str(out))
    done = plane.client(str(HERE / "benchmarks/settle_open_questions.py"), *words, directory=tmp_path)
    assert done.returncode == 0, done.stderr + out.read_text()
    assert re.search(r"^modal volume delete weightcache-questions-\w{8}-v1$", done.stdout, re.MULTILINE)
    text = out.read_text()
    assert "weightcache-questions" not in text
    [volume] = plane.volumes
    assert volume not in text
    return json.loads(text)["volumes"]["1"]  # type: ignore[no-any-return]


def test_the_script_answers_what_the_page_says(found: dict[str, Any]) -> None:
    assert {name: each["exit_code"] for name, each in found.items()} == dict.fromkeys(found, 0)
    outcomes = [found[name]["result"]["checkpoints"][0]["outcome"] for name in ("first_ensure", "second_ensure")]
    assert outcomes[0] == "downloaded"
    assert outcomes[1] != "downloaded"
    keys = [key for _, command, answer in ROWS if command != "no command" for key in re.findall(r"`([\w.]+)`", answer)]
    assert len(keys) > 15
    for key in keys:
        value: Any = found
        for part in key.split("."):
            value = value["result"] if part not in value and "result" in value else value
            value = value["answers"] if part not in value and "answers" in value else value
            assert part in value, key
            value = value[part]


@pytest.fixture
def script() -> Any:
    spec = importlib.util.spec_from_file_location("settle", HERE / "benchmarks/settle_open_questions.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pretend(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[list[str]]:
    """Let ``answer`` stand in for the commands, and return the list of those that the script runs."""
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> Any:
        asked.append(command[3:])
        return answer(command[3:])

    monkeypatch.setattr(subprocess, "run", run)
    return asked


def test_a_run_that_fails_names_no_account(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(words: list[str]) -> Any:
        said = f"""Initialized. View run at
https://modal.com/apps/my-account/main/ap-1
  my-account, by Modal
weightcache: error: cannot read {HERE}/x and {Path.home()}/y of {words[words.index("--volume") + 1]}
  hint: see https://modal.com/apps/my-account/main/ap-1 of vo-0123456789abcdefghij
Traceback (most recent call last):
  File "my-account.py", line 1
"""
        return SimpleNamespace(returncode=5, stdout="", stderr=said)

    monkeypatch.setenv("HOME", str(HERE.parent))  # of which the repository is a part
    pretend(monkeypatch, fail)
    out = tmp_path / "out.json"
    assert script.main(["--out", str(out)]) == 1
    text = out.read_text()
    told = json.loads(text)["volumes"]
    errors = {each["errors"] for answers in told.values() for each in answers.values()}
    assert errors == {"weightcache: error: cannot read REPOSITORY/x and HOME/y of NAME\n  hint: see URL of ID"}
    assert [len(answers) for answers in told.values()] == [4, 4]
    assert "my-account" not in text
    assert capsys.readouterr().out.count("modal volume delete ") == 2


def test_the_example_is_what_its_page_downloads(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, lambda _: SimpleNamespace(returncode=0, stdout="{}", stderr=""))
    assert script.main(["--out", str(tmp_path / "out.json")]) == 0
    assert f"weightcache ensure {' '.join(script.NAMES)} " in (HERE / "examples/fashion_crop/README.md").read_text()
    assert asked[0][1:4] == [*script.NAMES]
    weights = script.EXAMPLE.read_text()
    sizes = [
        size for name in script.NAMES for size in re.findall(r"\bsize = (\d+)", weights.partition(f".{name}]")[2])[:1]
    ]
    assert 1.5e9 < sum(map(int, sizes)) < 1.65e9
    asked.clear()
    script.main(["--out", str(tmp_path / "out.json"), "--manifest", "x.toml", "--versions", "2"])
    assert asked[0][:2] == ["ensure", "--volume"]
    assert len(asked) == 4


def test_a_stop_half_way_leaves_the_answers(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(words: list[str]) -> Any:
        if words[0] == "doctor":
            raise KeyboardInterrupt
        raise subprocess.TimeoutExpired(words, 1)

    pretend(monkeypatch, stop)
    out = tmp_path / "out.json"
    with pytest.raises(KeyboardInterrupt):
        script.main(["--out", str(out)])
    told = json.loads(out.read_text())["volumes"]
    assert {name: each["exit_code"] for name, each in told["1"].items()} == {"first_ensure": 124, "second_ensure": 124}
    assert capsys.readouterr().out.count("modal volume delete ") == 1


@pytest.mark.parametrize("words", [("--out", "missing/out.json"), ("--versions", "1,3"), ("--versions", "")])
def test_what_cannot_work_is_said_before_anything_runs(
    words: tuple[str, ...], script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = pretend(monkeypatch, lambda _: SimpleNamespace(returncode=0, stdout="{}", stderr=""))
    with pytest.raises(SystemExit):
        script.main(list(words))
    assert asked == []


def test_every_open_question_is_in_the_table() -> None:
    unknown = re.findall(r"^\| (?:Whether |In which order |How )(.+?)\. \| unknown", VOLUMES, re.MULTILINE)
    assert len(unknown) >= 6
    asked = " ".join(question for question, _, _ in ROWS)
    assert [question for question in unknown if question not in asked] == []
    assert "Which build Modal uses is unknown" in VOLUMES
    assert "which build of gVisor" in asked
