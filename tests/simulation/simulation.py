"""A deterministic simulation of many containers on one Volume: the shipped protocol on a model of everything else.

One thread and a seeded scheduler. Each container runs `reconcile` with a `Lease`, as shipped; what they await
is done here, on dictionaries, and at every await any other container may move, die, sleep, commit or reload. A seed
replays exactly. A file is a tuple of blocks; a Volume is a mapping from paths to files.

Where Modal is silent a switch is thrown by the seed, and the invariants must hold in every position (docs/volumes.md
has the sources): whether a commit becomes visible as a whole or file by file in any order; whether files that are open
for writing are left out of it, taken in part or whole; whether a reload commits, discards or keeps what was not
committed; whether it happens after every commit; whether a file that was written and not changed is committed too.
A seed also chooses which die, sleep, have files open, read only or find no origin, how slow all of it is, and how
far each container's clock is off.
"""

from __future__ import annotations

from typing import Any

from content import GOOD, OLD, STRANGER, receipt
from faults import Switches
from invariants import BrokenError, judge, progress
from protocol import Host
from weightcache._coordination.lease import Lease
from world import World


def simulate(seed: int, switches: Switches | None = None, host: type[Host] | None = None, lease: Any = None) -> World:
    """Run one seed to its end and check what must hold.

    Raises:
        BrokenError: An invariant does not hold.
    """
    world = World(seed, switches, host or Host)
    world.lease = lease or Lease
    dice, begin = world.dice, world.switches.begin
    if begin == "truncated":
        world.server |= {receipt("x"): OLD, "x/f": ("short",)}
    elif begin == "unreceipted":
        world.server["x/f"] = GOOD["x/f"]
    elif begin == "stranger":
        world.server["x/f"] = STRANGER
    elif begin == "gap":
        world.server |= {receipt("y"): OLD, "y/a": GOOD["y/a"]}
    elif begin == "old":
        world.server |= {receipt("old"): OLD, "old/f": ("old",)}
    for _ in range(world.switches.containers):
        world.boot(dice.random() * dice.choice((0, 1, 30)), dice.choice((["x"], ["x", "y"], ["y", "x"])))
    if world.switches.dict == "forget":
        world.start(world.forget(), None, 3.0)
    try:
        world.run()
        progress(world)
        judge(world)
    except BrokenError as error:
        error.world = world
        raise
    finally:
        for _, _, _, process in world._queue:
            process.bury()
    return world
