"""Run many seeds of both simulations, or one of them with its trace: containers on a Volume, and writers on one root.

python tests/simulation/simulate.py --seeds 20000
python tests/simulation/simulate.py --seed 4711
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time

from invariants import BrokenError
from root_simulation import simulate_root
from simulation import simulate


def broken(seed: int) -> tuple[int, str] | None:
    logging.disable(logging.CRITICAL)
    try:
        simulate(seed)
        simulate_root(seed)
    except Exception as error:
        return seed, f"{type(error).__name__}: {error}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="only this one, with its trace")
    options = parser.parse_args()
    if options.seed is not None:
        said = ""
        try:
            world = simulate(options.seed)
        except BrokenError as error:
            world, said = error.world, f"broken: {error}"
        had = f"downloads: {world.downloads}, {world.finished} of {len(world.containers)} containers have their bytes"
        print(world.switches, *world.trace, had, said, sep="\n")
        print("on one root:", *simulate_root(options.seed).trace, sep="\n")  # it raises where an invariant breaks
        return bool(said)
    began = time.monotonic()
    with multiprocessing.Pool(os.cpu_count()) as pool:
        seeds = range(options.first, options.first + options.seeds)
        found = [each for each in pool.imap_unordered(broken, seeds, chunksize=50) if each]
    for seed, said in sorted(found):
        print(f"seed {seed}: {said}")
    print(f"{options.seeds} seeds in {time.monotonic() - began:.0f} s, {len(found)} broken")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
