"""`weightcache doctor` and the tokens of the Hugging Face Hub: present, of a valid form, accepted by the Hub."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import run
from hub import Hub
from weightcache import Manifest
from weightcache.cli.hub_token_check import check_hub_tokens

TOKEN = "hf_SeCrEtSeCrEtSeCrEt"
COMMIT = "0" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        for key, value in server.environment(tmp_path / "hf").items():
            monkeypatch.setenv(key, value)
        for key in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(key, raising=False)
        server.grant(TOKEN)
        yield server


def manifest(url: str = f"hf://org/name@{COMMIT}/x.pt", name: str = "a", auth: str = "") -> str:
    own = f'auth = "{auth}"\n' if auth else ""
    return f'[checkpoints.{name}]\nurls = ["{url}"]\n{own}sha256 = "{"0" * 64}"\n'


def checks(text: str, tmp_path: Path) -> list[tuple[bool, str]]:
    (tmp_path / "checked.toml").write_text(text)
    found = [tuple(each) for each in check_hub_tokens([Manifest.load(tmp_path / "checked.toml")])]
    assert TOKEN not in str(found)
    return found


def test_a_token_that_the_hub_accepts(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert checks(manifest(), tmp_path) == [(True, f"{hub.url} accepts the token from HF_TOKEN")]
    assert len(hub.seen) == 1
    monkeypatch.setenv("MINE", TOKEN)
    assert checks(manifest(auth="MINE"), tmp_path) == [(True, f"{hub.url} accepts the token from MINE")]
    assert checks(manifest("https://h/x.pt", auth="MINE"), tmp_path) == []  # it goes to another host
    assert len(hub.seen) == 2


def test_a_token_that_it_refuses(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    [(ok, text)] = checks(manifest(), tmp_path)
    assert not ok
    assert text.startswith(f"{hub.url} refuses the token from HF_TOKEN: HTTP 401; make a new one at {hub.url}/settings")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert "(it does not begin with hf_ or api_org_)" in checks(manifest(), tmp_path)[0][1]


def test_a_token_of_an_invalid_form_is_not_sent(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_ü")
    [(ok, text)] = checks(manifest(), tmp_path)
    assert (ok, "environment variable HF_TOKEN holds characters no token has; set HF_TOKEN" in text) == (False, True)
    assert hub.seen == []


def test_no_token_is_no_problem(hub: Hub, tmp_path: Path) -> None:
    assert checks(manifest(), tmp_path) == [(True, "there is no token of the Hub: public repositories need none")]
    assert checks(manifest("https://h/x.pt"), tmp_path) == []
    assert checks(manifest(auth="NOT_SET"), tmp_path) == []  # which is a finding of its own
    assert hub.seen == []


def test_offline_is_no_error(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert checks(manifest(), tmp_path) == [
        (True, "the token from HF_TOKEN has a valid form; not sent: HF_HUB_OFFLINE")
    ]
    assert hub.seen == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nothing listens there
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        [(ok, text)] = checks(manifest(), tmp_path)
    assert ok
    assert text.endswith("was not asked: no connection")


def test_a_hub_that_does_not_answer(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("weightcache.cli.hub_token_check.TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert checks(manifest(), tmp_path)[0][0]


def test_doctor_checks_every_manifest(
    hub: Hub, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.toml").write_text(manifest("https://h/x.pt", name="one", auth="NOT_SET"))
    (tmp_path / "two.toml").write_text(manifest(name="two"))
    code, out, _ = run(capsys, "doctor", "-m", "one.toml", "-m", "two.toml", "--root", root, "--json")
    texts = {each["check"]: "" for each in json.loads(out)["findings"]}
    for each in json.loads(out)["findings"]:
        texts[each["check"]] += each["text"]
    assert code == 3
    assert "one.toml: 1 checkpoint(s)" in texts["manifest"]
    assert "two.toml: 1 checkpoint(s)" in texts["manifest"]
    assert "NOT_SET is not set, and one needs it: set NOT_SET in the environment" in texts["token"]
    assert "refuses the token from HF_TOKEN" in texts["token"]
    code, out, _ = run(capsys, "doctor", "-m", "one.toml", "-m", "absent.toml", "--root", root)
    assert code == 3
    assert "absent.toml: 1 problem" in out
    assert "room" in out  # what can be checked of the other one is checked
