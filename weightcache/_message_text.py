"""What messages are made of: texts that others chose, and lists of any length."""

from __future__ import annotations

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Collection

MOST_LINES = 100  # of a message that lists problems
MOST_NAMES = 10  # in one line


def printable(text: str) -> str:
    """Return ``text`` with escapes for what is not printable but a newline: control characters rewrite a terminal."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


def printable_line(text: str) -> str:
    """Return ``text`` with escapes for newlines, too: one in a file's name would begin a line that we did not write."""
    return printable(text).replace("\n", r"\n")


def listed(items: Collection[str], most: int = MOST_NAMES, separator: str = ", ") -> str:
    """Return at most so many items, and how many others there are, as in "a, b and 297 more"."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(item for item, _ in zip(items, range(most), strict=False)) + more


def problem_lines(problems: Collection[str], most: int = MOST_LINES) -> str:
    """Return each problem in an indented line of its own; of many, the first ones and how many others there are."""
    shown = [printable_line(problem) for problem, _ in zip(problems, range(most), strict=False)]
    if len(problems) > most:
        shown.append(f"and {len(problems) - most} more")
    return "".join(f"\n  {line}" for line in shown)
