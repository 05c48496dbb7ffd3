"""Let processes die and calls fail, in everything that the library does, and print one table of what was tried.

    make campaign SEED=0 BUDGET=600
    PYTHONPATH=examples:tests/shared:tests/system python tests/campaign/campaign.py --seed 0 --budget 600

Every point of the crash campaign is tried, whatever the budget; torn writes and failing calls get the rest of it.
``--repeat`` runs one line of the failures again, as it was printed.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from campaign_table import Limit, Row, table
from crash_campaign import Point, crash, sampled, torn, whole
from errno_injection import BrokenError, Case, world_here
from error_campaign import NAMES, attempted, cases
from origin import Origin
from scenarios import SCENARIOS, Scenarios
from weightcache._runtime import tuning_constants

WHOLE = ("link", "hf_cache")  # scenarios of few calls, all of whose points are in the sample
RANDOM = 1000  # combinations in which more than two files are torn
SAMPLE = 1  # points of each other scenario in it


@dataclass
class Campaign:
    """One run of the campaign: its limits, and what failed so far."""

    world: Scenarios
    seed: int
    budget: float  # seconds
    began: float = field(default_factory=time.monotonic)
    failures: list[str] = field(default_factory=list)

    def left(self) -> float:
        return self.began + self.budget - time.monotonic()

    def attempt(self, what: str, work: Callable[[], object]) -> object:
        """Do ``work``; return what it returns, or ``None`` where it fails."""
        try:
            return work()
        except BrokenError as error:
            self.failures.append(what)
            print(f"FAILED {what}: {error}", file=sys.stderr, flush=True)
            return None

    def crashes(self, scenario: str, most: int = 0) -> tuple[Row, list[tuple[Point, int]]]:
        """Try every point of a scenario, or ``most`` of them; return those that left something unsynced."""
        points = list(whole(self.world, scenario))
        tried = sampled(points, most, self.seed) if most else points
        failed, swept, dirty = 0, 0, list[tuple[Point, int]]()
        for point in tried:
            found = self.attempt(f"crash {point}", lambda point=point: crash(self.world, point))
            failed += found is None
            if found is not None:
                swept += found.swept
                dirty += [(point, found.unsynced)] if found.unsynced else []
        note = f"{len(points) // 2} calls, before and after each; {swept} left a partial to a later miss or `prune`"
        return Row("crash", scenario, len(tried), failed, note), dirty

    def torn(self, dirty: list[tuple[Point, int]], until: Limit) -> Row:
        """Try combinations of what was not synced, in an order that the seed decides, until the limit."""
        found = [each for point, files in dirty for each in torn(point, files)]
        many = [each for each in found if each.torn > 2]
        points = [each for each in found if each.torn <= 2] + sampled(many, RANDOM, self.seed)
        tried, failed = 0, 0
        for point in sampled(points, len(points), self.seed, ordered=False):
            if until.reached(tried):
                break
            tried += 1
            failed += self.attempt(f"crash {point}", lambda point=point: crash(self.world, point)) is None
        names = len({point.scenario for point, _ in dirty})
        return Row("torn", f"{names} scenarios", tried, failed, f"of {len(points)} combinations")

    def errors(self, names: Iterable[str], until: Limit) -> list[Row]:
        """Let each call fail once with an error that the seed decides, then with others, until the limit."""
        counts = dict[str, list[int]]()
        points, turns = cases(self.world, self.seed, names)
        for index, case in enumerate(turns):
            if until.reached(index):
                break
            row = counts.setdefault(case.scenario, [0, 0])
            row[0] += 1
            row[1] += self.attempt(f"error {case}", lambda case=case: attempted(self.world, case)) is None
        return [Row("error", name, *counts[name], f"{points[name]} calls") for name in points if name in counts]

    def run(self) -> list[Row]:
        """Run all of it: every point of the crash campaign, and the rest until the budget is spent."""
        rows, dirty = list[Row](), list[tuple[Point, int]]()
        for scenario in SCENARIOS:
            row, found = self.crashes(scenario)
            rows.append(row)
            dirty += found
        rows.append(self.torn(dirty, Limit(until=time.monotonic() + self.left() / 2)))
        return rows + self.errors(NAMES, Limit(until=self.began + self.budget))

    def run_sample(self) -> list[Row]:
        """Run a part that is the same for the same seed: all points of two scenarios, and some of all others."""
        rows, dirty = list[Row](), list[tuple[Point, int]]()
        for scenario in SCENARIOS:
            row, found = self.crashes(scenario, 0 if scenario in WHOLE else SAMPLE)
            rows.append(row)
            dirty += found
        rows.append(self.torn(dirty, Limit(most=5 * SAMPLE)))
        return rows + self.errors(["copy", "tags", "move"], Limit(most=5 * SAMPLE))


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
            for scenario in (*SCENARIOS, "status", "verify"):
                root = world.prepared(scenario)
                world.act(scenario, root)
                world.judge_crash(scenario, root, at_once=False)
            yield world


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=600, help="seconds")
    parser.add_argument("--sample", action="store_true", help="a small part, the same for the same seed")
    parser.add_argument("--repeat", metavar="LINE", help="one line of the failures, such as 'crash file 3 after'")
    options = parser.parse_args()
    with scenarios_here() as world:
        if options.repeat:
            kind, _, text = options.repeat.partition(" ")
            print(crash(world, Point.parse(text)) if kind == "crash" else attempted(world, Case.parse(text)))
            return 0
        campaign = Campaign(world, options.seed, options.budget)
        rows = campaign.run_sample() if options.sample else campaign.run()
        print(table(rows))
        print(f"\nseed {options.seed}, {time.monotonic() - campaign.began:.0f} s; {len(campaign.failures)} failed")
    for failure in campaign.failures:
        print(f"  --repeat '{failure}'")
    return bool(campaign.failures)


if __name__ == "__main__":
    sys.exit(main())
