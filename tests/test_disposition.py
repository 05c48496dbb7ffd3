"""The name in Content-Disposition: as RFC 6266 has it, as servers send it, and as an attacker would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightcache._disposition import suggested_name
from weightcache._rules import path_problem


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
