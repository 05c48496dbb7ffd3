"""Compare weightcache with other download tools: download and verify, in one run on one machine.

nginx serves stand-ins of the real sizes (examples/fashion_crop/weights.toml) on loopback: plain, over TLS, and both
through ``shaper.c``, which limits every connection to 40 MB/s and adds 20 ms. Each figure is a fresh process: it writes
the bytes to a file and compares their sha256. For reference, plain curl does not compare, and a plain write with fsync
shows the speed of the disk. The contestants take turns in a new order each round, so that noise affects all equally.

    python benchmarks/download.py [--rounds N] [--case NAME,…] [--only NAME,…] [--quick] [--json FILE]
    python benchmarks/download.py --serve      # only the servers, to try something by hand

Needs Linux, nginx, cc, Python 3.11 and 7 GB of memory. ``pip install -e '.[bench]'`` installs the peers, but not curl,
aria2 and torch. The report names peers that are not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from download_cases import CASES, ONE, Case
from download_contestants import CONTESTANTS, NOT, Contestant
from download_report import describe_machine, report, targets
from download_servers import COMMIT, measure_shaper, serving, write_files

if TYPE_CHECKING:
    Job = dict[str, Any]
    Result = dict[str, Any]

MEMORY = "/dev/shm"  # directory of the served files, and of downloads unless the case uses a disk
PATIENCE = 180  # seconds for one download


class FailedError(Exception):
    """A contestant did not produce the expected files."""


@dataclass
class Sandbox:
    """Runs the contestants of one case in fresh processes, with directories of their own."""

    folder: Path  # shared by all contestants
    into: Path  # downloads of one contestant; deleted after each run
    link: str
    base: str

    def job(self, files: list[Job]) -> Job:
        placed = [
            {**file, "url": f"{self.base}/{file['name']}", "path": f"{self.into}/{file['name']}"} for file in files
        ]
        job = {"base": self.base, "into": str(self.into), "files": placed, "commit": COMMIT}
        job |= {"ca": f"{self.folder}/ca.pem" if self.link.endswith("tls") else "", "json": f"{self.folder}/job.json"}
        job["from"] = f"{self.folder}/files"
        Path(job["json"]).write_text(json.dumps(job))
        return job

    def environment(self) -> dict[str, str]:
        # Bytecode as in any installed environment: see benchmarks/hit.py. No proxy stands between two ends of loopback.
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        kept.pop("PYTHONDONTWRITEBYTECODE", None)
        if self.link.endswith("tls"):
            kept |= dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), f"{self.folder}/ca.pem")
        kept |= {"HF_HOME": f"{self.folder}/hub", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return {**kept, "PYTHONPYCACHEPREFIX": f"{self.folder}/bytecode", "TMPDIR": str(self.folder)}

    def download(self, contestant: Contestant, files: list[Job]) -> dict[str, float]:
        """Download ``files`` in a fresh process, check their sizes, and delete them."""
        command = contestant.command(self.job(files))
        self.into.mkdir()
        try:
            with open(self.folder / "out", "w+") as out, open(self.folder / "err", "w+") as err:
                began = time.perf_counter()
                process = subprocess.Popen(command, stdout=out, stderr=err, env=self.environment())
                timer = threading.Timer(PATIENCE, process.kill)
                timer.start()
                _, status, usage = os.wait4(process.pid, 0)
                whole = time.perf_counter() - began
                timer.cancel()
                process.returncode = os.waitstatus_to_exitcode(status)
                out.seek(0), err.seek(0)
                said, complaint = out.read().split(), err.read().strip().splitlines()
            if process.returncode:
                raise FailedError(complaint[-1] if complaint else f"it ended with {process.returncode}")
            there = {path.stat().st_size for path in self.into.rglob("*") if path.is_file() and not path.is_symlink()}
            if missing := {file["size"] for file in files} - there:
                raise FailedError(f"it left no file of {missing} bytes")
        finally:
            shutil.rmtree(self.into)
        inside = float(said[-1]) if command[0] == sys.executable else whole
        peak = usage.ru_maxrss * 1024 / 1e6
        return {"inside": inside, "whole": whole, "cpu": usage.ru_utime + usage.ru_stime, "peak": peak}

    def warm_up(self, name: str, small: Job) -> str:
        """Run a contestant once to write bytecode, check that it refuses wrong bytes; return why it failed, if so."""
        contestant = CONTESTANTS[name]
        try:
            self.download(contestant, [small])
        except FailedError as failure:
            return str(failure)
        if contestant.verified != NOT:
            with contextlib.suppress(FailedError):
                self.download(contestant, [{**small, "sha256": "0" * 64}])
                sys.exit(f"{name} should verify, but accepted wrong bytes")
        return ""


def measure(sandbox: Sandbox, case: Case, turns: dict[str, int], files: dict[str, Job]) -> Result:
    """Run each contestant as often as ``turns`` says, one after another; return its runs, or why it failed."""
    names = list(turns)
    failed = {name: why for name in names if (why := sandbox.warm_up(name, files["small"]))}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(max(turns.values(), default=0)):
        print(f"{case.title}: round {turn + 1}", file=sys.stderr)
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if name in failed or turn >= turns[name]:
                continue
            if case.disk:
                os.sync()  # what the one before left to write
            try:
                runs[name].append(sandbox.download(CONTESTANTS[name], [files[each] for each in case.checkpoints]))
            except FailedError as failure:
                failed[name] = str(failure)
    return {name: {"failed": failed[name]} if name in failed else {"runs": runs[name]} for name in names}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Download and verify, weightcache beside its peers.")
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="processes of each contestant (default: %(default)s)")
    add("--case", default=",".join(CASES), metavar="NAME,…", help="(default: %(default)s)")
    add("--only", default=",".join(CONTESTANTS), metavar="NAME,…", help="(default: %(default)s)")
    add("--quick", action="store_true", help="one round of `one` and `shaped`, there without single streams")
    add("--disk", default=tempfile.gettempdir(), help="where the case `disk` writes (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write every run there")
    add("--serve", action="store_true", help="only start the servers and print their URLs, until Ctrl-C")
    options = parser.parse_args()
    options.case, options.only = options.case.split(","), options.only.split(",")
    if unknown := set(options.case) - set(CASES) | set(options.only) - set(CONTESTANTS):
        parser.error(f"unknown: {', '.join(unknown)}")
    if options.rounds < 1:
        parser.error("--rounds: want 1 or more")
    if options.quick:
        options.rounds, options.case = 1, [name for name in ("one", "shaped") if name in options.case]
    return options


def missing_peers(names: list[str]) -> dict[str, str]:
    """Return the contestants that are not installed, with the module or program that each needs."""
    needs = {name: CONTESTANTS[name].needs for name in names}
    return {name: each for name, each in needs.items() if not find_spec(each) and not shutil.which(each)}


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped
    missing = missing_peers(options.only)
    result: Result = {
        "benchmark": "download",
        "machine": describe_machine(),
        "rounds": options.rounds,
        "missing": missing,
    }
    result |= {"line alone": None, "cases": {}}
    kind = subprocess.run(["stat", "-f", "-c", "%T", options.disk], capture_output=True, text=True, check=True).stdout
    if shutil.disk_usage(MEMORY).free < 6.5e9:
        sys.exit(f"6.5 GB are not free in {MEMORY}")
    with (
        tempfile.TemporaryDirectory(prefix="weightcache-bench-", dir=MEMORY) as temporary,
        tempfile.TemporaryDirectory(prefix="weightcache-bench-", dir=options.disk) as disk,
        serving(Path(temporary)) as (urls, shapers),
    ):
        files = write_files(Path(temporary))
        if options.serve:
            print(json.dumps({"urls": urls, "ca": f"{temporary}/ca.pem", "files": files}, indent=1), flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
            return
        for name in options.case:
            case = CASES[name]
            single = options.rounds
            if case.link.startswith("shaped"):
                single = 0 if options.quick else 1
                result["line alone"] = measure_shaper(urls, shapers, "/" + files[ONE[0]]["name"])
            turns = {each: options.rounds if CONTESTANTS[each].many else single for each in options.only}
            turns = {name: 0 if CONTESTANTS[name].disk and not case.disk else count for name, count in turns.items()}
            turns = {each: count for each, count in turns.items() if count and each not in missing}
            if case.alone:
                turns = {each: count for each, count in turns.items() if each == "weightcache"}
            sandbox = Sandbox(
                Path(temporary), Path(disk if case.disk else temporary, "into"), case.link, urls[case.link]
            )
            result["cases"][name] = measure(sandbox, case, turns, files)
    result["targets"] = targets(result["cases"])
    print(report(result, kind.strip()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
