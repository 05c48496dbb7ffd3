"""Find keys of TOML with too many parts: tomllib takes the square of their number, minutes for a file of 200 KB."""

from __future__ import annotations

import re

MOST_PARTS = 64  # a manifest needs five

# A comment or a string of any kind. One without an end goes on to the end of its line or of the file.
_TEXT = re.compile(
    rb"#[^\n]*"
    rb'|"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{0,5}'
    rb"|'''(?:[^']|'{1,2}(?!'))*'{0,5}"
    rb'|"[^"\\\n]*(?:\\[^\n][^"\\\n]*)*"?'
    rb"|'[^'\n]*'?",
    re.DOTALL,
)
_LONG_KEY = re.compile(
    rb"(?<![\w.-])[\w-]+(?:\.[\w-]+){%d}" % MOST_PARTS
)  # tried only where a key begins: it takes 64 parts each time


def has_long_key(data: bytes) -> bool:
    """Whether a key has more than `MOST_PARTS` parts. A point in a comment or a string does not divide a key."""
    if all(line.count(b".") < MOST_PARTS for line in data.splitlines()):
        return False
    bare = _TEXT.sub(lambda found: b"" if found[0][:1] == b"#" else b"_", data)
    return _LONG_KEY.search(bare.translate(None, b" \t")) is not None
