"""Digests that somebody published in a file, as ``sha256sum`` writes them."""

from __future__ import annotations

import re
import sys

from weightcache.errors import ManifestError
from weightcache.manifest.validate import path_problem

_GNU = re.compile(r"([0-9A-Fa-f]{64}) [ *](.+)")
_BSD = re.compile(r"SHA256 \((.+)\) = ([0-9A-Fa-f]{64})")


def read_sha256sums(path: str) -> dict[str, str]:
    """Return the digests of a list, by path. ``-`` is standard input.

    Both forms are read: ``DIGEST  PATH`` and, with ``--tag`` or on a Mac, ``SHA256 (PATH) = DIGEST``.

    Raises:
        ManifestError: It cannot be read, or a line is neither, or a path is against the rules; all lines are listed.
    """
    try:
        if path == "-":
            text = sys.stdin.read()
        else:
            with open(path, encoding="utf-8-sig") as stream:
                text = stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise _error(path, [f"cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}"]) from None
    digests: dict[str, str] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if match := _GNU.fullmatch(line):
            digest, inner = match[1].lower(), match[2].removeprefix("./")
        elif match := _BSD.fullmatch(line):
            digest, inner = match[2].lower(), match[1].removeprefix("./")
        else:
            # A line that begins with a backslash names a file with a newline or backslash, which no manifest may.
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


def _error(path: str, problems: list[str]) -> ManifestError:
    refused = ManifestError(path, problems)
    refused.hint = "give a list that `sha256sum FILE…` wrote; nothing was changed"
    return refused
