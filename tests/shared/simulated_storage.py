"""A storage without bytes or a clock: how long a pool of reads takes, if `Parallelism` decides how many run."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from weightcache._prefetch.parallelism import Parallelism
from weightcache._prefetch.prefetched_file import READ_CHUNK


@dataclass
class Storage:
    """What a read meets.

    Attributes:
        latency: Seconds to the first byte.
        stream: Bytes a second of one read, at most.
        total: Bytes a second of all reads together, at most.
        penalty: Part of ``total`` that each read beyond the first costs, as under gVisor.
    """

    latency: float = 0.0
    stream: float = math.inf
    total: float = math.inf
    penalty: float = 0.0

    def rate(self, reads: int) -> float:
        return min(self.stream, self.total / (1 + self.penalty * (reads - 1)) / reads)


@dataclass
class Reading:
    began: float
    read: Any
    storage: Storage
    left: float
    slowness: float


@dataclass
class Simulation:
    """One run: `seconds`, and the `levels` that were allowed, each as (time, reads)."""

    control: Parallelism
    size: int
    storage_at: Callable[[int], Storage]  # from the offset of a chunk
    noise: float = 0.0  # of the logarithm of the speed of a read
    seed: int = 0
    busy: Callable[[float], float] | None = None  # the part of the speed that is left at a time
    seconds: float = 0.0
    levels: list[tuple[float, int]] = field(default_factory=list)
    reads: list[Reading] = field(default_factory=list)

    def run(self) -> Simulation:
        chance, position = random.Random(self.seed), 0
        while position < self.size or self.reads:
            limit = self.control.limit(self.seconds)
            self.levels.append((self.seconds, limit))
            while position < self.size and len(self.reads) < limit:
                count = min(READ_CHUNK, self.size - position)
                slowness = math.exp(chance.gauss(0, self.noise))
                storage, read = self.storage_at(position), self.control.began(self.seconds)
                self.reads.append(Reading(self.seconds, read, storage, count, slowness))
                position += count
            self._advance(self.control.patience(self.seconds) if position < self.size else None)
        return self

    def _advance(self, patience: float | None) -> None:
        """Go on to the next moment at which anything changes."""
        waiting = [each for each in self.reads if self.seconds < each.began + each.storage.latency - 1e-9]
        moving = [each for each in self.reads if each not in waiting]
        left = self.busy(self.seconds) if self.busy else 1.0
        rates = [each.storage.rate(len(moving)) / each.slowness * left for each in moving]
        steps = [each.began + each.storage.latency - self.seconds for each in waiting]
        steps += [each.left / rate for each, rate in zip(moving, rates, strict=True)]
        steps += [0.002] if self.busy else []  # short, because the speed may change meanwhile
        step = min(steps + ([] if patience is None else [patience + 1e-6]))
        self.seconds += step
        for each, rate in zip(moving, rates, strict=True):
            each.left -= rate * step
            if each.left < 1:
                self.reads.remove(each)
                self.control.ended(each.read, self.seconds, READ_CHUNK)


def seconds_with(control: Parallelism, size: int, storage: Any, **options: Any) -> float:
    """How long a pool takes for ``size`` bytes of one storage, or of the one that a function gives for an offset."""
    at = (lambda _: storage) if isinstance(storage, Storage) else storage
    return Simulation(control, size, at, **options).run().seconds
