"""Random and mutated inputs of the fuzz campaign: bytes, texts, and values as JSON and TOML have them."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

HUGE = (2**63, 2**64 + 1, -1, 10**30, 10**5000, -(10**400))
LONGEST = 60_000  # characters of a header: the HTTP client reads no longer line
TEXTS = (
    "", "\0", "\ud800", "\u202e\u200b", "..", "../../etc/passwd", "/", "a" * 5000, "\n", "\x1b[2J", "0" * 64, "f" * 40,
    "file:///dev/zero", "hf://a/b@main/c", "http://[", "http://a b/", "${HOME}", "${A", "é" * 300, "NaN", "1e999", "{}",
    "https://a:b@c:99999/", "https://\ud800/", "\\", "%zz%00", "CON", ".weightcache", "a/./b", "\r\nX: y", "sha256:",
)  # fmt: skip
TOKENS = (
    b'"', b"'", b"\\", b",", b";", b"=", b"[", b"]", b"{", b"}", b":", b"/", b"0", b"9", b"-", b".", b" ", b"\n",
    b"\r\n", b"\t", b"\0", b"\xff", b"\xed\xa0\x80", b"e", b"inf", b"nan", b"null", b"true", b"%", b"*", b"''",
    b"UTF-8''", b"bytes ", b"\xef\xbb\xbf", b"999999999999999999999", b"a", b"#",
    b'"""', b"[[", b"<Code>", b"&", b"?", b"@", b"://",
)  # fmt: skip


def bytes_from(random: Random, valid: bytes) -> bytes:
    """Return a mutation of ``valid``, or random bytes."""
    if random.random() < 0.1:
        return random.randbytes(random.choice([0, 1, 7, 300]))
    if random.random() < 0.1:
        return b"".join(random.choice(TOKENS) for _ in range(random.choice([1, 5, 40])))
    data = bytearray(valid)
    for _ in range(random.choice([1, 1, 2, 5, 20])):
        _change(random, data)
    return bytes(data)


def _change(random: Random, data: bytearray) -> None:
    at, end = sorted(random.randrange(len(data) + 1) for _ in range(2))
    kind = random.randrange(7)
    if kind == 0 and data:
        data[min(at, len(data) - 1)] ^= 1 << random.randrange(8)
    elif kind == 1:
        data[at:at] = random.choice(TOKENS)
    elif kind == 2:
        times = 40_000 if random.random() < 0.05 else random.choice([2, 100, 3000])
        data[at:at] = b"".join(random.choice(TOKENS) for _ in range(random.choice([1, 1, 2, 3]))) * times
    elif kind == 3:
        del data[at : min(end, at + 50)]
    elif kind == 4:
        data[at:at] = data[at : min(end, at + 200)]
    elif kind == 5:
        del data[at:]
    else:
        data[at : min(end, at + 4)] = random.choice(TEXTS).encode("utf-8", "surrogatepass")


def text_from(random: Random, valid: str) -> str:
    """Return a mutation of a header or a URL, with any character that the client's library may deliver."""
    if random.random() < 0.15:
        return random.choice(TEXTS) + random.choice(TEXTS)
    return bytes_from(random, valid.encode("utf-8", "surrogatepass")).decode("latin-1")[:LONGEST]


def value_from(random: Random, valid: Any) -> Any:
    """Return a mutation of a value of dicts, lists, texts and numbers: wrong types, huge numbers, deep nesting."""
    value = copy.deepcopy(valid)
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        value = _changed(random, value)
    return value


def _changed(random: Random, value: Any) -> Any:
    """Change one part of a value, at any depth."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        kind = random.randrange(8)
        if kind == 0:
            del value[key]
        elif kind == 1:
            value[random.choice(TEXTS)] = value[key]
        elif kind == 2:
            value[random.choice([str(key) + "\0", str(key).upper(), str(key) + "/a"])] = value.pop(key)
        else:
            value[key] = _changed(random, value[key])
        return value
    if isinstance(value, list) and value and random.random() < 0.85:
        index = random.randrange(len(value))
        value[index] = _changed(random, value[index])
        return value * random.choice([1, 1, 1, 2])
    return _other(random, value)


def _other(random: Random, value: Any) -> Any:
    kind = random.randrange(10)
    if kind < 3 and isinstance(value, str):
        return text_from(random, value)
    if kind < 3 and type(value) is int:
        return random.choice([value + 1, -value, 0, float(value) if abs(value) < 1 << 60 else 0.5, f"{value % 1000}"])
    if kind == 3:
        return random.choice(HUGE)
    if kind in (4, 5):
        return random.choice(TEXTS)
    if kind == 6:
        return nested(random.choice([3, 60, random.randrange(300, 1000), 3000]), random.random() < 0.5)
    return random.choice(
        [None, True, False, [], {}, [[]], {"": None}, 0, 1.5, float("inf"), float("nan"), [value], {"a": value}]
    )


def nested(depth: int, is_list: bool) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value] if is_list else {"a": value}
    return value


def json_of(value: Any) -> bytes:
    """Return JSON, also of what has no JSON: as far as a hostile writer can get."""
    try:
        return json.dumps(value).encode("utf-8", "surrogatepass")
    except (RecursionError, ValueError):
        return b'{"a":' * 3000 + b"1" + b"}" * 3000
