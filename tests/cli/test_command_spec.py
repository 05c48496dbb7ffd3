"""The list of commands: what a new flag reaches, and shell completion."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from command_line import run
from weightcache.cli import ensure
from weightcache.cli.command_spec import Command, Flag, Group, Remote
from weightcache.cli.commands import COMMANDS
from weightcache.cli.completion import SHELLS, script
from weightcache.cli.parser import build_parser
from weightcache.cli.reference_page import help_texts, updated

LEVEL = Flag(("--level",), "a level for this test", Remote.SEND, metavar="NUMBER", type=int, default=3)


def with_flag(flag: Flag) -> tuple[Command, tuple[Command, ...]]:
    """Return `ensure` with one more flag, and all commands with that one."""
    changed = replace(ensure.COMMAND, flags=(*ensure.COMMAND.flags, flag))
    return changed, tuple(changed if each.name == "ensure" else each for each in COMMANDS)


def completed(text: str, *words: str) -> list[str]:
    """What bash offers for the last of these words."""
    quoted = " ".join(f"'{word}'" for word in words)
    line = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _shtab_weightcache"
    code = f"{text}\n{line}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_new_flag_reaches_every_side() -> None:
    command, commands = with_flag(LEVEL)
    options = build_parser(commands).parse_args(["ensure", "--level", "7", "--volume", "v"])
    assert options.level == 7
    assert "--level NUMBER       a level for this test" in help_texts(commands)["weightcache ensure --help"]
    assert "--level NUMBER" in updated("```text\n$ weightcache ensure --help\nold```\n", commands)
    assert completed(script("bash", commands), "weightcache", "ensure", "--lev") == ["--level"]
    argv = command.container_argv(options, {"root": "/mnt", "manifest": ["/etc/m.toml"]})
    assert argv[-1] == "--level=7"
    assert build_parser(commands).parse_args(argv).level == 7


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_flag_without_a_decision_for_the_container_is_an_error(command: Command) -> None:
    undecided = replace(LEVEL, remote=None)
    if command.remote:
        with pytest.raises(ValueError, match=f"{command.name} can run in a container.*--level"):
            replace(command, flags=(*command.flags, undecided))
    else:
        assert replace(command, flags=(*command.flags, undecided)).flags[-1] is undecided


def test_a_replaced_flag_without_a_value_for_the_container_is_an_error() -> None:
    command, commands = with_flag(replace(LEVEL, remote=Remote.REPLACE))
    options = build_parser(commands).parse_args(["ensure", "--volume", "v"])
    with pytest.raises(KeyError, match="level"):
        command.container_argv(options, {"root": "/mnt", "manifest": "/m"})


@pytest.mark.parametrize("remote", [each for each in COMMANDS if each.remote], ids=lambda command: command.name)
def test_the_container_understands_every_flag_that_it_gets(remote: Command) -> None:
    samples = {bool: True, int: "1", float: "1.5"}
    words = [remote.name]
    for flag in remote.flags:
        if flag.is_positional:
            words.append("a")
        elif flag.dest != "root":
            words += [flag.name] if flag.is_switch else [flag.name, str(samples.get(flag.type, "x"))]
    options = build_parser(COMMANDS).parse_args(words)
    argv = remote.container_argv(options, {"root": "/mnt", "manifest": ["/m"], "path": "/mnt/a"})
    there = build_parser(COMMANDS).parse_args(argv)
    for flag in remote.flags:
        sent = flag.remote is Remote.SEND
        assert getattr(there, flag.dest) == getattr(options, flag.dest) or not sent, flag.name
        assert flag.remote is not Remote.LOCAL or not any(word.startswith(flag.name) for word in argv), flag.name
        assert flag.group is not Group.ON_MODAL or flag.remote is Remote.LOCAL  # a container does not start another


@pytest.mark.parametrize(
    ("flag", "value", "argv"),
    [
        (Flag(("--on",), ""), True, ["--on"]),
        (Flag(("--on",), ""), False, []),
        (Flag(("-n", "--number"), "", metavar="N"), None, []),
        (Flag(("-n", "--number"), "", metavar="N"), 0, ["--number=0"]),
        (Flag(("--text",), "", metavar="T"), "-x y", ["--text=-x y"]),
        (Flag(("--each",), "", metavar="T", repeat=True), ["a", "b"], ["--each=a", "--each=b"]),
        (Flag(("names",), "", metavar="N", nargs="*"), [], []),
        (Flag(("names",), "", metavar="N", nargs="*"), ["a", "b"], ["a", "b"]),
    ],
)
def test_the_words_of_a_flag(flag: Flag, value: Any, argv: list[str]) -> None:
    assert flag.argv(value) == argv


def test_the_page_keeps_its_own_words() -> None:
    page = "before\n\n```text\n$ weightcache status --help\nold\n```\n\nafter\n"
    new = updated(page, COMMANDS)
    assert new.startswith("before\n\n```text\n$ weightcache status --help\nusage: weightcache status")
    assert "```\n\nafter\n" in new
    assert "## `weightcache doctor`" in new  # a command without a section gets one
    assert updated(new, COMMANDS) == new


# completion ----------------------------------------------------------------------------------------------------


def test_bash_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text, _ = run(capsys, "completion", "bash")
    assert code == 0
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert completed(text, "weightcache", "pu") == ["push", "publish"]
    assert completed(text, "weightcache", "pin", "--check-") == ["--check-upstream"]
    assert completed(text, "weightcache", "completion", "z") == ["zsh"]
    (tmp_path / "models.toml").touch()
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert sorted(completed(text, "weightcache", "status", "--manifest", "mod")) == ["models", "models.toml"]
    assert completed(text, "weightcache", "status", "--root", "mod") == ["models"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script(shell: str) -> None:
    text = script(shell, COMMANDS)
    assert "check-upstream" in text
    if path := shutil.which(shell):
        subprocess.run([path, "-n"], input=text, text=True, check=True)


def test_completion_without_shtab(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, out, err = run(capsys, "completion", "bash")
    assert (code, out) == (2, "")
    assert "pip install 'weightcache[completion]'" in err
