"""Measure weightcache inside gVisor, the sandbox that Modal uses, beside the same machine without it.

The places take turns, so that other work on the machine affects all equally. In each, nginx serves random bytes on
loopback, and every figure is a fresh process. Everything lies in /dev/shm, which gVisor reaches through another
process, as it reaches a Volume. The processes have ``MODAL_TASK_ID``, as in a container of Modal.

    python benchmarks/gvisor.py [--rounds N] [--mb N] [--build RELEASE]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from download_servers import CERTIFICATE, COMMIT, NGINX, free_port, running, write_stand_in

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
RUNNER = HERE.parent / "tests" / "system" / "in_gvisor.py"
READERS = (1, 4, 8, 16)
HITS = 5  # processes a round
BLOCK = 1 << 20  # bytes of a block of a partial

PRELUDE = """
import json, os, sys, time
job = json.loads(sys.argv[1])
def manifest(name, scheme):
    file = job["files"][name]
    return {"version": 1, "checkpoints": {name: {
        "urls": [f"{job[scheme]}/{name}"], "sha256": file["sha256"], "size": file["size"], "file": name}}}
"""

HIT = """
began = time.perf_counter()
from weightcache import ensure
ensure(manifest("small", "plain"), root=job["root"])
print(time.perf_counter() - began)
"""

WEIGHTCACHE = """
import logging
logging.disable()  # /dev/shm is no Volume, which is right here
from weightcache import ensure
ensure(manifest("small", job["scheme"]), root=job["root"] + "-small", progress=False)  # the imports of a miss
began = time.perf_counter()
ensure(manifest("large", job["scheme"]), root=job["root"], progress=False)
print(time.perf_counter() - began)
"""

REQUESTS = """
import hashlib, requests
def download(name):
    digest = hashlib.sha256()
    url = f"{job[job['scheme']]}/{name}"
    with requests.get(url, stream=True) as response, open(job["root"] + "-file", "wb") as out:
        for chunk in response.iter_content(1 << 20):
            digest.update(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    assert digest.hexdigest() == job["files"][name]["sha256"]
download("small")
began = time.perf_counter()
download("large")
print(time.perf_counter() - began)
os.unlink(job["root"] + "-file")
"""

PREFETCH = """
from weightcache import prefetch_files
began = time.perf_counter()
with prefetch_files(job["path"], into="memory", threads=job["threads"]) as reading:
    assert reading.wait(), reading.stats
    print(time.perf_counter() - began)
"""

RESUME = """
import logging, threading
logging.disable()
from weightcache import ensure
peak, over = 0, threading.Event()
def watch():
    global peak
    while not over.wait(0.002):
        used = 0
        for folder, _, names in os.walk(job["root"]):
            for name in names:
                try:
                    used += os.stat(f"{folder}/{name}").st_size
                except OSError:
                    pass
        peak = max(peak, used)
watching = threading.Thread(target=watch)
watching.start()
weights = ensure(manifest("large", "plain"), root=job["root"], progress=False)
over.set()
watching.join()
report = weights.report["large"]
print(json.dumps([report.outcome, report.bytes_fetched, peak]))
"""


def child(program: str, job: dict[str, Any]) -> subprocess.Popen[str]:
    environment = {**os.environ, **job.get("environment", {}), "MODAL_TASK_ID": "ta-benchmark"}
    command = [sys.executable, "-c", PRELUDE + program, json.dumps(job)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def result(program: str, job: dict[str, Any]) -> Any:
    process = child(program, job)
    said = process.communicate(timeout=300)[0]
    if process.returncode:
        sys.exit("a child failed")
    return json.loads(said.splitlines()[-1])


@contextmanager
def serving(folder: Path) -> Iterator[dict[str, str]]:
    """Start nginx, and yield its base URLs, plain and over TLS."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if not program:
        sys.exit("nginx is needed")
    subprocess.run([sys.executable, "-c", CERTIFICATE, folder], check=True)
    plain, tls = free_port(), free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, plain=plain, tls=tls, commit=COMMIT))
    folder.chmod(0o755)  # its workers run as nobody when started as root
    with running(program, "-c", folder / "nginx.conf", "-e", folder / "error.log"):
        deadline = time.monotonic() + 30
        while not (folder / "pid").exists() or not (folder / "pid").read_text():
            if time.monotonic() > deadline:
                sys.exit(f"nginx does not start: {(folder / 'error.log').read_text()}")
            time.sleep(0.01)
        yield {"plain": f"http://127.0.0.1:{plain}", "tls": f"https://127.0.0.1:{tls}"}


