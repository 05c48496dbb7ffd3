"""Feed every reader of the library with what nobody should write, and judge what comes of it.

    make campaign ONLY=fuzz BUDGET=60

`campaign.py --repeat 'fuzz 0 17 journal'` feeds one input again.

An input may be ignored or refused with the documented error. Time and memory must be in proportion to it.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from campaign_table import Limit, Row, silent
from fuzz_inputs import bytes_from, json_of, text_from, value_from
from fuzz_targets import Pump, Target, all_targets

SECONDS = 1.0  # of CPU for an input; all of them are shorter than a megabyte
ENDLESS = 60.0  # seconds after which an input counts as one that never ends, also on a busy machine
MEMORY = (4 << 20, 50)  # bytes for an input, and for each of its bytes
IN_HEADERS = 250  # and for each byte of a header, which the HTTP client bounds at 64 KiB
TRACED = 20  # one input of so many has its memory measured, which takes time
SHORT, TIMES = 20_000, 4  # repetitions of a pump, and how many times more are compared with them
STEEP = 10.0  # times the CPU time for 4 times the length: 4 is proportional, 16 is the square
NOTICED = 0.05  # seconds of CPU below which the ratio says nothing


class Found(NamedTuple):
    """What is wrong with one input."""

    target: str
    number: str
    problem: str


def input_of(target: Target, seed: int, number: int) -> Any:
    """Return the input of one number: the same for the same seed."""
    random = Random(f"{seed}/{target.name}/{number}")
    valid = random.choice(target.valid)
    if target.kind == "text":
        return text_from(random, valid)
    if target.kind == "value":
        return value_from(random, valid)
    if target.kind == "json":
        data = json_of(value_from(random, valid) if random.random() < 0.7 else valid)
        return data if random.random() < 0.6 else bytes_from(random, data)
    return bytes_from(random, valid)


def valid_input(target: Target, index: int) -> Any:
    valid = target.valid[index]
    return json_of(valid) if target.kind == "json" else valid


class EndlessError(BaseException):
    """An input does not end; the library must not catch it as an error of its own."""


@contextmanager
def bounded() -> Iterator[None]:
    """End what does not end.

    Raises:
        EndlessError: It is ended.
    """

    def end(*_: object) -> None:
        raise EndlessError(f"it did not end within {ENDLESS:g} s")

    handler = signal.signal(signal.SIGALRM, end)
    timer = signal.setitimer(signal.ITIMER_REAL, ENDLESS, 1.0)  # again, where the first one was swallowed
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)  # that of pytest


def length_of(data: Any) -> int:
    return len(data) if isinstance(data, (bytes, str)) else len(json_of(data))


def problem_of(target: Target, data: Any, *, traced: bool = False) -> str:
    """Feed one input; return what is wrong with what came of it, or nothing."""
    if traced:
        tracemalloc.start()
    began = time.process_time()
    try:
        with bounded():
            wrong = target.read(data)
        if wrong:
            return wrong
    except EndlessError as error:
        return str(error)
    except target.allowed as error:
        told = len(str(error))
        # The length last: a value can contain another one many times, and to write it then takes minutes.
        if not told or (told > 100_000 and told > 100 * length_of(data) + 100_000):
            return f"the message of {type(error).__name__} has {told} characters"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return (
            f"{type(error).__name__}: {str(error)[:200]} in {where.name} of {Path(where.filename).name}:{where.lineno}"
        )
    finally:
        seconds = time.process_time() - began
        peak = tracemalloc.get_traced_memory()[1] if traced else 0
        tracemalloc.stop()
    if seconds > SECONDS:
        return f"it took {seconds:.1f} s of CPU"
    each = IN_HEADERS if target.kind == "text" else MEMORY[1]
    if peak > MEMORY[0] and peak > MEMORY[0] + each * length_of(data):
        return f"it took {peak} bytes of memory for {length_of(data)}"
    return ""


def pumped(target: Target, pump: Pump, times: int) -> Any:
    begin, middle, end = pump
    data = begin + middle * times + end
    return data.decode("latin-1") if target.kind == "text" else data


def cost(target: Target, data: Any) -> float:
    """Return the CPU seconds of one input, the best of three."""
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        with suppress(Exception, EndlessError), bounded():  # judged elsewhere
            target.read(data)
        best = min(best, time.process_time() - began)
        if best < NOTICED:
            break
    return best


def steepness(target: Target, pump: Pump) -> str:
    """Say that the time grows faster than the input, if it does."""
    long = cost(target, pumped(target, pump, SHORT * TIMES))
    if long < NOTICED:
        return ""
    short = cost(target, pumped(target, pump, SHORT))
    if long > STEEP * short:
        return f"{long:.2f} s for {SHORT * TIMES} times {pump[1]!r}, and {short:.2f} s for {SHORT} times"
    return ""


def fuzz(targets: list[Target], seed: int, limit: Limit) -> tuple[dict[str, int], list[Found]]:
    """Feed inputs to all targets in turn; return how many each got, and what was wrong."""
    tried, found = dict.fromkeys((each.name for each in targets), 0), list[Found]()
    for target in targets:
        for index in range(len(target.valid)):
            data = valid_input(target, index)
            with suppress(*target.allowed, EndlessError), bounded():
                target.read(data)  # the first one also pays for imports
            if wrong := problem_of(target, data):
                found.append(Found(target.name, f"valid-{index}", wrong))
    number = 0
    while not limit.reached(number):
        for target in targets:
            tried[target.name] += 1
            if wrong := problem_of(target, input_of(target, seed, number), traced=number % TRACED == 0):
                found.append(Found(target.name, str(number), wrong))
        number += 1
    return tried, found


def probe(targets: list[Target]) -> tuple[int, list[Found]]:
    """Measure what grows."""
    tried, found = 0, list[Found]()
    for target in targets:
        for index, pump in enumerate(target.pumps):
            tried += 1
            data = pumped(target, pump, SHORT)
            if wrong := problem_of(target, data) or problem_of(target, data, traced=True) or steepness(target, pump):
                found.append(Found(target.name, f"pump-{index}", wrong))
    return tried, found


@contextmanager
def targets_here() -> Iterator[list[Target]]:
    """All targets, with a temporary directory that nothing else uses: notes of other processes would be read."""
    with silent(), tempfile.TemporaryDirectory() as folder:
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            with all_targets(Path(folder)) as targets:
                yield targets
        finally:
            tempfile.tempdir = before


def rows(seed: int, seconds: float, most: int = sys.maxsize) -> tuple[list[Row], list[str]]:
    """Feed what grows, then inputs for so many seconds, or so many rounds; return rows, and how to repeat failures."""
    with targets_here() as targets:
        grown, steep = probe(targets)  # all of them, however short the time is
        tried, found = fuzz(targets, seed, Limit(time.monotonic() + seconds, most))
    lines = [f"fuzz {seed} {each.number} {each.target}" for each in (*steep, *found)]
    for line, each in zip(lines, (*steep, *found), strict=True):
        print(f"FAILED {line}: {each.problem}", file=sys.stderr, flush=True)
    counts = {name: sum(each.target == name for each in found) for name in tried}
    return [
        *(Row("fuzz", name, count, counts[name], "") for name, count in tried.items()),
        Row("fuzz", "growing inputs", grown, len(steep), f"{SHORT} repetitions, and {TIMES} times as many"),
    ], lines


def repeat(text: str) -> str:
    """Feed the input ``SEED NUMBER TARGET`` again; return it, and what came of it."""
    seed, number, name = text.split(" ", 2)
    with targets_here() as targets:
        target = next(each for each in targets if each.name == name)
        if number.startswith("pump-"):
            pump = target.pumps[int(number.removeprefix("pump-"))]
            data, wrong = pumped(target, pump, SHORT), steepness(target, pump)
        elif number.startswith("valid-"):
            data, wrong = valid_input(target, int(number.removeprefix("valid-"))), ""
        else:
            data, wrong = input_of(target, int(seed), int(number)), ""
        wrong = wrong or problem_of(target, data, traced=True)
        return f"{str(data)[:2000]}\n{wrong or 'as promised'}"
