"""The report of download.py: tables as Markdown, and the comparison with the targets of weightcache."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from download_cases import CASES, THROTTLED
from download_contestants import CONTESTANTS, NOT
from hit import machine, version

if TYPE_CHECKING:
    Job = dict[str, Any]
    Result = dict[str, Any]


def least(told: Result, key: str = "inside") -> float:
    return min(run[key] for run in told["runs"])


def median(told: Result, key: str = "inside") -> float:
    return statistics.median(run[key] for run in told["runs"])


def peak(told: Result) -> float:
    return max(run["peak"] for run in told["runs"])


def finished(told: Result) -> Result:
    return {name: each for name, each in told.items() if each.get("runs")}


def table(title: str, told: Result, rounds: int, floor: float) -> list[str]:
    """Return the table of one case as Markdown, the fastest first."""
    ran = finished(told)
    ours = least(ran["weightcache"]) if "weightcache" in ran else None
    lines = ["", f"### {title}, {rounds} round{'s' if rounds > 1 else ''}", ""]
    lines += ["| | verified | in process: least, s | median | ÷ weightcache | whole process, s | CPU, s | peak, MB |"]
    lines += ["|---|---|--:|--:|--:|--:|--:|--:|"]
    for name, each in sorted(ran.items(), key=lambda item: least(item[1])):
        once = " (1 round)" if len(each["runs"]) == 1 < rounds else ""
        ratio = f"{least(each) / ours:.2f}" if ours else ""
        memory = f"{peak(each):.0f}" if peak(each) > floor + 1 else f"≤ {floor:.0f}"
        cells = [
            CONTESTANTS[name].label + once,
            CONTESTANTS[name].verified,
            f"{least(each):.2f}",
            f"{median(each):.2f}",
        ]
        cells += [ratio, f"{least(each, 'whole'):.2f}", f"{least(each, 'cpu'):.2f}", memory]
        lines.append(f"| {' | '.join(cells)} |")
    failed = {name: each["failed"] for name, each in told.items() if "failed" in each}
    return lines + [f"| {CONTESTANTS[name].label} | failed: {why} | | | | | | |" for name, why in failed.items()]


# Case, peers (the slower one counts), their name in the table, and the maximum ratio for weightcache.
PEER_TARGETS = (
    ("shaped-tls", ("aria2",), "aria2c", 0.75),
    ("disk", ("requests", "write"), "`requests.get` or of the plain write, the longer", 1.05),
    ("both-disk", ("requests", "write"), "`requests.get` or of the plain write, the longer", 1.05),
)


def targets(cases: Result) -> list[Result]:
    """Compare weightcache with its targets, for the cases that were measured."""
    rows: list[tuple[str, float, float, float]] = []
    for case, cpu, memory in (("one", 1.1, 120.0), ("shaped", 1.5, 260.0)):
        ran = finished(cases.get(case, {}))
        if "weightcache" not in ran:
            continue
        ours = ran.pop("weightcache")
        against = [("curl", "bare curl", 1.1)] if case == "one" else [("aria2", "aria2c", 0.65)]
        verifying = [name for name in ran if CONTESTANTS[name].verified != NOT]
        if case == "one" and verifying:
            best = min(verifying, key=lambda name: least(ran[name]))
            against.insert(0, (best, f"the best verifying peer here, {CONTESTANTS[best].label}", 0.75))
        for name, what, wanted in against:
            if name in ran:
                ratios = least(ours) / least(ran[name]), median(ours) / median(ran[name])
                rows.append((f"{case}: time ÷ that of {what}", wanted, *ratios))
        rows.append((f"{case}: CPU, s", cpu, least(ours, "cpu"), median(ours, "cpu")))
        rows.append((f"{case}: peak memory, the largest, MB", memory, peak(ours), peak(ours)))
    for case, others, what, wanted in PEER_TARGETS:
        ran = finished(cases.get(case, {}))
        if {"weightcache", *others} <= ran.keys():
            ratios = (each(ran["weightcache"]) / max(each(ran[name]) for name in others) for each in (least, median))
            rows.append((f"{case}: time ÷ that of {what}", wanted, *ratios))
    alone = finished(cases.get("shaped", {})).get("weightcache")
    for slow in THROTTLED:
        ours = finished(cases.get(f"throttled-{slow}", {})).get("weightcache")
        if alone and ours:
            ratios = (each(ours) / each(alone) for each in (least, median))
            rows.append((f"one connection at {slow} bytes/s: time ÷ that without it", 2.0, *ratios))
    verdicts = ("no", "by the minimum only", "by the median only", "yes")
    return [
        {"what": what, "at most": wanted, "minimum": smallest, "median": middle}
        | {"reached": verdicts[(smallest <= wanted) + 2 * (middle <= wanted)]}
        for what, wanted, smallest, middle in rows
    ]


def version_of(needed: str) -> str:
    """Return the version of a module's distribution or of a program."""
    if (found := version(needed)) or not shutil.which(needed):
        return found
    said = subprocess.run([needed, "--version"], capture_output=True, text=True, check=False).stdout
    return next((word for word in said.split() if word[0].isdigit()), "")


