"""What a cold start costs, measured: this app beside the usual way, on one machine.

    make scenarios            # draws docs/headline.svg, cold-start.svg and before-after.svg too

Full-size checkpoints with random numbers are made once (4 GB in ``.cache/``). Each figure is a fresh process, timed
from its start until both models are loaded and a number of every page of their weights was read. The processes take
turns, and what they read is dropped from the page cache before. All must have loaded the same numbers, and on one photo
both ways must find the same boxes and masks.

The usual way is `models.baseline`: a file that exists is taken for whole, what is missing comes in one stream, and the
models are loaded as their packages show it. It is given what an app may lack: BERT's weights lie on the local disk.

Needs Linux, 12 GB of memory, nginx, a C compiler, and for the slow volume FUSE and root; where that is not permitted it
says so, and measures the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion_crop.web.serve import manifest_at, stand_ins_in

REPOSITORY = Path(__file__).parents[3]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from download_cases import RATE, ROUND_TRIP  # noqa: E402
from download_servers import serving  # noqa: E402
from loading import READAHEAD, drop_from_page_cache  # noqa: E402
from slowvol import SlowVolume, available  # noqa: E402

from .start_programs import FILL_BERT, HEAD, OURS, TAIL, USUAL  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping

    Result = dict[str, Any]

PHASES = ("python", "download", "imports", "build", "load")
VOLUME = "8 MiB blocks, 10 ms, 150 MB/s a stream, 1.2 GB/s in all"  # which are the defaults of SlowVolume
PATIENCE = 900  # seconds for one process

# How far the two ways may be apart: pixels, shares of 1, and the share of pixels that fall on the other side.
TOLERANCES = {"box": 0.05, "score": 1e-4, "mask": 1e-3, "quality": 1e-3}


@dataclass(frozen=True)
class Scenario:
    """A start of one of the two ways.

    Attributes:
        title: What it is called in tables and pictures.
        ours: Whether it is this app.
        place: Where the weights lie: ``"disk"`` or ``"volume"``.
        empty: Whether they have to be downloaded, to the disk.
    """

    title: str
    ours: bool
    place: str = "disk"
    empty: bool = False


SCENARIOS = {
    "usual, image": Scenario("as usual, weights in the image", ours=False),
    "usual, empty": Scenario("as usual, Volume empty", ours=False, empty=True),
    "usual, volume": Scenario("as usual, Volume filled", ours=False, place="volume"),
    "ours, empty": Scenario("weightcache, Volume empty", ours=True, empty=True),
    "ours, volume": Scenario("weightcache, Volume filled", ours=True, place="volume"),
    "ours, disk": Scenario("weightcache, local disk", ours=True),
}
WAYS = {"usual": "as usual", "ours": "**weightcache**"}
PHOTOS = {"usual": "usual, image", "ours": "ours, disk"}  # the starts after which a photo is looked at, in this order
ONCE = ("usual, empty",)  # a single stream takes its time, each time alike


class Bench:
    """The files of all scenarios, and what serves them.

    Args:
        size: ``"full"``, or ``"stand-in"`` to try this program.
        cache: Where the files are made and kept, on a disk.
        volume: Whether there is to be a slow volume.
    """

    def __init__(self, size: str, cache: Path, *, volume: bool) -> None:
        self._size, self._volume = size, volume
        self.made = stand_ins_in(cache.resolve(), size)
        self._bert = self.made / "bert-with-weights"
        if not self._bert.is_dir():
            with tempfile.TemporaryDirectory(dir=self.made) as begun:
                run(FILL_BERT, str(self.made / "files" / "bert-base-uncased"), f"{begun}/bert")
                Path(begun, "bert").rename(self._bert)

    def __enter__(self) -> Bench:
        with ExitStack() as stack:
            memory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm", prefix="scenarios-")))
            self._disk = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self.made.parent)))
            for name in ("files", "published"):
                shutil.copytree(self.made / name, memory / "weights" / name)
            (memory / "files").symlink_to("weights/files")  # where nginx looks
            urls, _ = stack.enter_context(serving(memory))
            self._url = urls["shaped"]
            self.mounted = None
            if self._volume:
                self.mounted = stack.enter_context(SlowVolume(memory / "weights", readahead=READAHEAD))
            self._undo = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def start(self, scenario: Scenario, **extra: str) -> Result:
        """Let a fresh process start, and return its result."""
        place = self.made if self.mounted is None or scenario.place == "disk" else self.mounted.path
        root, weights = place / "published", place / "files"
        self._forget()
        with tempfile.TemporaryDirectory(dir=self._disk) as empty:
            if scenario.empty:
                root = weights = Path(empty)
            names = [path.name for path in self._checkpoints()]
            job = {
                "size": self._size,
                "urls": {name: f"{self._url}/{name}" for name in names},
                "weights": str(weights),
                "bert": str(self._bert),
                "manifest": str(manifest_at(f"{self._url}/", self.made, self._disk)),
                "root": str(root),
                "photo": "",
                **extra,
                "began": time.monotonic(),
            }
            return run(HEAD + (OURS if scenario.ours else USUAL) + TAIL, json.dumps(job))

    def parameters(self) -> str:
        """Return the machine and the versions behind the figures."""
        size = sum(path.stat().st_size for path in self._checkpoints())
        return (
            f"{os.cpu_count()} cores; {size / 1e9:.2f} GB; image and disk: this machine's, its cache dropped; "
            f"Volume: simulated, {VOLUME}; download: to the disk, {RATE} MB/s a connection, {ROUND_TRIP} ms"
        )

    def _checkpoints(self) -> list[Path]:
        """Return the two checkpoints that are loaded, the detector's first; another segmenter lies beside them."""
        return sorted(path for path in (self.made / "files").glob("*.p*") if "tiny" not in path.name)

    def photo(self) -> Path:
        """Write a photo for both ways; noise, in which random numbers see something everywhere."""
        import numpy as np  # noqa: PLC0415 (not before the clock of any child runs beside)

        path = self._disk / "photo.npy"
        np.save(path, np.random.default_rng(0).integers(0, 256, (1200, 900, 3), dtype=np.uint8))
        return path

    def answer(self) -> str:
        """Where the first of two ways leaves what it found."""
        return str(self._disk / "answer.npz")

    def _forget(self) -> None:
        if self.mounted is not None:
            self.mounted.evict()
        for path in self.made.rglob("*"):
            if path.is_file():
                drop_from_page_cache(path)


