"""The error campaign: each call of a scenario fails once, with each error that is plausible."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from errno_injection import CALLS, BrokenError, Case, Outcome, attempt, failing, returned
from forked_child import forked
from scenarios import SCENARIOS, Scenarios

NAMES = (*SCENARIOS, "status", "verify", "tag_reads")  # the last three write nothing
# Which errors a call can give, by the manual pages of Linux (sections 2 and 3); a network file system, or FUSE as for a
# Volume, gives those of `_ANY` for each.
_ANY = ("EIO", "ESTALE", "ETIMEDOUT")
_PATH = (*_ANY, "EACCES", "ENOENT", "ENOTDIR", "ENAMETOOLONG", "ENOMEM")
_SPACE = ("ENOSPC", "EDQUOT", "EROFS")
_ENTRY = (*_PATH, *_SPACE, "EPERM")  # of a call that makes or moves a name
PLAUSIBLE: dict[str, tuple[str, ...]] = {
    "open": (*_ENTRY, "EMFILE", "EINTR"),
    "mkdir": _ENTRY,
    "rename": (*_ENTRY, "EXDEV"),
    "unlink": (*_PATH, "EROFS", "EPERM"),
    "rmdir": (*_PATH, "EROFS", "EPERM"),
    "link": (*_ENTRY, "EXDEV", "ENOTSUP"),
    "symlink": (*_ENTRY, "ENOTSUP"),
    "readlink": _PATH,
    "write": (*_ANY, *_SPACE, "EINTR", "EAGAIN", "ENOMEM", "EPERM"),
    "fsync": (*_ANY, *_SPACE, "EINTR"),
    "truncate": (*_ANY, *_SPACE, "EINTR", "EPERM", "ENOTSUP"),
    "read": (*_ANY, "EINTR", "EAGAIN", "ENOMEM", "EACCES"),
    "stat": _PATH,
    "list": (*_PATH, "EMFILE"),
    "seek": _ANY,
    "close": (*_ANY, "ENOSPC", "EDQUOT", "EINTR"),
    "flock": (*_ANY, "EAGAIN", "EINTR", "ENOMEM", "ENOTSUP"),
    "fcntl": (*_ANY, "EAGAIN", "EACCES", "EINTR", "EMFILE", "ENOTSUP"),
    "short": ("EIO",),  # these two fail in one way
    "start": ("EIO",),
}
TOGETHER = 20  # cases that one child runs: with a child for each, a third of the time goes into copies of its pages


def attempted_together(world: Scenarios, group: Sequence[Case]) -> list[Outcome | BrokenError]:
    """Run cases one after the other in one child; return what came of each.

    A case that breaks a promise ends its child, and another child runs those after it. Where a child does not end well,
    each of its cases is run in a child of its own, which shows the case that was the cause.
    """
    found = list[Outcome | BrokenError]()
    while left := group[len(found) :]:
        ended = forked(lambda _, left=left: _until_broken(world, left))
        found += [returned(attempted, world, case) for case in left] if ended.code else ended.report
    return found


def _until_broken(world: Scenarios, group: Sequence[Case]) -> list[Outcome | BrokenError]:
    found = list[Outcome | BrokenError]()
    for case in group:
        found.append(returned(attempt, world, case))
        if isinstance(found[-1], BrokenError):
            break
    return found


def attempted(world: Scenarios, case: Case) -> Outcome:
    """Run one case in a child, so that no case sees another one.

    Raises:
        BrokenError: A promise is broken.
    """
    ended = forked(lambda _: attempt(world, case))
    if ended.code:
        raise BrokenError(ended.report or f"it ended with {ended.code}")
    outcome: Outcome = ended.report
    return outcome


def counts(world: Scenarios, scenario: str) -> dict[str, int]:
    """Return how often a scenario makes each call."""
    root = world.prepared(scenario)

    def work(_: int) -> dict[str, int]:
        with ExitStack() as stack:
            never = {call: Case(scenario, call, "EIO", 1 << 30) for call in CALLS}
            seen = {call: stack.enter_context(failing(case)) for call, case in never.items()}
            world.act(scenario, root)
        return {call: number for call, [number] in seen.items()}

    ended = forked(work)
    shutil.rmtree(os.path.dirname(root))
    if ended.code:
        raise BrokenError(f"{scenario} fails without a fault: {ended.report}")
    found: dict[str, int] = ended.report
    return found


def cases(world: Scenarios, seed: int, names: Iterable[str]) -> list[Case]:
    """Return each call of the scenarios with each of its plausible errors, in an order that the seed decides."""
    found = [
        Case(scenario, call, error, when + 1)
        for scenario in names
        for call, number in counts(world, scenario).items()
        for when in range(number)
        for error in PLAUSIBLE[call]
    ]
    random.Random(seed).shuffle(found)
    return found
