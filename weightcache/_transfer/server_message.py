"""The message in the body of a refusal, made safe to show.

Only texts for people are read: Code and Message of an XML error, and a few keys of a JSON error. Servers repeat parts
of the request, so every secret of the request is left out, and everything that looks like one.
"""

from __future__ import annotations

import base64
import html
import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import unquote, unquote_plus, urlsplit

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

LONGEST = 160  # characters that are shown
PART = 6  # so many characters of a secret are a secret, too
_KEYS = ("code", "error", "errors", "message", "msg", "detail", "title", "error_description", "reason")
_HIDDEN = "…"


def reason(body: bytes, secrets: Collection[str]) -> str:
    """Return the error code and message of an XML or JSON error, in one line; empty without one.

    Args:
        body: The first bytes of the body.
        secrets: See `secrets_in`.
    """
    found = list(dict.fromkeys(safe(text, secrets) for text in (*_of_xml(body), *_of_json(body))))
    return ": ".join([each for each in found if each and not each.isdecimal()][:2])[:LONGEST]


def _of_xml(body: bytes) -> Iterator[str]:
    for name in (b"Code", b"Message"):
        if match := re.search(rb"<%b>([^<>]{1,2000})</%b>" % (name, name), body, re.IGNORECASE):
            yield html.unescape(match[1].decode("utf-8", "replace"))


def _of_json(body: bytes) -> Iterator[str]:
    if body.lstrip()[:1] in (b"{", b"["):
        with suppress(ValueError, RecursionError):
            yield from _words(json.loads(body), 4)


def _words(value: object, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and value and depth:
        yield from _words(value[0], depth - 1)
    elif isinstance(value, dict) and depth:
        known = {str(key).lower(): inner for key, inner in value.items()}
        for key in _KEYS:
            yield from _words(known.get(key), depth - 1)


def safe(text: str, secrets: Collection[str]) -> str:
    """Return a server's text in one short line, without what is or may be a secret."""
    line = "".join(each if each.isprintable() else " " for each in text[: 20 * LONGEST])
    words = [_HIDDEN if _is_secret(word, secrets) else word for word in line.split()]
    return " ".join(words)[:LONGEST].strip()


def _is_secret(word: str, secrets: Collection[str]) -> bool:
    bare = word.strip("'\"`.,;:!?()[]{}<>")
    if any(bare == secret or (len(secret) >= 4 and secret in word) for secret in secrets):
        return True
    if any(secret[at : at + PART] in word for secret in secrets for at in range(len(secret) - PART + 1)):
        return True  # a part of one, as in "the key beginning with hf_abc"
    if "://" in word or "@" in word or re.search(r"[?&=]\S", word):
        return True
    runs = re.findall(r"[A-Za-z0-9+/_~.%-]{16,}", word)
    return any(len(run) >= 40 or any(each.isdigit() for each in run) for run in runs)


def secrets_in(headers: Mapping[str, str | bytes], *urls: str) -> set[str]:
    """Return the secrets of a request: credentials, and every value in the query of its URLs."""
    found = set[str]()
    for url in urls:
        with suppress(ValueError):
            parts = urlsplit(url)
            for each in re.split("[&;]", parts.query):
                value = each.partition("=")[2] or each
                found |= {value, unquote(value), unquote_plus(value)}
            credentials = parts.netloc.rpartition("@")[0]
            found |= {credentials, *credentials.split(":"), *map(unquote, credentials.split(":"))}
    for name in ("Authorization", "Proxy-Authorization"):
        value = headers.get(name) or ""
        scheme, _, token = (value.decode("latin-1") if isinstance(value, bytes) else value).partition(" ")
        found.add(token)
        if scheme == "Basic":
            with suppress(ValueError):
                pair = base64.b64decode(token).decode("latin-1")
                found |= {pair, *pair.split(":", 1)}
    return found - {""}
