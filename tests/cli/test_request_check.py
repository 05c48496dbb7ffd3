"""What a manifest asks of whom, before anything is asked: `doctor` shows it, so that a person can review it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from weightcache import Manifest
from weightcache.cli.request_check import check_requests

HUB = f"hf://acme/b@{'0' * 40}/b.pt"


def said(**entries: dict[str, Any]) -> list[tuple[bool, str]]:
    rest = {"sha256": "0" * 64, "file": "w.pt", "size": 1}
    manifest = Manifest.load({"checkpoints": {name: {**rest, **entry} for name, entry in entries.items()}})
    return [tuple(check) for check in check_requests([*manifest])]


def test_each_host_is_listed_with_what_it_gets() -> None:
    first = {"urls": ["https://user:pw@a.example:8443/x?key=${KEY}&sig=secret", HUB], "auth": "TOKEN"}
    assert said(first=first, second={"urls": ["https://a.example:8443/y", HUB, "file:///etc/x"]}, own={"urls": []}) == [
        (True, "https://a.example:8443 is asked for first, second, and gets TOKEN, KEY"),
        (True, "https://huggingface.co is asked for first, second, and gets TOKEN, the user's token of the Hub"),
        (True, "files of this machine are read for second"),
    ]


def test_a_secret_over_http() -> None:
    [(ok, text)] = said(a={"urls": ["http://a.example/x"], "auth": "TOKEN"})
    assert (ok, "gets TOKEN, which everybody on the way can read: use https" in text) == (False, True)
    assert said(a={"urls": ["http://a.example/x"]})[0][0]


@pytest.mark.parametrize("host", ["10.0.0.1", "[fd12::1]", "localhost", "db", "minio.internal", "127.0.0.1:9000"])
def test_an_address_of_ones_own_network(host: str) -> None:
    address = f"http://{host}"
    assert said(a={"urls": [f"{address}/x"], "auth": "TOKEN"}) == [
        (True, f"{address}, in your own network, is asked for a, and gets TOKEN")
    ]


def test_an_address_that_is_refused() -> None:
    assert said(a={"urls": ["http://169.254.169.254/latest"]}) == [
        (False, "http://169.254.169.254 is named by a; no request is sent to such an address")
    ]


@pytest.mark.parametrize("host", ["0xa9fea9fe", "2852039166"])
def test_an_address_that_is_refused_in_another_form(host: str) -> None:
    assert said(a={"urls": [f"http://{host}/latest"]})[0][0] is False


@pytest.mark.parametrize("host", ["134744072", "0x08080808", "8.8.2056"])
def test_a_number_is_the_address_that_it_stands_for(host: str) -> None:
    """These are 8.8.8.8, so a secret would leave your network."""
    [(ok, text)] = said(a={"urls": [f"http://{host}/x"], "auth": "TOKEN"})
    assert (ok, "your own network" in text) == (False, False)


def test_what_netrc_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine a.example login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    [(ok, text)] = said(a={"urls": ["http://a.example/x"]})
    assert not ok
    assert text.startswith("http://a.example is asked for a, and gets what netrc has for it, which everybody")
    assert "netrc" not in said(a={"urls": ["http://a.example/x"], "auth": "TOKEN"})[0][1]  # which goes there instead
    assert said(a={"urls": ["https://b.example/x"]}) == [(True, "https://b.example is asked for a")]


@pytest.mark.parametrize("endpoint", ["https://[bad", "hf-mirror.example"])
def test_an_address_of_the_hub_that_is_invalid(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not hide what is said of the other entries."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    found = said(a={"urls": [HUB]}, b={"urls": ["https://b.example/x"]})
    assert len(found) == 2
    assert "your own network" not in found[0][1]
    assert found[1] == (True, "https://b.example is asked for b")


def test_what_has_no_size() -> None:
    many = {f"c{number}": {"urls": ["https://h.example/x"], "size": None} for number in range(7)}
    assert said(**many)[1:] == [
        (True, "c0, c1, c2, c3, c4 and 2 more: without `size`, a mirror decides how many bytes are written")
    ]


def test_doctor_shows_it_and_needs_no_root(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "theirs.toml"
    path.write_text(f'[checkpoints.a]\nurls = ["http://h.example/x"]\nauth = "PATH"\nsha256 = "{"0" * 64}"\n')
    code, out, _ = run("doctor", "--json", "-m", path)
    [asked, unsized] = [each for each in json.loads(out)["findings"] if each["check"] == "requests"]
    assert (code, asked["ok"], asked["code"], unsized["ok"]) == (0, False, 0, True)
    assert asked["text"].startswith("http://h.example is asked for a, and gets PATH")
    assert run("doctor")[0] == 2  # without a manifest, a root or a Volume there is nothing to check
