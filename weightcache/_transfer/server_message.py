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
MOST_SECRETS = 1 << 15  # characters; a signed URL has a few thousand, and a redirect may have any number
_KEYS = ("code", "error", "errors", "message", "msg", "detail", "title", "error_description", "reason")
_HIDDEN = "…"


def reason(body: bytes, secrets: Collection[str]) -> str:
    """Return the error code and message of an XML or JSON error, in one line; empty without one.

    Args:
        body: The first bytes of the body.
        secrets: See `secrets_in`.
    """
    known = _Secrets(secrets)
    found = list(dict.fromkeys(_safe(text, known) for text in (*_of_xml(body), *_of_json(body))))
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
    return _safe(text, _Secrets(secrets))


class _Secrets:
    """What a word may not repeat, as sets of short parts: a word is looked up in the time that its own length takes.

    A server chooses how many words it sends, and by a redirect how many secrets they are compared with.
    """

    def __init__(self, secrets: Collection[str]) -> None:
        self.too_many = sum(map(len, secrets)) > MOST_SECRETS
        self._whole = frozenset(() if self.too_many else secrets)
        self._parts = dict[int, set[str]]()  # by their length
        for secret in self._whole:
            size = min(len(secret), PART)
            if size >= 4:  # a shorter one is in many words
                parts = self._parts.setdefault(size, set())
                parts.update(secret[at : at + size] for at in range(len(secret) - size + 1))

    def are_in(self, word: str, bare: str) -> bool:
        """Whether a word, or what is left of it without the marks around it, repeats a secret or a part of one."""
        if self.too_many or bare in self._whole:
            return True
        return any(
            word[at : at + size] in parts for size, parts in self._parts.items() for at in range(len(word) - size + 1)
        )


def _safe(text: str, secrets: _Secrets) -> str:
    if secrets.too_many:
        return ""
    line = "".join(each if each.isprintable() else " " for each in text[: 20 * LONGEST])
    words = [_HIDDEN if _is_secret(word, secrets) else word for word in line.split()]
    return " ".join(words)[:LONGEST].strip()


def _is_secret(word: str, secrets: _Secrets) -> bool:
    if secrets.are_in(word, word.strip("'\"`.,;:!?()[]{}<>")):
        return True  # or a part of one, as in "the key beginning with hf_abc"
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