def run(program: str, *arguments: str) -> Result:
    """Run a program in a fresh process, and return what it printed last."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(REPOSITORY / "examples"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    streams = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(command, env=environment, timeout=PATIENCE, check=False, **streams)
    if done.returncode:
        sys.exit(f"a process failed:\n{done.stderr[-4000:]}")
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if lines else {}


def measure(bench: Bench, rounds: int) -> Result:
    """Let all scenarios take turns, then let both ways look at a photo."""
    chosen = {name: each for name, each in SCENARIOS.items() if bench.mounted or each.place == "disk" or each.empty}
    runs: dict[str, list[Result]] = {name: [] for name in chosen}
    for turn in range(rounds + 1):  # in the first turn Python writes its bytecode, and libraries come into the cache
        for name, scenario in chosen.items():
            if (scenario.empty and not turn) or (name in ONCE and runs[name]):
                continue
            print(f"{name}: round {turn} of {rounds}", file=sys.stderr)
            told = bench.start(scenario)
            if turn:
                runs[name].append(told)
    extra = {"photo": str(bench.photo()), "answer": bench.answer()}
    photos = {way: bench.start(SCENARIOS[name], **extra) for way, name in PHOTOS.items()}
    sums = {told["sum"] for each in (*runs.values(), photos.values()) for told in each}
    if len(sums) != 1:
        sys.exit(f"not all have loaded the same weights: {sums}")
    differences = photos["ours"]["differences"]
    if far := {name: differences[name] for name, most in TOLERANCES.items() if not differences[name] <= most}:
        sys.exit(f"the two ways do not find the same: {far}, and at most {TOLERANCES} was expected")
    return {"runs": runs, "photos": {way: told["photos"] for way, told in photos.items()}, "differences": differences}


def whole(told: Result) -> float:
    """Return seconds from the start of the process until it is ready."""
    return sum(told["phases"].values())


def without_imports(told: Result) -> float:
    """Return the seconds that are not Python's own start, nor its imports."""
    return whole(told) - told["phases"]["python"] - told["phases"]["imports"]