def describe_machine() -> Result:
    """Return facts about this machine and the versions of the contestants."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = model[0].partition(":")[2].strip() if model else "unknown"
    needed = dict.fromkeys(each.needs for each in CONTESTANTS.values())
    return {**machine(), "cpu": cpu, "kernel": os.uname().release, "versions": {n: version_of(n) for n in needed}}


MACHINE_TEXT = """
Machine: {cpus} cores ({cpu}), Linux {kernel}, Python {python}, {date:.10}; load average before: {load};
the disk: {disk}. {peers}.

Times are the least of all rounds, but for the medians. In process: from the call to the verified file, without the
start of the interpreter and imports; for a program, the whole process. Above 1 in "÷ weightcache" the peer is slower.
CPU is the least, peak memory the largest. weightcache, aria2c and the plain write fsync the file, the others do not.
"""


SHAPER_TEXT = """
The shaped line alone: 24 connections move {rate:.0f} MB/s of {wanted} to readers that drop everything, for {cpu:.2f} s
of the shaper's CPU a GB; without limits it moves {free:.0f} MB/s. Over a round trip of {trip} ms an empty answer takes
{new:.0f} ms on a new connection (wanted: two round trips) and {kept:.0f} ms on a kept one (wanted: one).
"""


def introduction(result: Result, disk: str) -> list[str]:
    """Return the text in front of the tables: machine, versions, how to read them."""
    told = result["machine"]
    load = " ".join(f"{each:.1f}" for each in told["loadavg"])
    peers = ", ".join(f"{name} {each}" for name, each in told["versions"].items() if each)
    text = MACHINE_TEXT.format(**told, load=load, disk=disk, peers=peers)
    if result["line alone"]:
        text += SHAPER_TEXT.format(**result["line alone"])
    return "\n\n".join(textwrap.fill(part, 120) for part in text.strip().split("\n\n")).splitlines()


def report(result: Result, disk: str) -> str:
    floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # a child inherits this as its least peak
    lines = introduction(result, disk)
    for name, told in result["cases"].items():
        lines += table(CASES[name].title, told, result["rounds"], floor)
    if result["targets"]:
        lines += ["", "| wanted of weightcache | at most | by the minimum | by the median | reached |"]
        lines += ["|---|--:|--:|--:|---|"]
    for each in result["targets"]:
        figures = (f"{each[key]:.3g}" for key in ("at most", "minimum", "median"))
        lines += [f"| {each['what']} | {' | '.join(figures)} | {each['reached']} |"]
    for name, needs in result["missing"].items():
        lines += ["", f"Missing: {CONTESTANTS[name].label} ({needs} is not installed)."]
    return "\n".join(lines)
