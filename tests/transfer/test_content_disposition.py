"""The name in Content-Disposition: as RFC 6266 has it, as servers send it, and as an attacker would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from origin import Exchange, Origin
from support import blob, sha256
from weightcache import Manifest, ensure
from weightcache._transfer.content_disposition import suggested_name
from weightcache.manifest.urls import has_ending
from weightcache.manifest.validate import path_problem

DATA = blob(5000)


def on_the_wire(text: str) -> str:
    """A header in UTF-8 as requests has it."""
    return text.encode().decode("latin-1")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", ""),
        ("inline", ""),
        ("attachment; filename=model.bin", "model.bin"),
        ('attachment; filename="BodHor V1.safetensors"', "BodHor V1.safetensors"),
        ('ATTACHMENT;FILENAME = "a;b.pt"; size=3', "a;b.pt"),
        (r'attachment; filename="a \"b\".pt"', 'a "b".pt'),
        ("filename=x.pt", "x.pt"),
        ("attachment; filename*=UTF-8''na%C3%AFve%20f.pt", "naïve f.pt"),
        ("attachment; filename=\"fallback.pt\"; filename*=utf-8'en'%e2%82%ac.pt", "€.pt"),
        ("attachment; filename*=iso-8859-1''%e9.pt", "é.pt"),
        ("attachment; filename*=UTF-8''%ff.pt; filename=z.pt", "z.pt"),
        ("attachment; filename*=KOI8-R''x; filename=y.pt", "y.pt"),
        (on_the_wire('attachment; filename="Größe €.pt"'), "Größe €.pt"),
        ('attachment; filename="\xe9.pt"', "é.pt"),
        ('attachment; filename="a%20b.pt"', "a b.pt"),
        ('attachment; filename="100%.pt"', "100%.pt"),
        ('attachment; filename="unclosed.pt', "unclosed.pt"),
        ('attachment; filename="', ""),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        (r'attachment; filename="..\\..\\x.pt"', "x.pt"),
        ("attachment; filename*=UTF-8''..%2F..%5Cx.pt", "x.pt"),
        ("attachment; filename*=UTF-8''%00%1b%E2%80%AEx%0a.pt", "x.pt"),
        ('attachment; filename=".."', ""),
        ('attachment; filename="/"', ""),
        ('attachment; filename=".hidden.pt "', "hidden.pt"),
        (f'attachment; filename="{"a" * 300}.pt"', ""),
    ],
)
def test_the_name_in_a_header(header: str, expected: str) -> None:
    assert suggested_name(header, "https://h/1") == expected


def test_the_name_that_a_signed_url_carries() -> None:
    signed = "https://h/1?X-Amz-Signature=s&{}=attachment%3B%20filename%3D%22Bod%20V1.pt%22"
    assert suggested_name("", signed.format("response-content-disposition")) == "Bod V1.pt"
    assert suggested_name("", signed.format("rscd")) == "Bod V1.pt"
    assert suggested_name("inline", signed.format("Response-Content-Disposition")) == "Bod V1.pt"
    assert suggested_name("attachment; filename=header.pt", signed.format("rscd")) == "header.pt"
    assert suggested_name("", "https://h/1?filename=x.pt") == ""


@given(
    st.text(max_size=60),
    st.sampled_from(["filename={}", 'attachment; filename="{}"', "attachment; filename*=UTF-8''{}"]),
)
def test_whatever_it_says_is_one_name_or_none(text: str, form: str) -> None:
    for header in (form.format(text), on_the_wire(form.format(text.encode(errors="ignore").decode()))):
        name = suggested_name(header, f"https://h/1?rscd={text}")
        assert not name or (path_problem(name) is None and "/" not in name)


def named(header: str) -> Any:
    """A good answer with a Content-Disposition."""

    def answer(exchange: Exchange) -> None:
        headers = exchange.good_headers() | {"Content-Length": len(DATA), "Content-Disposition": header}
        exchange.head(200, headers)
        exchange.body(DATA)

    return answer


def leads_to(url: str) -> Any:
    return lambda exchange: exchange.head(307, {"Location": url, "Content-Length": 0})


def file_of(name: str) -> str:
    return Manifest.load("weights.toml")[name].files[0].path


def test_add_takes_the_name_where_the_url_ends_in_none(run: Any, origin: Origin, root: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("CIVITAI_TOKEN", "hush")
    signed = origin.url(
        "/x.D8rD.pt?X-Amz-Signature=s&response-content-disposition=attachment%3B%20filename%3D%22B%20V1.pt%22"
    )
    origin.put("/api/download/models/138296", b"", always=leads_to(signed))
    origin.put("/x.D8rD.pt", DATA)
    code, out, err = run(
        "add", "w", origin.url("/api/download/models/138296?type=Model&token=${CIVITAI_TOKEN}"), "--root", root
    )
    assert code == 0, err
    assert f"  B V1.pt  5,000 bytes\n    sha256 {sha256(DATA)}\n" in out
    assert "; the file name is the server's" in out
    assert "hush" not in out + err + Path("weights.toml").read_text()
    assert file_of("w") == "B V1.pt"
    assert ensure("weights.toml", root=root, offline=True)["w"].name == "B V1.pt"


def test_add_offers_another_name(run: Any, origin: Origin) -> None:
    origin.put("/latest.pt", b"", always=named('attachment; filename="B\'s V1.pt"'))
    code, out, err = run("add", "w", origin.url("/latest.pt"), "--json", "-q")
    assert (code, file_of("w")) == (0, "latest.pt")
    [warning] = json.loads(out)["checkpoints"][0]["warnings"]
    assert warning == """the server calls it B's V1.pt; to use that name, give --file 'B'"'"'s V1.pt'"""
    assert err == f"weightcache: w: {warning}\n"
    code, _, err = run("add", "v", origin.url("/latest.pt"), "--file", "B's V1.pt", "-q")
    assert (code, err, file_of("v")) == (0, "", "B's V1.pt")


@pytest.mark.parametrize("header", ["attachment; filename=latest.pt", "inline", 'attachment; filename=".."'])
def test_nothing_is_said_of_the_same_name_or_none(header: str, run: Any, origin: Origin) -> None:
    origin.put("/latest.pt", b"", always=named(header))
    assert run("add", "w", origin.url("/latest.pt"), "-q")[::2] == (0, "")


def test_file_wins(run: Any, origin: Origin) -> None:
    origin.put("/1", b"", always=named("attachment; filename=x.pt"))
    assert run("add", "w", origin.url("/1"), "--file", "mine", "-q")[::2] == (0, "")
    assert file_of("w") == "mine"


def test_pin_says_the_name_and_leaves_the_entry(run: Any, origin: Origin) -> None:
    origin.put("/1", b"", always=named("attachment; filename=x.pt"))
    Path("weights.toml").write_text(f'[checkpoints.w]\nurls = ["{origin.url("/1")}"]\n')
    code, _, err = run("pin", "-q")
    assert (code, file_of("w")) == (0, "1")
    assert err == "weightcache: w: the server calls it x.pt; to use that name, set `file` in its entry\n"


def test_what_an_ending_is() -> None:
    assert all(map(has_ending, ["a.pt", "a.7z", "a b.v1.safetensors", "x.tar.gz"]))
    assert not any(map(has_ending, ["138296", "v1.5", "model", ".hidden", "a.", "download"]))
