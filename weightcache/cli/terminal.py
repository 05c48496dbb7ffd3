"""How wide a terminal is, and text that fits it. What is piped is never shortened and never wrapped."""

from __future__ import annotations

import io
import os
import sys
import unicodedata
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TextIO

NARROWEST = 40  # columns; a narrower terminal breaks the lines on its own


class Cell(Enum):
    """What a column of a table holds, and so what may become of it where the terminal is too narrow."""

    WORD = "stays whole"
    NUMBER = "stays whole, and is aligned on the right"
    NAME = "is shortened in the middle"
    PATH = "is shortened in the middle, most of it at its beginning"
    TEXT = "goes on in the next line"


_FEWEST = {Cell.NAME: 16, Cell.PATH: 20, Cell.TEXT: 24}  # columns that a column of this kind keeps, if it has as many


class Captured(io.StringIO):
    """Collects what a container prints for a terminal elsewhere.

    Attributes:
        columns: The width of that terminal; ``None`` if the output is piped there.
    """

    def __init__(self, columns: int | None) -> None:
        super().__init__()
        self.columns = columns


def terminal_columns(stream: TextIO) -> int | None:
    """Return the width of the terminal that a stream writes to; ``None`` if it writes to none."""
    if isinstance(stream, Captured):
        return stream.columns
    if not stream.isatty():
        return None
    try:
        found = int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        found = 0
    return max(found or 80, NARROWEST)  # `docker run -t` in a script has a terminal of 0 columns


def display_width(text: str) -> int:
    """Return how many columns a text takes: letters of East Asia take two, marks above a letter none."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(each) in "WF" for each in text)
    return len(text) + wide - sum(unicodedata.category(each) in ("Mn", "Me", "Cf") for each in text)


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Return a text with spaces after it, or before it, up to a width in columns."""
    spaces = " " * (width - display_width(text))
    return spaces + text if right else text + spaces


def shortened(text: str, width: int, *, head: float = 0.5) -> str:
    """Return a text of at most ``width`` columns: the middle of a longer one is left out.

    Args:
        text: One line.
        width: In columns.
        head: Which part of what stays is from the beginning.
    """
    if display_width(text) <= width:
        return text
    dots = _dots()
    room = width - len(dots)
    front = _fitting(text, int(room * head))
    back = _fitting(text[::-1], room - display_width(front))[::-1]
    return f"{front}{dots}{back}"


def wrapped(text: str, width: int, *, breaks: bool = False) -> list[str]:
    """Return the lines of a text, broken at spaces.

    Args:
        text: One line.
        width: In columns.
        breaks: Whether a longer word is broken. One that is not, such as a URL, can still be copied.
    """
    if display_width(text) <= width:
        return [text]
    lines: list[str] = []
    line: list[str] = []  # its words
    taken = 0  # columns of them
    for word in filter(None, text.split(" ")):
        size, begin = display_width(word), 0
        if line and taken + 1 + size > width:
            lines.append(" ".join(line))
            line, taken = [], 0
        while breaks and not line and size > width:  # nothing is measured twice: a word may be as long as a file's name
            end = max(_end_of_fitting(word, width, begin), begin + 1)
            lines.append(word[begin:end])
            size -= display_width(lines[-1])
            begin = end
        if not line and size > width:
            lines.append(word)
        elif begin < len(word):
            taken += size + bool(line)
            line.append(word[begin:])
    return [*lines, " ".join(line)] if line else lines


def message_lines(text: str, width: int) -> Iterator[str]:
    """Yield the lines of a message with lines of its own; what goes on in the next line is indented."""
    for line in text.split("\n"):
        indent = len(line) - len(line.lstrip(" "))
        first, *others = wrapped(line.lstrip(" "), width - indent - 2)
        yield " " * indent + first
        yield from (" " * (indent + 2) + other for other in others)


def table_lines(rows: Sequence[Sequence[str]], kinds: Sequence[Cell], width: int | None) -> Iterator[str]:
    """Yield the lines of a table with aligned columns, at most ``width`` columns wide.

    Args:
        rows: The cells, each of one line.
        kinds: What each column holds.
        width: Of the terminal; ``None`` shows everything in one line a row.
    """
    natural = [max((display_width(row[at]) for row in rows), default=0) for at in range(len(kinds))]
    widths = natural if width is None else _fitted(natural, kinds, width)
    for row in rows:
        cells = [
            wrapped(cell, size, breaks=True)
            if kind is Cell.TEXT
            else [shortened(cell, size, head=0.25 if kind is Cell.PATH else 0.5)]
            for cell, size, kind in zip(row, widths, kinds, strict=True)
        ]
        for at in range(max(map(len, cells))):
            line = (
                padded(cell[at] if at < len(cell) else "", size, right=kind is Cell.NUMBER)
                for cell, size, kind in zip(cells, widths, kinds, strict=True)
            )
            yield "  ".join(line).rstrip()


def _fitted(natural: Sequence[int], kinds: Sequence[Cell], width: int) -> list[int]:
    """Return the widths of the columns: the widest become narrower, until all fit."""
    widths = list(natural)
    fewest = [min(size, _FEWEST.get(kind, size)) for size, kind in zip(natural, kinds, strict=True)]
    room = width - 2 * (len(natural) - 1 - (natural[-1] == 0))
    while (excess := sum(widths) - room) > 0:
        able = [at for at in range(len(widths)) if widths[at] > fewest[at]]
        if not able:
            fewest = [min(size, 4) if kind in _FEWEST else size for size, kind in zip(widths, kinds, strict=True)]
            able = [at for at in range(len(widths)) if widths[at] > fewest[at]]
            if not able:
                break
        widest = max(able, key=widths.__getitem__)
        others = [widths[at] for at in able if widths[at] < widths[widest]]
        widths[widest] -= max(1, min(excess, widths[widest] - max([fewest[widest], *others])))
    return widths


def _fitting(text: str, width: int) -> str:
    """Return the beginning of a text that takes at most ``width`` columns."""
    return text[: _end_of_fitting(text, width)]


def _end_of_fitting(text: str, width: int, begin: int = 0) -> int:
    """Return the end of the longest part from ``begin`` on that takes at most ``width`` columns."""
    taken = 0
    for at in range(begin, len(text)):
        taken += display_width(text[at])
        if taken > width:
            return at
    return len(text)


def _dots() -> str:
    """Return an ellipsis; three points where the terminal cannot show one."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        "…".encode(encoding)
    except (LookupError, UnicodeEncodeError):
        return "..."
    return "…"
