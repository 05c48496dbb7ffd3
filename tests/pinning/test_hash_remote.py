"""`add` and `pin`: a digest is of one whole file, whatever a server does while it is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from origin import Origin, broken, other_bytes, stalled
from origin import status as answer
from pins import DATA, LARGE, text
from support import blob, change_settings, quiet, sha256
from weightcache import Manifest
from weightcache._pinning.hash_remote import CHUNK

FAULTS: dict[str, Any] = {
    "breaks off": [broken(CHUNK + 5), broken(2 * CHUNK)],
    "stumbles": [answer(503), broken(10), answer(429, {"Retry-After": "0"})],
    "changes": [broken(2 * CHUNK), other_bytes(LARGE, '"another"')],
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("etag", ['"strong"', None])
def test_a_pin_is_of_one_whole_file(faults: list[Any], etag: str | None, run: Any, origin: Origin, root: Path) -> None:
    origin.put("/b.pt", LARGE, faults=list(faults), etag=etag)
    code, _, err = run("add", "b", origin.url("/b.pt"), "--root", root)
    assert code == 0, err
    assert Manifest.load("weights.toml")["b"].digest == sha256(LARGE)
    assert quiet("weights.toml", root, offline=True)["b"].read_bytes() == LARGE


def test_bytes_of_two_versions_are_not_joined(run: Any, origin: Origin) -> None:
    """Without a strong ETag nothing says that the rest belongs to what came before."""
    origin.put("/b.pt", LARGE, faults=[broken(CHUNK), other_bytes(bytes(len(LARGE)))], etag=None)
    assert run("add", "b", origin.url("/b.pt"))[0] == 0
    assert Manifest.load("weights.toml")["b"].digest in (sha256(LARGE), sha256(bytes(len(LARGE))))


def test_a_part_that_nobody_asked_for_is_not_asked_for_again_for_ever(run: Any, origin: Origin) -> None:
    part = {"Content-Range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}"}
    origin.put("/b.pt", DATA, faults=[answer(206, part, DATA)] * 3, always=answer(404))
    code, _, err = run("add", "b", origin.url("/b.pt"))
    assert (code, "HTTP 206 with Content-Range" in err, len(origin.requests)) == (3, True, 1), err


@pytest.mark.parametrize("length", [True, False])
def test_a_mirror_of_another_length_is_left_as_soon_as_it_shows(length: bool, run: Any, origin: Origin) -> None:
    longer = blob(40 * CHUNK)
    origin.put("/b.pt", longer, length=length)
    entry = f'[checkpoints.b]\nurls = ["{origin.url("/b.pt")}"]\nsize = {CHUNK}\n'
    Path("weights.toml").write_text(entry)
    code, _, err = run("pin")
    assert (code, f"wrong bytes: expected {CHUNK} bytes, got" in err, text()) == (3, True, entry), err
    assert origin.sent() < len(longer)
    origin.put("/c.pt", longer[:CHUNK])
    Path("weights.toml").write_text(entry.replace("urls = [", f'urls = ["{origin.url("/c.pt")}", '))
    assert "expected 1048576 bytes\n  actual   " in run("pin")[2] or length is False
    Path("weights.toml").write_text(entry.replace('"]', f'", "{origin.url("/c.pt")}"]'))
    origin.files["/b.pt"].always = answer(404)
    assert run("pin")[0] == 0
    assert Manifest.load("weights.toml")["b"].digest == sha256(longer[:CHUNK])


def test_a_mirror_that_never_delivers_the_end(run: Any, origin: Origin) -> None:
    origin.put("/b.pt", LARGE, always=broken(CHUNK), etag=None)
    code, _, err = run("add", "b", origin.url("/b.pt"))
    assert (code, "cannot be pinned, no mirror delivered it" in err, os.listdir()) == (3, True, [])


def test_what_a_disk_took_half_of_is_not_taken_for_whole(run: Any, origin: Origin, small_disk: Path) -> None:
    """The last write of a file may be cut short without an error; there is no next one to fail."""
    origin.put("/b.pt", blob(8 * CHUNK + 100))
    code, _, err = run("add", "b", origin.url("/b.pt"), "--root", small_disk / "root")
    assert (code, "kept: the disk is full" in err, os.listdir()) == (5, True, []), err


def test_a_length_that_was_not_announced_is_told(run: Any, origin: Origin) -> None:
    def unannounced(exchange: Any) -> None:
        exchange.head(200, {"Connection": "close"})
        exchange.body(DATA)

    origin.put("/b.pt", DATA, always=unannounced)
    code, out, _ = run("add", "b", origin.url("/b.pt"))
    assert (code, "the server announced no length: check that the file is complete" in out) == (0, True)


def test_a_stalled_mirror_is_left_for_the_next(run: Any, origin: Origin, mirror: Origin, monkeypatch: Any) -> None:
    change_settings(monkeypatch, connect_timeout=5.0, stall_timeout=0.2)
    origin.put("/b.pt", LARGE, always=stalled(CHUNK), etag=None)
    mirror.put("/b.pt", LARGE)
    code, out, _ = run("add", "b", origin.url("/b.pt"), mirror.url("/b.pt"))
    assert (code, f"computed here from {mirror.url('/b.pt')}" in out) == (0, True)
