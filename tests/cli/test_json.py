"""Every document of ``--json`` has a version, and is one that the schema describes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from origin import Origin
from origin import status as answer
from output_schema import SCHEMA, checked
from support import blob, one, sha256, toml_of
from weightcache.cli.commands import COMMANDS
from weightcache.cli.output import JSON_VERSION, MOST_ON_TERMINAL, counted, listed

DATA = blob(20_000)
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "json.md"
WITH_JSON = {command.name for command in COMMANDS if any(flag.name == "--json" for flag in command.flags)}
ON_MODAL = {"push"}  # tests/cli/test_modal_runner.py checks its document, and that of `doctor --probe`


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    named = {
        each["properties"]["command"].get("const")
        for each in SCHEMA["$defs"].values()
        if "command" in each.get("properties", {})
    }
    assert named - {None} == WITH_JSON == set(SCHEMA["$defs"]["error"]["properties"]["command"]["enum"])
    used = set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(SCHEMA)))
    assert used == set(SCHEMA["$defs"])


def test_every_command(run: Any, origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    toml_of(one(DATA, origin.url("/a")), Path("weights.toml"))
    Path("made.bin").write_bytes(b"made")
    Path("other.bin").write_bytes(b"other")
    unpinned = f'version = 1\n[checkpoints.u]\nurls = ["{origin.url("/a")}"]\nfile = "u.pt"\n'
    Path("unpinned.toml").write_text(unpinned)
    where = ("--root", root)
    seen = set()
    for words in (
        ("ensure", "--dry-run", *where),
        ("status", *where),
        ("ensure", *where),
        ("ensure", *where),
        ("ensure", "--dry-run", "--rehash", *where),
        ("status", *where),
        ("verify", *where),
        ("publish", "made.bin", "mine", "--tag", "newest", "--keep", "2", *where),
        ("publish", "made.bin", "mine", *where),
        ("tag", *where),
        ("adopt", "other.bin", "other", *where),
        ("bench", *where),
        ("doctor", *where),
        ("prune", "--no-manifest", "--older-than", "0", *where),
        ("prune", "--no-manifest", "--older-than", "0", "--yes", *where),
        ("add", "added", origin.url("/a")),
        ("pin",),
        ("pin", "--check"),
        ("pin", "--check-upstream"),
        ("pin", "--upgrade", "--check"),
        ("pin", "--check", "-m", "unpinned.toml"),
        ("pin", "--upgrade", "--check", "-m", "unpinned.toml"),
        ("pin", "-m", "unpinned.toml"),
    ):
        code, out, err = run(*words, "--json")
        assert code in (0, 1), err
        document = checked(out)
        assert [*document][:2] == ["version", "command"]
        assert (document["version"], document["command"]) == (JSON_VERSION, words[0])
        seen.add(words[0])
    assert seen == WITH_JSON - ON_MODAL


@pytest.mark.parametrize("verb", sorted(WITH_JSON - {"prune", "publish", "tag", "adopt", "bench", "doctor", "add"}))
def test_a_failure_is_a_document_too(verb: str, run: Any, root: Path) -> None:
    volume = ["--volume", "v"] if verb == "push" else []
    code, out, err = run(verb, "-m", "none.toml", "--root", root, *volume, "--json")
    document = checked(out)
    assert (code, document["command"], document["error"]) == (2, verb, "ManifestError")
    assert err.startswith(f"weightcache: error: {document['message']}\n  hint: {document['hint']}")


def test_a_failed_download(run: Any, origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, always=answer(404))
    toml_of(one(DATA, origin.url("/a")), Path("weights.toml"))
    assert checked(run("ensure", "--root", root, "-q", "--json")[1])["error"] == "DownloadError"


def test_a_key_that_is_not_documented_is_found() -> None:
    with pytest.raises(ValidationError):
        checked(json.dumps({"version": 1, "command": "prune", "deleted": [], "more": 1}))
    with pytest.raises(ValidationError):
        checked(json.dumps({"version": 2, "command": "prune", "deleted": []}))
    with pytest.raises(ValidationError):
        checked(json.dumps({"version": 1, "command": "prune"}))


def test_the_examples_of_the_page() -> None:
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)]
    assert {each["command"] for each in blocks} == WITH_JSON
    for each in blocks:
        checked(json.dumps(each))


def test_words() -> None:
    assert (counted(1, "entry", "entries"), counted(2, "entry", "entries"), counted(0, "file")) == (
        "1 entry",
        "2 entries",
        "0 files",
    )
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
        "a, b, c and 1 more",
    ]
    assert MOST_ON_TERMINAL == 20
    assert len(sha256(b"")) == 64
