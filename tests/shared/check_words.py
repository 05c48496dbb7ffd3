"""Find phrases that this project does not use, in prose: pages, docstrings, comments, messages and help texts.

    python tests/shared/check_words.py            # lists every finding, and ends with 1 if there are any
    python tests/shared/check_words.py docs/x.md  # the same for these files alone

Code is not prose: fenced blocks and the text between backticks are left out, and so is a Python string of one word.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parents[2]

# Files and directories that are checked. A finding in them fails `make lint`.
CHECKED = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs",
    "weightcache",
    "examples",
    "benchmarks",
    "tests",
)

# Not checked: this file and its test spell the phrases out, and the simulations' cases are data.
LEFT_OUT = ("tests/shared/check_words.py", "tests/docs/test_words.py", "tests/data")


class Rule(NamedTuple):
    name: str
    pattern: str
    instead: str


PEOPLE = (
    "attackers? people person people's users? somebody someone anybody anyone everybody everyone nobody reader readers"
)
PEOPLE += " author authors developer developers visitor visitors maintainers? colleague colleagues strangers?"
_NOT_PEOPLE = "".join(rf"(?<!\b{word} who)" for word in PEOPLE.replace("s?", "").split())
_NOT_PEOPLE += "".join(rf"(?<!\b{word}s who)" for word in re.findall(r"(\w+)s\?", PEOPLE))

RULES = (
    Rule("who", rf"\bwho\b(?!'){_NOT_PEOPLE}", "name the process, the container or the caller"),
    Rule("whoever", r"\bwhoever\b|\bwhose(?= (?:turn|lease|lock))", "name the process, the container or the caller"),
    Rule("is none", r"(?<!there )\b(?:is|are|be) none\b(?! of)|\bas good as none\b", "is invalid; does not count"),
    Rule("look whether", r"\blook(?:s|ed|ing)?\s+whether\b", "check whether"),
    Rule("a look", r"\b(?:a|cheap|first|second|last) look\b|\blook away\b", "an inspection; one small file read"),
    Rule("of use", r"\bof\s+(?:no\s+|any\s+|some\s+|little\s+)?use\b", "useful; helps"),
    Rule("in hand", r"\bin hand\b", "held; ready; available"),
    Rule("by itself", r"\bby\s+(?:itself|themselves)\b", "automatically; on its own"),
    Rule("cold", r"\bcold\s+(?:`|side\b|ensure\b|call\b|path\b)", "miss"),
    Rule("bring", r"\b(?:brings?|brought|bringing)\b", "fetch; download; add; copy"),
    Rule("tell", r"\b(?:tells?|told|telling)\b", "report; say; show"),
    Rule("the world", r"\bthe world\b", "the network, the disk or Modal"),
    Rule(
        "place",
        r"\bpublished\s+places?\b|\bin(?:to)?\s+(?:its|their)\s+(?:own\s+)?places?\b",
        "version directory; path",
    ),
    Rule("goes with no", r"\bgoes with no\b", "cannot be combined with"),
)
_COMPILED = [(rule, re.compile(rule.pattern)) for rule in RULES]
_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}

# What a rule finds and is right all the same: file, rule, words of its line, reason.
ALLOWED: tuple[tuple[str, str, str, str], ...] = ()


class Finding(NamedTuple):
    file: str
    line: int
    rule: Rule
    words: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.words!r} ({self.rule.name}); instead: {self.rule.instead}"


def _blank(text: str, by: str = "\0") -> str:
    """Replace what is not prose; a pattern never matches across it. Lines and columns stay."""
    return re.sub(r"\S", by, text)


def _without_spans(text: str) -> str:
    """Blank the code between backticks (not in a fenced block); the backticks stay, and so do links' texts."""
    text = re.sub(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", lambda m: m[1] + _blank(m[2]) + m[1], text, flags=re.DOTALL)
    return re.sub(r"\]\([^)\s]*\)|https?://\S+", lambda match: _blank(match[0]), text)


def prose_of_markdown(text: str) -> str:
    """Return the text with everything blanked that is no prose."""
    text = re.sub(r"^( *)```.*?^\1```", lambda match: _blank(match[0]), text, flags=re.DOTALL | re.MULTILINE)
    paragraphs = re.split(r"(\n\s*\n)", text)
    return "".join(_without_spans(part) for part in paragraphs)


def prose_of_python(text: str) -> str:
    """Return the comments and strings of a module, at their lines, and everything else blanked."""
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    out = list(_blank(text))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        name = tokenize.tok_name[token.type]
        if name not in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
            continue
        begin = starts[token.start[0] - 1] + token.start[1]
        end = starts[token.end[0] - 1] + token.end[1]
        words = text[begin:end]
        if name == "COMMENT":
            words = re.sub(r"^#+", lambda match: " " * len(match[0]), words)
        elif name == "STRING":
            words = _words_of_string(words)
        out[begin:end] = words
    return _without_spans("".join(out))


def _words_of_string(literal: str) -> str:
    quotes = re.match(r"(?i)([rbuf]*)('''|\"\"\"|'|\")", literal)
    assert quotes is not None
    head, tail = len(quotes[0]), len(quotes[2])
    inner = literal[head : len(literal) - tail]
    if not re.search(r"\w\s+\w", inner) or "b" in quotes[1].lower():
        return _blank(literal)
    if "f" in quotes[1].lower():
        inner = re.sub(r"\{[^{}]*\}", lambda match: _blank(match[0]), inner)
    inner = re.sub(r"\\n", "  ", inner)
    return " " * head + inner + " " * tail


def findings(file: str, text: str) -> Iterator[Finding]:
    """Yield what is found in one file, in the order of its lines."""
    prose = prose_of_python(text) if file.endswith(".py") else prose_of_markdown(text)
    flat = re.sub(r"\s", " ", prose)
    lower = flat.translate(_LOWER)  # faster than patterns that ignore the case
    lines = text.splitlines()
    found = []
    for rule, pattern in _COMPILED:
        for match in pattern.finditer(flat if rule.name == "is none" else lower):
            number = text.count("\n", 0, match.start()) + 1
            if not _is_allowed(file, rule, lines[number - 1]):
                found.append(
                    Finding(file, number, rule, " ".join(flat[slice(*match.span())].replace("\0", "…").split()))
                )
    yield from sorted(found, key=lambda each: each.line)


def _is_allowed(file: str, rule: Rule, line: str) -> bool:
    return any(file == each[0] and rule.name == each[1] and each[2] in line for each in ALLOWED)


def is_checked(file: str) -> bool:
    """Return whether a file of the project is under one of the paths `CHECKED` and not left out."""

    def under(paths: tuple[str, ...]) -> bool:
        return any(file == each or file.startswith(f"{each}/") for each in paths)

    return under(CHECKED) and not under(LEFT_OUT)


def files() -> Iterator[str]:
    """Yield every file that is checked, relative to the project."""
    for path in [HERE / each for each in CHECKED]:
        for each in [path] if path.is_file() else sorted(path.rglob("*")):
            name = each.relative_to(HERE)
            is_hidden = any(part.startswith(".") for part in name.parts)
            if each.suffix in (".md", ".py") and not is_hidden and is_checked(str(name)):
                yield str(name)


def main() -> int:
    parser = argparse.ArgumentParser(description="Find phrases that this project does not use.")
    parser.add_argument("paths", nargs="*", help="only these files")
    named = [str(Path(path).resolve().relative_to(HERE)) for path in parser.parse_args().paths]
    found = [
        each
        for file in filter(is_checked, named or files())
        for each in findings(file, (HERE / file).read_text(encoding="utf-8"))
    ]
    for each in found:
        print(each)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
