"""Reading a list of digests as ``sha256sum`` writes it."""

from __future__ import annotations

import re
import sys

from weightcache.errors import ManifestError
from weightcache.manifest.validate import path_problem

_GNU = re.compile(r"([0-9A-Fa-f]{64}) [ *](.+)")
_BSD = re.compile(r"SHA256 \((.+)\) = ([0-9A-Fa-f]{64})")


def read_sha256sums(path: str) -> dict[str, str]:
    """Return the digests of a list, by path. ``-`` is standard input.

    Both formats are read: ``DIGEST  PATH`` and, with ``--tag`` or on a Mac, ``SHA256 (PATH) = DIGEST``.

    Raises:
        ManifestError: It cannot be read, or a line or path is invalid; the message lists all such lines.
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


def _error(path: str, problems: list[str]) -> ManifestError:
    refused = ManifestError(path, problems)
    refused.hint = "give the output of `sha256sum FILE…`; nothing was changed"
    return refused
