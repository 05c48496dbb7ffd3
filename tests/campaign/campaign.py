"""Run the campaigns one after the other, and print one table of what was tried and what failed.

    make campaign SEED=0 BUDGET=600
    make campaign SEED=0 BUDGET=600 ONLY=torn,error

Every point of the crash campaign is tried, whatever the budget is; the others share evenly what is left of it.
``--repeat`` runs one of the failures again, as it was printed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterator, Sequence

from call_campaigns import CallCampaigns, scenarios_here
from campaign_table import Limit, Row, table
from crash_campaign import Point, crash
from errno_injection import Case
from error_campaign import attempted
from scenarios import SCENARIOS

BY_CALLS = ("crash", "torn", "error")  # they fork, so they come before all that starts threads
OTHERS = ("push", "network", "fuzz", "load")  # each is the function `rows` of a module such as `load_campaign`

WHOLE = "link"  # a scenario of few calls, all of whose points are in the sample


def run(names: Sequence[str], seed: int, budget: float, first: int = 0) -> tuple[list[Row], list[str]]:
    """Run some of the campaigns within a budget in seconds; return their rows and their failures."""
    shares = _shares(budget, sum(name != "crash" for name in names))
    rows, failures = list[Row](), list[str]()
    if calls := [name for name in BY_CALLS if name in names]:
        with scenarios_here() as world:
            campaigns = CallCampaigns(world, seed, first=first)
            for name in calls:
                limit = Limit() if name == "crash" else Limit(until=time.monotonic() + next(shares))
                rows += getattr(campaigns, name)(limit)
        failures += campaigns.failures
    for name in OTHERS:
        if name in names:
            found, failed = importlib.import_module(f"{name}_campaign").rows(seed, next(shares))
            rows += found
            failures += failed
    return rows, failures


def _shares(budget: float, count: int) -> Iterator[float]:
    """Yield the seconds of one campaign after the other: what one leaves is shared among those after it."""
    ends = time.monotonic() + budget
    for left in range(count, 0, -1):
        yield max(0.0, ends - time.monotonic()) / left


def run_sample(seed: int) -> tuple[list[Row], list[str]]:
    """Run a part that is the same for the same seed: one point of each scenario, and all points of one of them."""
    with scenarios_here() as world:
        campaigns = CallCampaigns(world, seed)
        rows = campaigns.crash(Limit(), few={name: 1 for name in SCENARIOS if name != WHOLE})
        rows += campaigns.torn(Limit(most=5)) + campaigns.error(Limit(most=1), ["copy", "tags", "move"])
        return rows, campaigns.failures


def repeat(line: str) -> None:
    """Run one case again and print what comes of it; a failure is raised."""
    kind, _, text = line.partition(" ")
    if kind in OTHERS:
        print(importlib.import_module(f"{kind}_campaign").repeat(text))
        return
    with scenarios_here() as world:
        print(crash(world, Point.parse(text)) if kind == "crash" else attempted(world, Case.parse(text)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=600, help="seconds")
    parser.add_argument("--only", default="", help=f"some of {','.join((*BY_CALLS, *OTHERS))}, with the whole budget")
    parser.add_argument(
        "--first", type=int, default=0, help="how many cases of torn and error to leave out: an earlier run tried them"
    )
    parser.add_argument("--sample", action="store_true", help="a small part, the same for the same seed")
    parser.add_argument(
        "--repeat", metavar="LINE", help="a failure of any campaign but load, such as 'crash file 3 after'"
    )
    options = parser.parse_args()
    names = options.only.split(",") if options.only else (*BY_CALLS, *OTHERS)
    if unknown := sorted({*names} - {*BY_CALLS, *OTHERS}):
        parser.error(f"--only: {', '.join(unknown)} is not a campaign; there are {', '.join((*BY_CALLS, *OTHERS))}")
    if options.repeat:
        repeat(options.repeat)
        return 0
    began = time.monotonic()
    rows, failures = (
        run_sample(options.seed) if options.sample else run(names, options.seed, options.budget, options.first)
    )
    print(table(rows))
    print(f"\nseed {options.seed}, {time.monotonic() - began:.0f} s; {len(failures)} failed", flush=True)
    for failure in failures:
        print(f"  {failure}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
