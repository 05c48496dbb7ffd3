"""What the simulated checkpoints hold, and the times and clocks of the simulation."""

from __future__ import annotations

from typing import Any

Blocks = tuple[Any, ...]
CHECKPOINTS: dict[str, dict[str, Blocks]] = {
    "x": {"f": tuple(("x", number) for number in range(4))},
    "y": {"a": (("a", 0), ("a", 1)), "b": (("b", 0), ("b", 1))},
}
GOOD = {f"{digest}/{path}": blocks for digest, files in CHECKPOINTS.items() for path, blocks in files.items()}
FILES = {digest: [f"{digest}/{path}" for path in files] for digest, files in CHECKPOINTS.items()}
STRANGER: Blocks = ("?",) * 4  # as long as the real one
SHORT: Blocks = ("short",)
WAIT = 300.0  # what `ensure` calls wait: longer than the slowest block takes
STALL = 2 * WAIT  # how long an origin that stalls says nothing, once
RATE = 1e-3  # by how much a container's clocks may go too fast or too slow
NEAR = 20.0  # seconds by which its wall clock may be off; where clocks are far apart some are off by hours or days
OLD = -1e6  # when the receipts were written that a world begins with; the others are younger than half of it
SPARE = 3600.0  # how long `prune` keeps what was verified
RIGHT = "it has the right bytes"  # how an `ensure` ended


def receipt(digest: str) -> str:
    return f"receipts/{digest}"
