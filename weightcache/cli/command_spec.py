"""What a command of the command line is, and what a flag of it is.

Each command module declares one `Command` beside the function that it runs, and `commands` lists them. The parser, the
dispatch, the reference page, shell completion and the argv that runs in a Modal container all come from that list, so
that a flag is added in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping


class Remote(Enum):
    """What happens to a flag when its command runs in a container on Modal, with ``--volume``."""

    SEND = "the container gets it as it was given"
    REPLACE = "the container gets another value, such as its own path of a manifest"
    LOCAL = "the container does not get it: only this machine uses it"
    REFUSED = "it cannot be combined with --volume"


class Group(Enum):
    """Under which heading ``--help`` lists a flag."""

    OPTIONS = ""
    ON_MODAL = "on Modal"


@dataclass(frozen=True)
class Flag:
    """One flag or positional argument of a command.

    Attributes:
        names: ``("-q", "--quiet")``; for a positional argument one name without dashes.
        help: What ``--help`` says about it.
        remote: What happens to it in a container; required for commands that can run there.
        metavar: What ``--help`` calls its value. A flag without one is a switch; a positional argument has one.
        type: Converts its value.
        default: Its value where it is not given; a switch is always ``False`` then.
        choices: The values allowed, if they are few.
        nargs: How many values a positional argument takes, as argparse writes it: ``"?"`` or ``"*"``.
        repeat: Whether it may be given several times; its value is a list then, or ``None``.
        once: Whether giving it twice is refused, where argparse would silently keep the last value.
        required: Whether it must be given.
        group: Its heading. Flags of ``ON_MODAL`` but ``--volume`` itself are refused without ``--volume``.
        completes: What a shell completes as its value: ``"file"``, ``"directory"``, or nothing.
    """

    names: tuple[str, ...]
    help: str
    remote: Remote | None = None
    metavar: str | None = None
    type: Callable[[str], Any] | None = None
    default: Any = None
    choices: tuple[Any, ...] = ()
    nargs: str | None = None
    repeat: bool = False
    once: bool = False
    required: bool = False
    group: Group = Group.OPTIONS
    completes: str = ""

    @property
    def is_positional(self) -> bool:
        """Whether it is known by its position and not by its name."""
        return not self.names[0].startswith("-")

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return not self.is_positional and self.metavar is None

    @property
    def name(self) -> str:
        """The name that messages use: the long one."""
        return self.names[-1]

    @property
    def dest(self) -> str:
        """The attribute of the parsed options that holds its value."""
        return self.name.lstrip("-").replace("-", "_")

    def arguments(self) -> dict[str, Any]:
        """Return what argparse's ``add_argument`` takes for it, besides its names and its action."""
        given = {
            "help": self.help,
            "metavar": self.metavar,
            "type": self.type,
            "default": self.default,
            "choices": self.choices or None,
            "nargs": self.nargs,
            "required": self.required or None,
        }
        return {key: value for key, value in given.items() if value is not None}

    def argv(self, value: object) -> list[str]:
        """Return the words that give it this value on a command line."""
        if value is None or value is False:
            return []
        if self.is_switch:
            return [self.name]
        values = value if isinstance(value, list | tuple) else [value]
        if self.is_positional:
            return [str(each) for each in values]
        return [f"{self.name}={each}" for each in values]  # one word: a value may begin with a dash


@dataclass(frozen=True)
class Command:
    """One verb of the command line.

    Attributes:
        name: The verb.
        summary: What it does: a sentence without capital and full stop.
        flags: Its flags and positional arguments, in the order of ``--help``.
        run: Runs it with the parsed options and returns the exit code.
        remote: Whether it runs in a container on Modal if ``--volume`` is given.
        needs_root: Whether it is refused without a root.
        note_on_interrupt: What is added to "interrupted" when the user presses Ctrl-C.
    """

    name: str
    summary: str
    flags: tuple[Flag, ...]
    run: Callable[[argparse.Namespace], int]
    remote: bool = False
    needs_root: bool = True
    note_on_interrupt: str = ""

    def __post_init__(self) -> None:
        if undecided := [flag.name for flag in self.flags if self.remote and flag.remote is None]:
            raise ValueError(
                f"{self.name} can run in a container on Modal: say with remote= what happens there to "
                f"{', '.join(undecided)} (Remote.SEND, REPLACE, LOCAL or REFUSED)"
            )

    def container_argv(self, options: argparse.Namespace, replaced: Mapping[str, object]) -> list[str]:
        """Return the command line that does in a container what these options ask for.

        Args:
            options: The parsed options.
            replaced: Values in the container of the flags that are `Remote.REPLACE`, by `Flag.dest`.

        Raises:
            KeyError: A flag is to be replaced, and ``replaced`` has no value for it.
        """
        words = [self.name]
        for flag in self.flags:
            if flag.remote is Remote.SEND:
                words += flag.argv(getattr(options, flag.dest))
            elif flag.remote is Remote.REPLACE:
                words += flag.argv(replaced[flag.dest])
        return words
