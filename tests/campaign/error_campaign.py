"""The error campaign: each call of a scenario fails once, with each error that is plausible."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

from errno_injection import CALLS, ERRORS, BrokenError, Case, Outcome, attempt, failing, returned
from forked_child import forked
from scenarios import SCENARIOS, Scenarios

NAMES = (*SCENARIOS, "status", "verify", "tag_reads")  # the last three write nothing
ALL_ERRORS = (*ERRORS, "ENAMETOOLONG", "EXDEV", "ENOTSUP")
WITHOUT_ERROR = ("short", "start")  # which fail in one way
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


def cases(world: Scenarios, seed: int, names: Iterable[str]) -> tuple[dict[str, int], Iterator[Case]]:
    """Return how many calls each scenario makes, and each of them with one error, then each with another one.

    The seed decides the order of the calls, and of the errors of each.
    """
    points = [
        (scenario, call, when + 1)
        for scenario in names
        for call, number in counts(world, scenario).items()
        for when in range(number)
    ]
    return Counter(scenario for scenario, *_ in points), _turns(points, random.Random(seed))


def _turns(points: list[tuple[str, str, int]], dice: random.Random) -> Iterator[Case]:
    dice.shuffle(points)
    order = {point: dice.sample(ALL_ERRORS, len(ALL_ERRORS)) for point in points}
    for turn in range(len(ALL_ERRORS)):
        for scenario, call, when in points:
            if turn == 0 or call not in WITHOUT_ERROR:
                yield Case(scenario, call, order[scenario, call, when][turn], when)
