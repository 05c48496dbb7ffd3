"""How many reads run at once, on storages that are simulated: what is chosen, and what the search costs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulated_storage import Simulation, Storage, seconds_with
from weightcache._prefetch.parallelism import MOST, Parallelism
from weightcache._prefetch.prefetched_file import READ_CHUNK

VOLUME = Storage(latency=0.010, stream=150e6, total=1.2e9)
NARROW = Storage(latency=0.010, stream=150e6, total=0.6e9)
WIDE = Storage(latency=0.010, stream=150e6, total=2.5e9)
SMALL_BLOCKS = Storage(latency=0.160, stream=1.2e9, total=1.2e9)
DISK = Storage(latency=0.0005, stream=0.5e9, total=0.7e9)
FAST_DISK = Storage(latency=0.0002, stream=1.0e9, total=1.4e9)
CACHED = Storage(stream=3e9, total=3.2e9, penalty=0.02)
GVISOR = Storage(stream=4.4e9, total=7.4e9, penalty=0.02)  # measured, with two cores
ONE_CORE = Storage(stream=2e9, total=2e9, penalty=0.12)
STORAGES = {
    "volume": VOLUME,
    "narrow": NARROW,
    "wide": WIDE,
    "small blocks": SMALL_BLOCKS,
    "disk": DISK,
    "fast disk": FAST_DISK,
    "cached": CACHED,
    "gvisor": GVISOR,
    "one core": ONE_CORE,
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


@pytest.mark.parametrize("name", STORAGES)
@pytest.mark.parametrize("seed", range(2))
def test_where_each_read_is_as_fast_as_chance_has_it_the_search_costs_little(name: str, seed: int) -> None:
    assert cost(STORAGES[name], GB * 8 // 10, noise=0.2, seed=seed) < 1.3


def test_a_slow_volume_gets_sixteen_before_the_first_read_has_ended() -> None:
    run = Simulation(Parallelism(), GB, lambda _: VOLUME).run()
    first = next(time for time, level in run.levels if level == MOST)
    assert 0.020 <= first < 0.021 < VOLUME.latency + READ_CHUNK / VOLUME.stream


@pytest.mark.parametrize("storage", [CACHED, ONE_CORE])
def test_cached_bytes_get_one_read_and_a_short_trial_of_two(storage: Storage) -> None:
    run = Simulation(Parallelism(), 4 * GB, lambda _: storage).run()
    assert max(level for _, level in run.levels) <= 2
    alone = sum(level == 1 for _, level in run.levels)
    assert alone > 0.8 * len(run.levels)


def test_a_disk_that_two_reads_fill_gets_few_in_the_end() -> None:
    run = Simulation(Parallelism(), 8 * GB, lambda _: DISK).run()
    late = [level for time, level in run.levels if time > run.seconds / 2]
    assert max(late) <= 4


def test_where_cached_bytes_end_the_number_grows_and_where_they_begin_it_shrinks() -> None:
    half = 4 * GB // READ_CHUNK * READ_CHUNK
    cold_after = Simulation(Parallelism(), 2 * half, lambda offset: ONE_CORE if offset < half else VOLUME).run()
    assert max(level for time, level in cold_after.levels if time < 1.9) <= 2
    assert max(level for time, level in cold_after.levels if time > 4.0) == MOST
    cached_after = Simulation(Parallelism(), 2 * half, lambda offset: VOLUME if offset < half else ONE_CORE).run()
    assert max(level for _, level in cached_after.levels) == MOST
    assert cached_after.levels[-1][1] <= 2


def test_imports_that_take_the_processor_for_a_while_cost_little() -> None:
    """Reads take four times as long meanwhile, so the bytes do not look cached."""
    contended = {"busy": lambda time: 0.25 if time < 0.5 else 1.0}
    assert cost(GVISOR, 3 * GB, **contended) < 1.25
    assert cost(ONE_CORE, 3 * GB, **contended) < 1.35


def test_a_read_whose_bytes_are_here_makes_no_others_run() -> None:
    """Into memory, it waits for the one thread that may write."""
    control = Parallelism()
    read = control.began(0.0)
    control.arrived(read)
    assert (control.limit(9.0), control.patience(9.0)) == (1, None)
    control.ended(read, 9.0, READ_CHUNK)


def test_small_files_that_each_take_a_while_are_read_in_parallel() -> None:
    control, now = Parallelism(), 0.0
    for _ in range(100):
        read = control.began(now)
        for age in (0.0061, 0.0092, 0.0138, 0.0204):
            control.limit(now + age)
        now += 0.030
        control.ended(read, now, 100)
    assert control.limit(now) == MOST


def test_reads_that_fail_are_no_measurement() -> None:
    control, now = Parallelism(), 0.0
    for _ in range(100):
        read = control.began(now)
        now += 0.001
        control.ended(read, now, 0)
        assert control.limit(now) == 1


def test_patience_is_the_time_until_the_limit_grows() -> None:
    control = Parallelism()
    assert control.patience(0.0) is None
    read = control.began(0.0)
    assert (control.patience(0.0), control.limit(0.006)) == (pytest.approx(0.006), 1)
    assert (control.limit(0.0061), control.patience(0.0061)) == (2, pytest.approx(0.003))
    assert (control.limit(0.0092), control.limit(0.0138), control.limit(0.021)) == (4, 8, MOST)
    assert control.patience(0.021) is None
    control.ended(read, 0.03, READ_CHUNK)
    assert control.patience(0.03) is None


def test_a_thread_that_asks_late_because_the_processor_is_busy_grows_one_step() -> None:
    control = Parallelism()
    control.began(0.0)
    assert [control.limit(now) for now in (0.1, 0.1005, 0.102, 0.1035, 0.105)] == [2, 2, 2, 4, 4]


SHAPES = st.builds(
    Storage,
    latency=st.sampled_from([0.0, 0.001, 0.01, 0.1]),
    stream=st.floats(50e6, 4e9),
    total=st.floats(100e6, 5e9),
    penalty=st.floats(0.0, 0.2),
)


@settings(max_examples=25, deadline=None)
@given(before=SHAPES, after=SHAPES, noise=st.floats(0.0, 0.3), bounds=st.tuples(st.integers(1, 4), st.integers(4, 16)))
def test_on_any_storage_it_stays_within_its_bounds_and_answers_the_same_again(
    before: Storage, after: Storage, noise: float, bounds: tuple[int, int]
) -> None:
    half = 25 * READ_CHUNK
    run = Simulation(
        Parallelism(*bounds), 2 * half, lambda offset: before if offset < half else after, noise=noise
    ).run()
    assert {level for _, level in run.levels} <= set(range(bounds[0], bounds[1] + 1))
    again = Simulation(
        Parallelism(*bounds), 2 * half, lambda offset: before if offset < half else after, noise=noise
    ).run()
    assert run.levels == again.levels  # the same inputs, the same answers


def test_new_memory_makes_no_storage_slow() -> None:
    control = Parallelism()
    control.add_page_cost(0.008)
    control.began(0.0)
    assert control.patience(0.0) == pytest.approx(0.014)
    assert control.limit(0.0139) == 1
    assert control.limit(0.0141) == 2
    assert control.patience(0.0141) == pytest.approx(0.003)  # the next step adds nothing


@pytest.mark.parametrize(("at_once", "rate"), [(2, 4.0), (1, 2.0)])
def test_a_read_that_could_run_and_does_not_counts(at_once: int, rate: float) -> None:
    """Two may run, and threads that wait for each other can only run one: the rate of all is that of one."""
    control, now = Parallelism(2, 2), 1.0
    measured: list[float] = []
    control._measured = lambda rate, _: measured.append(rate)  # type: ignore[method-assign]
    control._settled = 1.0
    while len(measured) < 100:
        reads = [control.began(now) for _ in range(at_once)]
        now += 0.002
        for read in reads:
            control.ended(read, now, READ_CHUNK)
    assert measured[-1] / (READ_CHUNK / 0.004) == pytest.approx(rate, rel=0.05)
