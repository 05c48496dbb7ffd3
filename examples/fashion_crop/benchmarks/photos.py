"""What a photo costs with each segmenter: seconds of detection and of segmentation, at full size.

    make photos

The weights are random numbers, which take the same time as the published ones. Each segmenter looks at the same photo
with the same boxes, all in turns. CPU seconds are those of all cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fashion_crop.models.detection import Box
from fashion_crop.models.pipeline import GARMENTS

if TYPE_CHECKING:
    from collections.abc import Callable

    Seconds = dict[str, float]

BOXES = 5
HEIGHT, WIDTH = 1200, 900  # pixels of the photo


def measure(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[Seconds]]:
    """Call each step ``rounds`` times and once before, in turns; return its seconds on the wall and of CPU."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            print(f"{name}: round {turn} of {rounds}, {taken['wall']:.1f} s", file=sys.stderr)
            if turn:  # in the first one torch prepares its kernels
                seconds[name].append(taken)
    return seconds


def report(seconds: dict[str, list[Seconds]]) -> str:
    """Write the medians as a Markdown table."""
    lines = ["| a photo | seconds | least | CPU seconds |", "|---|--:|--:|--:|"]
    for name, taken in seconds.items():
        least = min(each["wall"] for each in taken)
        cpu = statistics.median(each["cpu"] for each in taken)
        lines.append(f"| {name} | {medians(seconds)[name]:.1f} | {least:.1f} | {cpu:.1f} |")
    return "\n".join(lines)


def medians(seconds: dict[str, list[Seconds]]) -> dict[str, float]:
    """Return the median seconds on the wall of each step."""
    return {name: round(statistics.median(each["wall"] for each in taken), 1) for name, taken in seconds.items()}


def steps_of(text_encoder: Path, size: Any) -> dict[str, Callable[[], object]]:
    """Build the detector and every segmenter, and return what each does with a photo."""
    from fashion_crop.models import grounding_dino, sam  # noqa: PLC0415 (torch)

    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    boxes = [Box(50 + 150 * each, 100, 180 + 150 * each, 900) for each in range(BOXES)]
    detector = grounding_dino.GroundingDino(grounding_dino.build(text_encoder, size), size=size)

    def detection() -> object:
        return detector.detect(pixels, GARMENTS, box_threshold=0, text_threshold=0)

    def segmentation(variant: str) -> Callable[[], object]:
        segmenter = sam.Sam2(sam.build(variant, size))
        return lambda: segmenter.segment(pixels, boxes)

    return {"detection": detection} | {f"segmentation, {each}": segmentation(each) for each in sam.VARIANTS}


def main() -> None:
    """Measure and report."""
    from fashion_crop.web.serve import stand_ins_in  # noqa: PLC0415 (uvicorn)

    parser = argparse.ArgumentParser(
        prog="python -m fashion_crop.benchmarks.photos", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="(default: %(default)s)")
    add("--size", choices=("full", "stand-in"), default="full", help="stand-in: only to try it (default: %(default)s)")
    add("--cache", type=Path, default=Path(".cache/fashion"), help="(default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write every round there")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: want 1 or more")
    text_encoder = stand_ins_in(options.cache.resolve(), options.size) / "files" / "bert-base-uncased"
    stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {stamp}")
    print("load average before: {:.1f} {:.1f} {:.1f}".format(*os.getloadavg()))
    seconds = measure(steps_of(text_encoder, options.size), options.rounds)
    print(f"\n{report(seconds)}\n\nfor benchmarks/cost.py: {medians(seconds)}")
    if options.json:
        options.json.write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
