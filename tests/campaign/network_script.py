"""What the servers of the network campaign do: a script of right and wrong answers for each file of each mirror.

Everything is drawn from a random generator, so that the same seed and number give the same scripts. An answer that
makes the client wait has a cost in seconds, from which `Plan.best` and `Plan.budget` are computed.
"""

from __future__ import annotations

import math
from random import Random
from typing import NamedTuple

from network_answers import GRACE, MOVES, Move, Policy, dripping, stalled

TRIES = 3
CALM = 5.0  # seconds of `Settings.stall_timeout` where no server stalls: a busy machine must not look like one
OWN = 0.5  # seconds that a run may take without any wait: processes, threads, files
BACKOFF = 0.02  # seconds of the longest pause after a failure
REFUSAL = 0.5  # seconds for which a mirror that delivered may refuse: the server may not know that a connection ended
LARGEST = 200_000  # bytes of a file
BLOCK = 8 << 10
PART = 8 * BLOCK
MAX_REDIRECTS = 10
MANY = 100  # connections that a server allows if it has no limit


class Script(NamedTuple):
    """What one mirror does for one file."""

    moves: tuple[Move, ...]
    tail: Move | None
    policy: Policy

    @classmethod
    def draw(cls, random: Random, *, may_stall: bool) -> Script:
        kinds = (*MOVES, stalled, dripping, dripping) if may_stall else MOVES
        moves = [random.choice(kinds)(random) for _ in range(random.choice([0, 1, 1, 2, 3, 5]))]
        # A stall costs a timeout, so there is at most one; one for ever would cost as many as there are tries.
        first = next((move for move in moves if move.stalls), None)
        moves = [move for move in moves if not move.stalls or move is first]
        tail = random.choice(MOVES)(random) if random.random() < 0.3 else None
        policy = Policy(
            ranges=random.random() < 0.8,
            length=random.random() < 0.85,
            gzip=random.random() < 0.05,
            etag=random.choice(["strong", "strong", "weak", "none", "changing"]),
            total=random.random() < 0.9,
            rate=random.choice([0.0, 0.0, 0.0, 2e6, 5e5]),
            bursts=random.random() < 0.5,
            most=random.choice([MANY, MANY, 1, 2]),
            refusal=random.choice([503, 429, 403]),
            delay=random.choice([0.0, 0.0, 0.005, 0.02]),
        )
        return cls(tuple(moves), tail, policy)

    @property
    def delivers(self) -> bool:
        """Whether a client that tries again must get the file, whatever its order of requests."""
        passing = sum(1 for move in self.moves if not move.name.startswith("200"))
        if any(move.stalls for move in self.moves):
            passing += 1  # with the short timeout, a busy machine may look like a stall
            if self.policy.most < MANY:  # a stall holds its place for as long as the timeout, and others are refused
                return False
        return self.tail is None and all(move.is_passing for move in self.moves) and passing < TRIES

    def seconds(self, size: int, connections: int) -> float:
        """What a client must wait at the least until it has the file, with answers one after another."""
        policy = self.policy
        at_once = min(policy.most, connections) if policy.ranges else 1
        transfer = size / policy.rate / at_once if policy.rate else 0.0
        return sum(move.cost for move in self.moves) + (len(self.moves) + 1) * policy.delay + transfer


class Plan(NamedTuple):
    """One run: files, and for each mirror what it does for each of them."""

    files: dict[str, bytes]
    declared: bool  # whether sizes are
    mirrors: tuple[dict[str, Script], ...]
    connections: int
    patience: float
    auth: bool

    @classmethod
    def draw(cls, seed: int, number: int) -> Plan:
        random = Random(f"{seed}/{number}")
        count = random.choice([1, 1, 1, 2])
        sizes = [random.choice([0, 1, 100, 8192, random.randrange(LARGEST), LARGEST]) for _ in range(count)]
        files = {f"weights-{each}.bin": random.randbytes(size) for each, size in enumerate(sizes)}
        may_stall = random.random() < 0.05
        mirrors = tuple(
            {name: Script.draw(random, may_stall=may_stall) for name in files} for _ in range(random.choice([1, 1, 2]))
        )
        return cls(
            files,
            random.random() < 0.8,
            mirrors,
            random.choice([1, 4]),
            random.choice([0.0, 0.1]),
            random.random() < 0.3,
        )

    @property
    def stalls(self) -> bool:
        return any(move.stalls for mirror in self.mirrors for script in mirror.values() for move in script.moves)

    @property
    def delivers(self) -> bool:
        """Whether the run must succeed: for each file there is a mirror that must give it."""
        return all(any(mirror[name].delivers for mirror in self.mirrors) for name in self.files)

    @property
    def best(self) -> float:
        """Seconds that a client needs at the least that knows which mirror is the best one for each file."""
        return sum(
            min(mirror[name].seconds(len(data), self.connections) for mirror in self.mirrors)
            for name, data in self.files.items()
        )

    @property
    def requests(self) -> int:
        """The most requests that a run may make: see docs/reliability.md."""
        total = 0
        for name, data in self.files.items():
            parts = -(-len(data) // PART)
            for mirror in self.mirrors:
                script = mirror[name]
                total += len(script.moves) + (TRIES + 2 + parts) * self.connections
                if (
                    script.tail and 0 < script.tail.progress < 1
                ):  # the rest of each part shrinks by that share each time
                    total += parts * round(math.log(PART) / -math.log(1 - script.tail.progress))
                total += round(REFUSAL / BACKOFF * 4)  # while it may be refused, with pauses of half of BACKOFF
        return total * (1 + MAX_REDIRECTS if self.redirects else 1)

    @property
    def redirects(self) -> bool:
        moves = [move for mirror in self.mirrors for script in mirror.values() for move in (*script.moves, script.tail)]
        return any(move and "redirect" in move.name for move in moves)

    def budget(self, requests: int) -> float:
        """Seconds that a run of so many requests may take: see docs/reliability.md."""
        total = 0.0
        for name, data in self.files.items():
            for mirror in self.mirrors:
                script = mirror[name]
                policy, tail = script.policy, script.tail.cost if script.tail else 0.0
                total += 3 * len(data) / policy.rate if policy.rate else 0.0
                total += sum(move.cost for move in script.moves) + TRIES * tail + self.patience
        policies = [script.policy for mirror in self.mirrors for script in mirror.values()]
        delay = max(policy.delay + GRACE * (policy.most < MANY) for policy in policies)
        return OWN + total + requests * (BACKOFF + delay)

    def __str__(self) -> str:
        lines = [f"{len(self.files)} file(s), sizes {[len(data) for data in self.files.values()]}"]
        lines[0] += f"{'' if self.declared else ' not declared'}, {self.connections} connection(s)"
        for number, mirror in enumerate(self.mirrors):
            for name, script in mirror.items():
                moves = "; ".join(move.name for move in script.moves) or "-"
                tail = script.tail.name if script.tail else "right"
                lines.append(f"  mirror {number} {name}: {moves}; then {tail}; {script.policy}")
        return "\n".join(lines)
