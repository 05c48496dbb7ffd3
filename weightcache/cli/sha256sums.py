"""Reading a list of digests as ``sha256sum`` writes it."""

from __future__ import annotations

import io
import re
import sys
from itertools import islice
from typing import TYPE_CHECKING

from weightcache.errors import ManifestError
from weightcache.manifest.validate import path_problem

if TYPE_CHECKING:
    from typing import TextIO

_GNU = re.compile(r"([0-9A-Fa-f]{64}) [ *](.+)")
_CHUNK = 1 << 16  # characters
_LONGEST = 64 << 20  # characters, about 500,000 files; a path may name /dev/zero
_MOST_PROBLEMS = 99  # what is no list, such as a binary file, has one in each of millions of lines
_BSD = re.compile(r"SHA256 \((.+)\) = ([0-9A-Fa-f]{64})")


def read_sha256sums(path: str) -> dict[str, str]:
    """Return the digests of a list, by path. ``-`` is standard input.

    Both formats are read: ``DIGEST  PATH`` and, with ``--tag`` or on a Mac, ``SHA256 (PATH) = DIGEST``.

    Raises:
        ManifestError: It cannot be read, or a line or path is invalid; the message lists the first 99 such lines.
    """
    digests: dict[str, str] = {}
    problems = list[str]()
    for number, text in enumerate(io.StringIO(_read(path)), 1):
        if len(problems) == _MOST_PROBLEMS:
            problems.append(f"line {number} and those after it were not read")
            break
        line = text.rstrip("\n")
        if not line.strip() or line.startswith("#"):
            continue
        if match := _GNU.fullmatch(line):
            digest, inner = match[1].lower(), match[2].removeprefix("./")
        elif match := _BSD.fullmatch(line):
            digest, inner = match[2].lower(), match[1].removeprefix("./")
        else:
            # Also a leading backslash: that path has a newline or backslash, which a manifest may not contain.
            problems.append(f"line {number}: want DIGEST  PATH, got {line[:80]!r}")
            continue
        if problem := path_problem(inner):
            problems.append(f"line {number}: {inner!r:.120} {problem}")
        elif digests.setdefault(inner, digest) != digest:
            problems.append(f"line {number}: a second digest for {inner!r:.120}")
    if not digests and not problems:
        problems.append("names no file")
    if problems:
        raise _error(path, problems)
    return digests


def _read(path: str) -> str:
    try:
        if path == "-":
            text = _beginning(sys.stdin)
        else:
            with open(path, encoding="utf-8-sig") as stream:
                text = _beginning(stream)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        raise _error(path, [f"cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}"]) from None
    if len(text) > _LONGEST:
        raise _error(path, [f"has more than {_LONGEST:,} characters, the most that is read of a list"])
    return text


def _beginning(stream: TextIO) -> str:
    """Return a text, or more than `_LONGEST` characters of it. One read of that size would allocate them."""
    return "".join(islice(iter(lambda: stream.read(_CHUNK), ""), _LONGEST // _CHUNK + 1))


def _error(path: str, problems: list[str]) -> ManifestError:
    refused = ManifestError(path, problems)
    refused.hint = "give the output of `sha256sum FILE…`; nothing was changed"
    return refused
