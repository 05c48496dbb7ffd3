"""An index that names shards which are not among the files is said, and stops nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from hub import File, Hub
from origin import Origin
from support import blob, sha256
from weightcache import Manifest, publish
from weightcache._store.shard_index import is_index, missing_shards

SHARDS = [f"model-0000{n}-of-00004.safetensors" for n in range(1, 5)]
LACKING = "model.safetensors.index.json names 4 shards, and 3 of them are not among the files of this checkpoint: "


def index(*shards: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": {f"layer.{n}": each for n, each in enumerate(shards)}}).encode()


def repository(**more: bytes) -> dict[str, bytes | File]:
    files: dict[str, bytes | File] = {name: File(name.encode() * 9, lfs=True) for name in SHARDS}
    return {"config.json": b"{}", "model.safetensors.index.json": index(*SHARDS, SHARDS[0]), **files, **more}


def test_add_says_which_shards_were_not_chosen(run: Any, hub: Hub) -> None:
    hub.push("acme/llm", "main", repository())
    words = ["add", "llm", "hf://acme/llm", "--include", "*.json", "--include", "*-00001-*", "--json", "-q"]
    code, out, err = run(*words)
    assert code == 0
    assert json.loads(out)["checkpoints"][0]["warnings"] == [f"{LACKING}{', '.join(SHARDS[1:])}"]
    assert err == f"weightcache: llm: {LACKING}{', '.join(SHARDS[1:])}\n"
    assert len(Manifest.load("weights.toml")["llm"].files) == 3
    assert run("add", "all", "hf://acme/llm", "-q")[::2] == (0, "")


def test_pin_says_it_of_the_files_that_are_declared(run: Any, hub: Hub) -> None:
    hub.push("acme/llm", "main", repository())
    names = ["model.safetensors.index.json", SHARDS[0]]
    files = "\n".join(f'"{name}" = {{}}' for name in names)
    Path("weights.toml").write_text(
        f'[checkpoints.llm]\nurls = ["hf://acme/llm@main"]\n[checkpoints.llm.files]\n{files}\n'
    )
    code, _, err = run("pin", "-q")
    assert (code, LACKING in err) == (0, True)


def test_an_index_of_a_nested_folder_and_of_a_list(run: Any, origin: Origin) -> None:
    name = "unet/diffusion_pytorch_model.safetensors.index.fp16.json"
    files = {
        "d/vae/w.bin": blob(100),
        f"d/{name}": index("a.safetensors", "b.safetensors"),
        "d/unet/a.safetensors": blob(9),
    }
    for path, data in files.items():
        origin.put(f"/{path}", data)
    Path("SUMS").write_text("".join(f"{sha256(data)}  {path[2:]}\n" for path, data in files.items()))
    code, _, err = run("add", "sd", origin.url("/d"), "--from-sha256sums", "SUMS", "-q")
    assert code == 0
    assert f"{name} names 2 shards, and 1 of them are not among the files of this checkpoint: unet/b.safetensors" in err


def test_a_shard_that_the_repository_itself_lacks(run: Any, hub: Hub) -> None:
    hub.push("acme/llm", "main", {**repository(), SHARDS[3]: None})
    code, _, err = run("add", "llm", "hf://acme/llm", "-q")
    assert (code, f"1 of them are not there: {SHARDS[3]}" in err) == (0, True)


def test_publish_says_it(run: Any, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "llm"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_bytes(index(*SHARDS))
    (folder / SHARDS[0]).write_bytes(blob(100))
    with caplog.at_level(logging.WARNING, "weightcache"):
        publish(folder, name="llm", root=root)
    assert caplog.messages == [f"llm: {LACKING}{', '.join(SHARDS[1:])}"]
    code, out, _ = run("publish", folder, "llm", "--root", root, "--json")
    assert (code, json.loads(out)["warnings"]) == (0, [f"{LACKING}{', '.join(SHARDS[1:])}"])
    code, out, err = run("add", "llm", "--from-dir", folder, "--json")
    assert (code, err) == (0, f"weightcache: llm: {LACKING}{', '.join(SHARDS[1:])}\n")
    assert len(json.loads(out)["checkpoints"][0]["warnings"]) == 1


def test_only_a_file_that_is_called_an_index_is_read_as_one(root: Path, tmp_path: Path, caplog: Any) -> None:
    folder = tmp_path / "llm"
    folder.mkdir()
    (folder / "notes.json").write_bytes(index(*SHARDS))
    with caplog.at_level(logging.WARNING, "weightcache"):
        publish(folder, name="llm", root=root)
    assert caplog.messages == []


def test_another_format_beside_it_is_enough() -> None:
    data = index("pytorch_model-1.bin", "pytorch_model-2.bin")
    name = "pytorch_model.bin.index.json"
    assert missing_shards(name, data, [name, "config.json"])
    assert missing_shards(name, data, [name, "pytorch_model-1.bin", "model.safetensors"])
    assert missing_shards(name, data, [name, "model.safetensors"]) == ""
    assert missing_shards(f"a/{name}", data, [f"a/{name}", "model.safetensors"])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'{"weight_map": 3}',
        b'{"weight_map": {"a": 3, "b": ""}}',
        b"[" * 100_000,
        b"\xff",
        b'"x"',
        b"null",
    ],
)
def test_what_is_no_index_is_let_be(data: bytes) -> None:
    assert missing_shards("model.safetensors.index.json", data, []) == ""


def test_a_hostile_index_is_shown_without_its_control_characters() -> None:
    text = missing_shards("m.index.json", index(*(f"\x1b[31m{n}" + "x" * 500 for n in range(9))), [])
    assert "\x1b" not in text
    assert len(text) < 600
    assert text.endswith(" and 6 more")


def test_what_an_index_is_called() -> None:
    for name in ("model.safetensors.index.json", "a/pytorch_model.bin.index.json", "m.safetensors.index.fp16.json"):
        assert is_index(name)
    for name in ("index.json", "model.json", "model.index.json.bak", "a.index.json/b", "faiss.index"):
        assert not is_index(name)
