"""The campaigns that fork a process for each case, with calls of `os` replaced: crash, torn and error."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from campaign_table import Limit, Row
from crash_campaign import Crash, Point, Survey, crash, sampled, surveyed, tear_all
from errno_injection import BrokenError, returned, world_here
from error_campaign import NAMES, TOGETHER, attempted_together, cases
from forked_child import side_by_side
from origin import Origin
from scenarios import SCENARIOS, Scenarios
from weightcache._runtime import tuning_constants


@dataclass
class CallCampaigns:
    """The three campaigns, and what failed so far."""

    world: Scenarios
    seed: int
    names: Sequence[str] = tuple(SCENARIOS)
    first: int = 0  # cases of torn and error that an earlier run tried
    failures: list[str] = field(default_factory=list)

    @cached_property
    def surveys(self) -> dict[str, Survey]:
        """What there is to try in each scenario."""
        return dict(side_by_side(lambda name: surveyed(self.world, name), self.names, Limit()))

    def crash(self, limit: Limit, few: Mapping[str, int] = MappingProxyType({})) -> list[Row]:
        """Try every point of each scenario, or so many of those in ``few``, until the limit."""
        points = {name: survey.points(name) for name, survey in self.surveys.items()}
        chosen = {name: sampled(each, few[name], self.seed) if name in few else each for name, each in points.items()}
        tried = self._crashed("crash", (point for each in chosen.values() for point in each), limit)
        rows = []
        for name, survey in self.surveys.items():
            outcomes = [outcome for point, outcome in tried if point.scenario == name]
            swept = sum(isinstance(each, Crash) and each.swept for each in outcomes)
            note = f"{survey.calls} calls, before and after each; {swept} left a partial to a later miss or `prune`"
            rows.append(Row("crash", name, len(outcomes), outcomes.count(None), note))
        return rows

    def torn(self, limit: Limit) -> list[Row]:
        """Try combinations of what is not synced at each moment, in an order that the seed decides, until the limit."""
        moments = [point for name, survey in self.surveys.items() for point in survey.moments(name)]
        shuffled = sampled(moments, len(moments), self.seed, ordered=False)
        # Those at which the survey saw nothing to tear come last: in another run there may be something.
        shuffled.sort(key=lambda each: (each.call, each.after) not in self.surveys[each.scenario].dirty)

        def work(world: Scenarios, group: Sequence[Point]) -> list[object]:
            return [returned(lambda world, point: tear_all(world, point, self.seed, limit.most), world, group[0])]

        outcomes = self._tried("crash", work, [[each] for each in shuffled[self.first :]], limit, "torn")
        killed = [(point, each) for point, each in outcomes if each is not None]
        for point, text in [pair for _, each in killed for pair in each.broken]:
            print(f"FAILED crash {point}: {text}", file=sys.stderr, flush=True)
            self.failures.append(f"--repeat 'crash {point}'")
        dirty = [(point, each) for point, each in killed if each.files]
        few, many = (sum(getattr(each, name) for _, each in dirty) for name in ("few", "many"))
        note = (
            f"{len(outcomes)} of {len(moments)} moments, {len(dirty)} of them with files that are not synced (at most "
            f"{max([each.files for _, each in dirty], default=0)}); {few} combinations of one or two, "
            f"and {many} of {sum(each.of_many for _, each in dirty)} with more"
        )
        failed = len(outcomes) - len(killed) + sum(len(each.broken) for _, each in killed)
        names = len({point.scenario for point, _ in dirty})
        return [Row("torn", f"{names} scenarios", few + many + len(outcomes) - len(killed), failed, note)]

    def error(self, limit: Limit, names: Sequence[str] = NAMES) -> list[Row]:
        """Let each call fail with each plausible error, in an order that the seed decides, until the limit."""
        found = cases(self.world, self.seed, names)
        of = Counter(case.scenario for case in found)
        left = found[self.first :]
        groups = [left[first : first + TOGETHER] for first in range(0, len(left), TOGETHER)]
        outcomes = self._tried("error", attempted_together, groups, limit, "error")
        tried = Counter(case.scenario for case, _ in outcomes)
        failed = Counter(case.scenario for case, outcome in outcomes if outcome is None)
        return [Row("error", name, tried[name], failed[name], f"of {of[name]} cases") for name in names if tried[name]]

    def _crashed(self, title: str, points: Iterable[Point], limit: Limit) -> list[tuple[Point, Any]]:
        def work(world: Scenarios, group: Sequence[Point]) -> list[object]:
            return [returned(crash, world, each) for each in group]

        return self._tried("crash", work, [[each] for each in points], limit, title)

    def _tried(
        self,
        kind: str,
        work: Callable[[Scenarios, Sequence[Any]], Sequence[object]],
        groups: Sequence[Sequence[Any]],
        limit: Limit,
        title: str,
    ) -> list[tuple[Any, Any]]:
        """Return each item of the groups that was tried, with what came of it, or ``None`` where it failed."""

        def attempt(group: Sequence[Any]) -> Sequence[object]:
            outcomes = work(self.world, group)
            for item, outcome in zip(group, outcomes, strict=True):
                if isinstance(outcome, BrokenError):
                    print(f"FAILED {kind} {item}: {outcome}", file=sys.stderr, flush=True)
            return outcomes

        found = list[tuple[Any, Any]]()
        for group, outcomes in side_by_side(attempt, groups, limit, title):
            for item, outcome in zip(group, outcomes, strict=True):
                broken = isinstance(outcome, BrokenError)
                self.failures += [f"--repeat '{kind} {item}'"] * broken
                found.append((item, None if broken else outcome))
        return found


@contextmanager
def origin_of(folder: str) -> Iterator[str]:
    """Serve a folder from a process of its own, because a process with threads must not be forked; yield its URL."""
    readable, writable = os.pipe()
    ends, end = os.pipe()
    process = os.fork()
    if not process:
        os.close(end)
        with Origin() as origin:
            for path in Path(folder).rglob("*"):
                if path.is_file():
                    origin.put(f"/{path.relative_to(folder)}", path.read_bytes())
            os.write(writable, origin.url("").encode())
            os.read(ends, 1)  # until the other end is closed
        os._exit(0)
    os.close(ends)
    try:
        yield os.read(readable, 200).decode()
    finally:
        os.close(end)
        os.waitpid(process, 0)


@contextmanager
def scenarios_here() -> Iterator[Scenarios]:
    """Make the scenarios' files, serve them, and do each scenario once, so that all is imported before a fork."""
    logging.disable(logging.CRITICAL)
    with world_here() as plain:
        # One connection: the calls come in the same order each time.
        tuning_constants.DEFAULT = replace(tuning_constants.DEFAULT, connections=1, slow_after=60.0)
        with origin_of(f"{plain.folder}/source") as url:
            world = Scenarios(plain.folder, url)
            for scenario in NAMES:
                root = world.prepared(scenario)
                world.act(scenario, root)
            world.judge_crash("cold", world.prepared("cold"), at_once=True)
            gc.freeze()  # no collection in a child copies the pages of what is here already
            yield world