def killed_and_resumed(job: dict[str, Any]) -> dict[str, float]:
    """Kill a download half-way, and let the next process continue it."""
    size, partials = job["files"]["large"]["size"], Path(job["root"], ".weightcache", "partial")
    process = child(WEIGHTCACHE, job)
    # A line of the journal is a block that is there; the size of a file with gaps says nothing.
    while sum(path.read_bytes().count(b"\n") for path in partials.glob("*/journal")) < size / BLOCK / 2:
        if process.poll() is not None:
            sys.exit("the download ended before it could be killed")
        time.sleep(0.001)
    process.kill()
    process.communicate()
    outcome, fetched, peak = result(RESUME, job)
    assert outcome == "resumed"
    return {"fetched after a kill half-way": fetched / size, "peak disk of kill and resume": peak / size}


def measure(megabytes: int) -> dict[str, float]:
    """Measure everything once, here."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="weightcache-") as temporary:
        folder = Path(temporary)
        (folder / "files").mkdir()
        files = {}
        for name, size in (("small", 1_000_000), ("large", megabytes * 1_000_000)):
            files[name] = {"size": size, "sha256": write_stand_in(folder / "files" / name, size)}
        with serving(folder) as urls:
            environment = {"REQUESTS_CA_BUNDLE": f"{folder}/ca.pem", "TMPDIR": temporary}
            job: dict[str, Any] = {"files": files, "environment": environment, **urls}
            for scheme in ("plain", "tls"):
                for who, program in (("weightcache", WEIGHTCACHE), ("requests", REQUESTS)):
                    root = f"{folder}/{scheme}-{who}"
                    found[f"{scheme}, {who}"] = result(program, {**job, "scheme": scheme, "root": root})
                    shutil.rmtree(root, ignore_errors=True)
            found |= killed_and_resumed({**job, "scheme": "plain", "root": f"{folder}/killed"})
            hit = {**job, "root": f"{folder}/killed-small"}
            found["hit"] = min(result(HIT, hit) for _ in range(HITS))
        for threads in READERS:
            found[f"prefetch, {threads}"] = result(PREFETCH, {"path": str(folder / "files/large"), "threads": threads})
    return found


def elsewhere(release: str, megabytes: int) -> dict[str, float]:
    """Do the same inside gVisor."""
    inside = [sys.executable, str(Path(__file__)), "--inside", "--mb", str(megabytes)]
    command = [sys.executable, RUNNER, "--build", release, "--command", *inside]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout
    told = [line for line in said.splitlines() if line.startswith("{")]
    if not told:
        sys.exit(said)
    found: dict[str, float] = json.loads(told[0])
    return found


def show(rounds: dict[str, list[dict[str, float]]], megabytes: int) -> None:
    """Print a table: the least of all rounds, and how many times that of this machine without gVisor."""
    print("| | " + " | ".join(rounds) + " |")
    print("|---|" + "--:|" * len(rounds))
    for key in rounds["host"][0]:
        cells = []
        for place, told in rounds.items():
            values = [each[key] for each in told]
            best = min(values)
            times = "" if place == "host" else f" ({best / min(each[key] for each in rounds['host']):.2f} x)"
            if key in ("peak disk of kill and resume", "fetched after a kill half-way"):
                cells.append(f"{max(values):.3f}")
            elif key == "hit":
                cells.append(f"{1e3 * best:.0f} ms{times}")
            elif key.startswith("prefetch"):
                cells.append(f"{megabytes / 1e3 / best:.2f} GB/s{times}")
            else:
                cells.append(f"{best:.2f} s, median {statistics.median(values):.2f}{times}")
        print(f"| {key} | " + " | ".join(cells) + " |")


def main() -> None:
    arguments = argparse.ArgumentParser(description="What weightcache does inside gVisor.")
    arguments.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    arguments.add_argument("--mb", type=int, default=256, help="size of the file in MB (default: %(default)s)")
    arguments.add_argument("--build", action="append", help="release of Debian whose gVisor is used (default: both)")
    arguments.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.inside:
        print(json.dumps(measure(options.mb)))
        return
    places = options.build or ["bookworm", "trixie"]
    rounds: dict[str, list[dict[str, float]]] = {place: [] for place in ("host", *places)}
    print("load average before:", *os.getloadavg(), file=sys.stderr)
    for _ in range(options.rounds):
        rounds["host"].append(measure(options.mb))
        for place in places:
            rounds[place].append(elsewhere(place, options.mb))
    show(rounds, options.mb)


if __name__ == "__main__":
    main()