def typical(runs: list[Result]) -> Mapping[str, float]:
    """Return the phases of the run in the middle, so that they add up to a time that was measured."""
    return sorted(runs, key=whole)[(len(runs) - 1) // 2]["phases"]


def report(result: Result) -> str:
    """Write the tables, as Markdown."""
    lines = [
        "| | ready: median, s | least | " + " | ".join(PHASES) + " | CPU, s | peak, MB |",
        "|---" + "|--:" * (len(PHASES) + 4) + "|",
    ]
    for name, runs in result["runs"].items():
        bold = "**" if SCENARIOS[name].ours else ""
        once = " (once)" if len(runs) == 1 < result["rounds"] else ""
        figures = [statistics.median(map(whole, runs)), min(map(whole, runs))]
        figures += [typical(runs)[phase] for phase in PHASES] + [statistics.median(told["cpu"] for told in runs)]
        peak = max(told["peak"] for told in runs) / 1e6
        cells = " | ".join(f"{each:.2f}" for each in figures)
        lines.append(f"| {bold}{SCENARIOS[name].title}{bold}{once} | {cells} | {peak:.0f} |")
    lines += ["", "| the same photo | first, s | again, s |", "|---|--:|--:|"]
    for way, (first, again) in result["photos"].items():
        lines.append(f"| {WAYS[way]} | {first:.1f} | {again:.1f} |")
    apart = ", ".join(f"{name} {each:.2g}" for name, each in result["differences"].items() if name in TOLERANCES)
    lines += ["", f"What the two found is apart by at most: {apart}."]
    for ours, usual in (("ours, disk", "usual, image"), ("ours, volume", "usual, volume")):
        if ours in result["runs"]:
            pairs = list(zip(result["runs"][ours], result["runs"][usual], strict=True))
            ratios = [statistics.median(of(a) / of(b) for a, b in pairs) for of in (whole, without_imports)]
            lines.append(f"{ours} ÷ {usual}: {ratios[0]:.2f} of the whole, {ratios[1]:.3f} without imports.")
    return "\n".join(lines)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        prog="python -m fashion_crop.benchmarks.scenarios", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="processes of each scenario (default: %(default)s)")
    add("--size", choices=("full", "stand-in"), default="full", help="stand-in: only to try it (default: %(default)s)")
    add("--cache", type=Path, default=REPOSITORY / ".cache" / "fashion", help="(default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write every run there")
    add("--from", dest="measured", type=Path, metavar="FILE", help="measure nothing: take what --json wrote")
    add("--pictures", type=Path, metavar="FOLDER", help="draw the pictures of docs there")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: want 1 or more")
    result = json.loads(options.measured.read_text()) if options.measured else measured(options)
    print(f"{result['parameters']}\n\n{report(result)}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.pictures:
        from .pictures import draw  # noqa: PLC0415 (matplotlib)

        draw(result, options.pictures)


def measured(options: argparse.Namespace) -> Result:
    """Measure, and say on which machine."""
    if reason := available():
        print(f"no slow volume: {reason}; measuring what is left")
    options.cache.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
    print(f"{platform.platform()}, Python {platform.python_version()}, {stamp}")
    print("load average before: {:.1f} {:.1f} {:.1f}".format(*os.getloadavg()))
    with Bench(options.size, options.cache, volume=not reason) as bench:
        return {"rounds": options.rounds, "parameters": bench.parameters(), **measure(bench, options.rounds)}


if __name__ == "__main__":
    main()
