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


def test_what_has_no_size() -> None:
    many = {f"c{number}": {"urls": ["https://h.example/x"], "size": None} for number in range(7)}
    assert said(**many)[1:] == [
        (True, "c0, c1, c2, c3, c4 and 2 more: without `size`, a mirror decides how many bytes are written")
    ]


def test_doctor_shows_it_and_needs_no_root(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "theirs.toml"
    path.write_text(f'[checkpoints.a]\nurls = ["http://h.example/x"]\nauth = "PATH"\nsha256 = "{"0" * 64}"\n')
    code, out, _ = run("doctor", "--json", "-m", path)
    [asked, unsized] = [each for each in json.loads(out) if each["check"] == "requests"]
    assert (code, asked["ok"], asked["code"], unsized["ok"]) == (0, False, 0, True)
    assert asked["text"].startswith("http://h.example is asked for a, and gets PATH")
    assert run("doctor")[0] == 2  # without a manifest, a root or a Volume there is nothing to check
