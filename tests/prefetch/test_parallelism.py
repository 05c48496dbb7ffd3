"""How many reads run at once, on storages that are simulated: what is chosen, and what the search costs."""

from __future__ import annotations

from typing import Any

import pytest

from simulated_storage import Simulation, Storage, seconds_with
from weightcache._prefetch.parallelism import Parallelism

VOLUME = Storage(latency=0.010, stream=150e6, total=1.2e9)
NARROW = Storage(latency=0.010, stream=150e6, total=0.6e9)
WIDE = Storage(latency=0.010, stream=150e6, total=2.5e9)
SMALL_BLOCKS = Storage(latency=0.160, stream=1.2e9, total=1.2e9)
DISK = Storage(latency=0.0005, stream=0.5e9, total=0.7e9)
FAST_DISK = Storage(latency=0.0002, stream=1.0e9, total=1.4e9)
CACHED = Storage(stream=3e9, total=3.2e9, penalty=0.02)
GVISOR = Storage(stream=2e9, total=2e9, penalty=0.12)
STORAGES = {
    "volume": VOLUME,
    "narrow": NARROW,
    "wide": WIDE,
    "small blocks": SMALL_BLOCKS,
    "disk": DISK,
    "fast disk": FAST_DISK,
    "cached": CACHED,
    "gvisor": GVISOR,
}
FIXED = (1, 2, 4, 8, 16)
GB = 10**9


def cost(storage: Any, size: int, **options: Any) -> float:
    """Seconds of the rule, divided by those of the best fixed number."""
    best = min(seconds_with(Parallelism(number, number), size, storage, **options) for number in FIXED)
    return seconds_with(Parallelism(), size, storage, **options) / best


@pytest.mark.parametrize("size", [GB * 3 // 10, GB * 16 // 10])
@pytest.mark.parametrize("name", STORAGES)
def test_the_search_costs_at_most_a_tenth(name: str, size: int) -> None:
    assert cost(STORAGES[name], size) < 1.105


@pytest.mark.parametrize("number", FIXED)
def test_a_fixed_number_stays(number: int) -> None:
    run = Simulation(Parallelism(number, number), GB, lambda _: VOLUME).run()
    assert {level for _, level in run.levels} == {number}
