"""What an error says of a response: its status, and what came instead of weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from weightcache._transfer.response_head import header_number, status_in_words, unexpected_content

DECLARED = "https://weights.example/a.pt"


@pytest.mark.parametrize(
    ("head", "url", "said"),
    [
        (b"<html>", DECLARED, "an HTML page"),
        (b"<html>", "https://login.example/a.pt", "an HTML page from login.example, to which it redirects"),
        (b"<html>", "https://weights.example/login", "an HTML page, after a redirect"),
        (b"PK\x03\x04", DECLARED, ""),
        (b"PK\x03\x04", "https://cdn.example/a.pt", ""),
    ],
)
def test_what_came_instead_of_weights(head: bytes, url: str, said: str) -> None:
    response: Any = SimpleNamespace(headers={}, url=url)
    assert unexpected_content(head, response, DECLARED, "a.pt") == said


def test_a_status_is_shown_without_what_could_paint_the_terminal() -> None:
    response: Any = SimpleNamespace(status_code=503, reason="\x1b[2JBusy")
    assert status_in_words(response) == "HTTP 503 [2JBusy"
    response.reason = None
    assert status_in_words(response) == "HTTP 503"


@pytest.mark.parametrize(
    ("value", "number"),
    [(" 12 ", 12), ("0", 0), ("-1", None), ("1_0", None), ("٣", None), ("9" * 19, None), (None, None)],
)
def test_a_number_in_a_header(value: str | None, number: int | None) -> None:
    assert header_number(value) == number
