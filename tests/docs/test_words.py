"""The check of words: it finds what is planted, in prose alone, and the project is clean."""

from __future__ import annotations

import sys

import pytest

import check_words
from check_words import CHECKED, RULES, files, findings, is_checked

PLANTED = {
    "who": "The process who holds the lock writes a note.",
    "whoever": "Whoever comes first downloads.",
    "is none": "A `path` that is none is refused.",
    "look whether": "It looks\nwhether the file exists.",
    "a look": "A hit is a look at the root.",
    "of use": "What one connection is of use for.",
    "in hand": "It has the block in hand.",
    "by itself": "Modal commits by itself.",
    "cold": "The story of a cold `ensure`.",
    "bring": "It brings the file.",
    "tell": "The report tells more.",
    "the world": "What the world does is no error.",
    "place": "Files are renamed into their place.",
    "goes with no": "--expect goes with no --check.",
}


def found(file: str, text: str) -> list[str]:
    return [each.rule.name for each in findings(file, text)]


@pytest.mark.parametrize("rule", [rule.name for rule in RULES])
def test_a_planted_phrase_is_found_in_every_kind_of_prose(rule: str) -> None:
    text = PLANTED[rule]
    assert found("docs/x.md", text) == [rule]
    assert found("x.py", f'"""{text}"""\n') == [rule]
    assert found("x.py", f"x = 1\n# {text}\n".replace("\nwhether", "\n# whether")) == [rule]
    assert found("x.py", f"raise ValueError({text!r})\n") == [rule]
    assert found("x.py", f"raise ValueError(f{'{x} ' + text!r})\n") == [rule]


def test_the_line_is_that_of_the_phrase() -> None:
    [finding] = findings("x.py", 'x = 1\n\n\ndef f() -> None:\n    """Do.\n\n    It looks whether.\n    """\n')
    assert finding.line == 7
    assert str(finding) == "x.py:7: 'looks whether' (look whether); instead: check whether"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("x.md", "```sh\nbring tell whoever\n```\n"),
        ("x.md", "1. Do:\n\n   ```python\n   look(whether)  # bring it\n   ```\n"),
        ("x.md", "Call `bring(tell)` and [this](whoever/brought.md), https://tell.example/bring.\n"),
        ("x.py", "def bring(tell: int) -> None:\n    who = tell\n    return who\n"),
        ("x.py", 'x = {"who": "bring", "tell": b"who brings it"}\n'),
        ("x.py", '"""Call ``bring`` or `tell`."""\n'),
        ("x.py", 'x = f"one {bring} and {who}"\n'),
        ("x.py", '# It looks\nx = "whether it is"\n'),
    ],
)
def test_code_is_not_prose(file: str, text: str) -> None:
    assert found(file, text) == []


@pytest.mark.parametrize(
    "text",
    [
        "Readers who wait, a user who deploys and everybody who writes there.",
        "If there is none, it is made; it is none of these.",
        "A cold start on Modal.",
        "A prefetch is useful in place of a copy.",
    ],
)
def test_plain_english_is_left_alone(text: str) -> None:
    assert found("x.md", text) == []


def test_a_finding_that_is_right_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_words, "ALLOWED", (("x.md", "bring", "quoted", "a title"),))
    assert found("x.md", "It brings, quoted.\nIt brings.\n") == ["bring"]


def test_every_checked_path_has_files() -> None:
    assert is_checked("weightcache/_transfer/mirrors.py")
    assert not is_checked("tests/shared/check_words.py")
    assert not is_checked("weightcache.py")
    assert {file.partition("/")[0] for file in files()} == set(CHECKED)
    assert all(reason for *_, reason in check_words.ALLOWED)


def test_the_project_is_clean(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["check_words.py"])
    status = check_words.main()
    assert status == 0, capsys.readouterr().out
    monkeypatch.setattr(check_words, "files", lambda: iter(["README.md"]))
    monkeypatch.setattr(check_words, "findings", lambda file, text: findings(file, "Whoever comes first."))
    assert check_words.main() == 1
    assert "README.md:1: 'Whoever'" in capsys.readouterr().out
