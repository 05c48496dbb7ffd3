"""The page of the project's status: its script runs, and each open question of docs/volumes.md has an answer in it."""

from __future__ import annotations

import json
import re
from pathlib import Path
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
    assert "modal volume delete weightcache-questions-v1" in done.stdout
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


def test_every_open_question_is_in_the_table() -> None:
    unknown = re.findall(r"^\| (?:Whether |In which order |How )(.+?)\. \| unknown", VOLUMES, re.MULTILINE)
    assert len(unknown) >= 6
    asked = " ".join(question for question, _, _ in ROWS)
    assert [question for question in unknown if question not in asked] == []
    assert "Which build Modal uses is unknown" in VOLUMES
    assert "which build of gVisor" in asked
