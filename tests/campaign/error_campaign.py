"""The error campaign: each call of a scenario fails once, with each error that is plausible."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from errno_injection import CALLS, ERRORS, BrokenError, Case, Outcome, attempt, failing
from forked_child import forked
from scenarios import SCENARIOS, Scenarios

NAMES = (*SCENARIOS, "status", "verify")
ALL_ERRORS = (*ERRORS, "ENAMETOOLONG", "EXDEV", "ENOTSUP")
WITHOUT_ERROR = ("short", "start")  # which fail in one way


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
