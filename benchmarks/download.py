"""Download and verify, weightcache beside its peers, in one run on one machine.

nginx serves stand-ins of the true sizes (examples/fashion_crop/weights.toml) on loopback: plain, over TLS, and both
through ``shaper.c``, which gives every connection 40 MB/s and 20 ms. Each figure is a fresh process that ends with the
bytes in a file, their sha256 compared with the declared one; bare curl, which compares nothing, shows what the bytes
alone cost, and a plain write with its fsync what the disk does.
The contestants take turns, each round in another order, so that the noise of the machine meets all of them alike.

    python benchmarks/download.py [--rounds N] [--case NAME,…] [--only NAME,…] [--quick] [--json FILE]
    python benchmarks/download.py --serve      # only the servers, to try something by hand

Needs Linux, nginx, cc, Python 3.11 and 7 GB of memory. ``pip install -e '.[bench]'`` brings the peers, but not curl,
aria2 and torch. A peer that is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hit import machine, version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Job = dict[str, Any]
    Told = dict[str, Any]

HERE = Path(__file__).parent
MEMORY = "/dev/shm"  # where the origin's files lie, and what is downloaded unless a case says otherwise
RATE, ROUND_TRIP = 40, 20  # MB/s of each connection, milliseconds
PATIENCE = 180  # seconds for one download
COMMIT = "0" * 40  # of a repository on the Hub that does not exist

NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; default_type application/octet-stream; root {folder}/files;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{
    listen 127.0.0.1:{plain};
    listen 127.0.0.1:{tls} ssl; ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
    location ~ ^/bench/[^/]+/resolve/[^/]+/(.+)$ {{ add_header X-Repo-Commit {commit}; alias {folder}/files/$1; }}
  }}
}}
"""  # the location answers as the Hub does

CERTIFICATE = """\
import sys, trustme
authority = trustme.CA()
certificate = authority.issue_cert("127.0.0.1")
certificate.private_key_pem.write_to_path(sys.argv[1] + "/key.pem")
certificate.cert_chain_pems[0].write_to_path(sys.argv[1] + "/cert.pem")
authority.cert_pem.write_to_path(sys.argv[1] + "/ca.pem")
"""

# Every contestant in Python is CHILD and its own lines, and prints its seconds last. Imports come before the clock.
CHILD = """\
import hashlib, json, os, sys, time
job = json.load(open(sys.argv[1]))
def check(path, sha256):
    with open(path, "rb") as stream:
        assert hashlib.file_digest(stream, "sha256").hexdigest() == sha256, "wrong bytes"
"""

WEIGHTCACHE = """\
import filelock, requests, weightcache, weightcache._transfer.download, weightcache._engine.host
began = time.perf_counter()
checkpoints = {file["checkpoint"]: {"urls": [file["url"]], "sha256": file["sha256"], "size": file["size"]}
               for file in job["files"]}
weightcache.ensure({"version": 1, "checkpoints": checkpoints}, root=job["into"], progress=False)
"""

TORCH = """\
import torch.hub
began = time.perf_counter()
for file in job["files"]:
    torch.hub.download_url_to_file(file["url"], file["path"], hash_prefix=file["sha256"], progress=False)
"""

POOCH = """\
import pooch
pooch.get_logger().disabled = True
began = time.perf_counter()
for file in job["files"]:
    pooch.retrieve(file["url"], "sha256:" + file["sha256"], fname=file["name"], path=job["into"])
"""

HUB = """\
os.environ["HF_ENDPOINT"] = job["base"]
from huggingface_hub import hf_hub_download
began = time.perf_counter()
for file in job["files"]:
    path = hf_hub_download("bench/" + file["checkpoint"], file["name"], revision=job["commit"], cache_dir=job["into"])
    check(path, file["sha256"])
"""

HF_TRANSFER = """\
import hf_transfer
began = time.perf_counter()
for file in job["files"]:
    hf_transfer.download(file["url"], file["path"], max_files=CONNECTIONS, chunk_size=10 << 20,
                         parallel_failures=3, max_retries=5)
    check(file["path"], file["sha256"])
"""

OBSTORE = """\
import obstore, obstore.store
began = time.perf_counter()
trust = {"root_certificate": open(job["ca"], "rb").read()} if job["ca"] else {}
store = obstore.store.HTTPStore.from_url(job["base"], client_options={"allow_http": True, **trust})
for file in job["files"]:
    digest = hashlib.sha256()
    with open(file["path"], "wb") as stream:
        for piece in obstore.get(store, file["name"]).stream(min_chunk_size=1 << 20):
            digest.update(piece)
            stream.write(piece)
    assert digest.hexdigest() == file["sha256"], "wrong bytes"
"""

REQUESTS = """\
import requests
began = time.perf_counter()
for file in job["files"]:
    digest = hashlib.sha256()
    with requests.get(file["url"], stream=True) as response, open(file["path"], "wb") as stream:
        response.raise_for_status()
        for piece in response.iter_content(1 << 20):
            digest.update(piece)
            stream.write(piece)
    assert digest.hexdigest() == file["sha256"], "wrong bytes"
"""

URLRETRIEVE = """\
import urllib.request
began = time.perf_counter()
for file in job["files"]:
    urllib.request.urlretrieve(file["url"], file["path"])
    check(file["path"], file["sha256"])
"""

WRITE = """\
room = memoryview(bytearray(1 << 20))
began = time.perf_counter()
for file in job["files"]:
    with open(job["from"] + "/" + file["name"], "rb", buffering=0) as source:
        with open(file["path"], "wb", buffering=0) as stream:
            while count := source.readinto(room):
                stream.write(room[:count])
            os.fsync(stream.fileno())
"""


def python(lines: str) -> Callable[[Job], list[str]]:
    return lambda job: [sys.executable, "-c", f"{CHILD}{lines}print(time.perf_counter() - began)", job["json"]]


def curl(job: Job) -> list[str]:
    pairs = [word for file in job["files"] for word in ("-o", file["path"], file["url"])]
    return ["curl", "-q", "-fsS", *(["--cacert", job["ca"]] if job["ca"] else []), *pairs]


def aria2(job: Job) -> list[str]:
    wanted = Path(job["json"] + ".list")
    lines = (f"{file['url']}\n out={file['name']}\n checksum=sha-256={file['sha256']}\n" for file in job["files"])
    wanted.write_text("".join(lines))
    quiet = ["--no-conf", "--console-log-level=error", "--summary-interval=0", "--download-result=hide"]
    trust = [f"--ca-certificate={job['ca']}"] if job["ca"] else []
    how = ["-x16", "-s16", "-k1M", "--file-allocation=none"]
    return ["aria2c", *quiet, *trust, *how, f"--dir={job['into']}", f"--input-file={wanted}"]


@dataclass
class Contestant:
    label: str
    needs: str  # a module or a program
    command: Callable[[Job], list[str]]
    verified: str = "by itself"  # how the bytes are; by us: it does not, so this benchmark does it within its time
    disk: bool = False  # takes part only where the disk counts
    many: bool = False  # connections; one alone takes 18 s on the shaped line, each time alike, and runs there once


NOT, LOOP, AFTER = "not at all", "by us, in the loop", "by us, afterwards"
CONTESTANTS = {
    "weightcache": Contestant("**weightcache**", "weightcache", python(WEIGHTCACHE), many=True),
    "curl": Contestant("curl", "curl", curl, NOT),
    "aria2": Contestant("aria2c -x16 -s16 -k1M --checksum", "aria2c", aria2, many=True),
    "torch": Contestant("`torch.hub.download_url_to_file`", "torch", python(TORCH)),
    "pooch": Contestant("`pooch.retrieve`", "pooch", python(POOCH)),
    "hub": Contestant("`hf_hub_download`", "huggingface_hub", python(HUB), AFTER),
    "hf_transfer": Contestant(
        "`hf_transfer`, 16 connections",
        "hf_transfer",
        python(HF_TRANSFER.replace("CONNECTIONS", "16")),
        AFTER,
        many=True,
    ),
    "hf_transfer-100": Contestant(  # as huggingface_hub called it
        "`hf_transfer`, 100 connections",
        "hf_transfer",
        python(HF_TRANSFER.replace("CONNECTIONS", "100")),
        AFTER,
        many=True,
    ),
    "obstore": Contestant("`obstore.get`", "obstore", python(OBSTORE), LOOP),
    "requests": Contestant("`requests.get`", "requests", python(REQUESTS), LOOP),
    "urlretrieve": Contestant("`urllib.request.urlretrieve`", "urllib", python(URLRETRIEVE), AFTER),
    "write": Contestant("no download: written from memory and fsynced", "os", python(WRITE), NOT, disk=True),
}


@dataclass
class Case:
    title: str
    checkpoints: tuple[str, ...]
    link: str  # plain, tls, shaped, shaped-tls or throttled-N
    disk: bool = False
    alone: bool = False  # only weightcache: other clients may wait for the slow connection for hours


THROTTLED = (6_000, 400)  # bytes a second
ONE, BOTH = ("groundingdino",), ("groundingdino", "sam2")
CASES = {
    "one": Case("694 MB, plain loopback, into /dev/shm", ONE, "plain"),
    "both": Case("694 and 898 MB, plain loopback, into /dev/shm", BOTH, "plain"),
    "tls": Case("694 MB, TLS on loopback, into /dev/shm", ONE, "tls"),
    "disk": Case("694 MB, plain loopback, onto a disk", ONE, "plain", disk=True),
    "both-disk": Case("694 and 898 MB, TLS on loopback, onto a disk", BOTH, "tls", disk=True),
    "shaped": Case(f"694 MB, {RATE} MB/s a connection, {ROUND_TRIP} ms, into /dev/shm", ONE, "shaped"),
    "shaped-tls": Case(f"694 MB, TLS, {RATE} MB/s a connection, {ROUND_TRIP} ms, into /dev/shm", ONE, "shaped-tls"),
    **{
        f"throttled-{slow}": Case(
            f"694 MB, {RATE} MB/s a connection, {ROUND_TRIP} ms, one connection of them {slow} bytes/s",
            ONE,
            f"throttled-{slow}",
            alone=True,
        )
        for slow in THROTTLED
    },
}


def write_stand_in(path: Path, size: int) -> str:
    """Write ``size`` random bytes, no block like another, and return their sha256."""
    block, digest = bytearray(os.urandom(1 << 20)), hashlib.sha256()
    with open(path, "wb") as stream:
        for at in range(0, size, len(block)):
            block[:8] = at.to_bytes(8, "big")
            with memoryview(block)[: size - at] as piece:
                digest.update(piece)
                stream.write(piece)
    return digest.hexdigest()


def lay_out(folder: Path) -> dict[str, Job]:
    """Write what the origin serves: the two checkpoints, and a small file to warm up with."""
    from weightcache import Manifest

    # Memory that a virtual machine touches for the first time can cost ten times as much as any later time.
    write_stand_in(folder / "touched", 6_000_000_000)
    (folder / "touched").unlink()
    (folder / "files").mkdir()
    manifest = Manifest.load(HERE.parent / "examples/fashion_crop/weights.toml")
    sizes = {name: (manifest[name].files[0].path, manifest[name].files[0].size or 0) for name in BOTH}
    files = {}
    for checkpoint, (name, size) in {**sizes, "small": ("small.bin", 3_000_000)}.items():
        sha256 = write_stand_in(folder / "files" / name, size)
        files[checkpoint] = {"checkpoint": checkpoint, "name": name, "size": size, "sha256": sha256}
    return files


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(*command: str | Path, told: int | None = None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=told, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()  # which closes the pipe, too


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[dict[str, str], dict[str, int]]]:
    """Start nginx and the shapers, one without any limit; yield the base URLs and the process ids of two."""
    nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if not nginx or not shutil.which("cc") or not find_spec("trustme"):
        sys.exit("nginx, cc and trustme are needed")
    subprocess.run([sys.executable, "-c", CERTIFICATE, folder], check=True)
    subprocess.run(["cc", "-O2", "-o", folder / "shaper", HERE / "shaper.c", "-lm"], check=True)
    plain, tls = free_port(), free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, plain=plain, tls=tls, commit=COMMIT))
    folder.chmod(0o755)  # its workers run as nobody when started as root
    shaper, limits = folder / "shaper", (str(RATE), str(ROUND_TRIP))
    with (
        running(nginx, "-c", folder / "nginx.conf", "-e", folder / "error.log") as origin,
        running(shaper, "0", str(plain), *limits, told=subprocess.PIPE) as shaped,
        running(shaper, "0", str(tls), *limits, told=subprocess.PIPE) as shaped_tls,
        running(shaper, "0", str(plain), "0", "0", told=subprocess.PIPE) as free,
        contextlib.ExitStack() as stack,
    ):
        throttled = [
            (
                f"throttled-{slow}",
                stack.enter_context(running(shaper, "0", str(plain), *limits, str(slow), told=subprocess.PIPE)),
            )
            for slow in THROTTLED
        ]
        urls = {"plain": f"http://127.0.0.1:{plain}", "tls": f"https://127.0.0.1:{tls}"}
        for name, line in (("shaped", shaped), ("shaped-tls", shaped_tls), ("free", free), *throttled):
            assert line.stdout
            scheme = "https" if name.endswith("tls") else "http"
            urls[name] = f"{scheme}://127.0.0.1:{int(line.stdout.readline())}"
        while True:  # until it listens; it ends if it cannot
            if origin.poll() is not None:
                sys.exit(f"nginx ended: {(folder / 'error.log').read_text()}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", tls)) == 0:
                    break
            time.sleep(0.01)
        yield urls, {"shaped": shaped.pid, "free": free.pid}


READERS = """\
import http.client, json, socket, sys, threading, time
host, port, path, count = "127.0.0.1", int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
connection, waits = http.client.HTTPConnection(host, port), []
for _ in range(4):
    began = time.perf_counter()
    connection.request("HEAD", path)
    connection.getresponse().read()
    waits.append(time.perf_counter() - began)
sizes, done = [0] * count, threading.Event()
def read(number):
    room, stream = bytearray(1 << 20), socket.create_connection((host, port))
    stream.sendall(f"GET {path} HTTP/1.0\\r\\n\\r\\n".encode())
    while not done.is_set() and (size := stream.recv_into(room, 0, socket.MSG_TRUNC)):  # dropped, not copied
        sizes[number] += size
threads = [threading.Thread(target=read, args=(number,)) for number in range(count)]
for thread in threads: thread.start()
time.sleep(0.5)  # past slow start
before, began = sum(sizes), time.perf_counter()
time.sleep(1.5)
rate = (sum(sizes) - before) / (time.perf_counter() - began)
done.set()
for thread in threads: thread.join()
print(json.dumps({"new": 1e3 * waits[0], "kept": 1e3 * min(waits[1:]), "rate": rate / 1e6, "GB": sum(sizes) / 1e9}))
"""


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def line_alone(urls: dict[str, str], shapers: dict[str, int], path: str) -> Told:
    """Tell what the line carries to 24 readers that drop everything: it must not be what limits a contestant."""
    told = {}
    for name, pid in shapers.items():
        before = cpu_seconds(pid)
        command = [sys.executable, "-c", READERS, urls[name].rpartition(":")[2], path, "24"]
        told[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        told[name]["cpu"] = (cpu_seconds(pid) - before) / told[name].pop("GB")
    return {**told["shaped"], "free": told["free"]["rate"], "wanted": 24 * RATE, "trip": ROUND_TRIP}


class FailedError(Exception):
    """A contestant did not end with the bytes that were wanted."""


@dataclass
class Field:
    """Where one case takes place."""

    folder: Path  # for what belongs to no contestant
    into: Path  # for what one of them downloads; emptied after each
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
        """Let a fresh process download ``files``, see that they are there, and remove them."""
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
        """Let a contestant write its bytecode and refuse wrong bytes; return why it cannot take part, or nothing."""
        contestant = CONTESTANTS[name]
        try:
            self.download(contestant, [small])
        except FailedError as failure:
            return str(failure)
        if contestant.verified != NOT:
            with contextlib.suppress(FailedError):
                self.download(contestant, [{**small, "sha256": "0" * 64}])
                sys.exit(f"{name} is said to verify, and took wrong bytes")
        return ""


def measure(field: Field, case: Case, turns: dict[str, int], files: dict[str, Job]) -> Told:
    """Run each contestant as often as ``turns`` says, one after another; return its runs, or why it failed."""
    names = list(turns)
    failed = {name: why for name in names if (why := field.warm_up(name, files["small"]))}
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
                runs[name].append(field.download(CONTESTANTS[name], [files[each] for each in case.checkpoints]))
            except FailedError as failure:
                failed[name] = str(failure)
    return {name: {"failed": failed[name]} if name in failed else {"runs": runs[name]} for name in names}


def least(told: Told, key: str = "inside") -> float:
    return min(run[key] for run in told["runs"])


def median(told: Told, key: str = "inside") -> float:
    return statistics.median(run[key] for run in told["runs"])


def peak(told: Told) -> float:
    return max(run["peak"] for run in told["runs"])


def finished(told: Told) -> Told:
    return {name: each for name, each in told.items() if each.get("runs")}


def table(title: str, told: Told, rounds: int, floor: float) -> list[str]:
    """Tell one case as Markdown, the fastest first."""
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


# A case, the peers of which the slower one counts, their name in the table, and the most that weightcache may take.
BESIDE = (
    ("shaped-tls", ("aria2",), "aria2c", 0.75),
    ("disk", ("requests", "write"), "`requests.get` or of the plain write, the longer", 1.05),
    ("both-disk", ("requests", "write"), "`requests.get` or of the plain write, the longer", 1.05),
)


def targets(cases: Told) -> list[Told]:
    """Compare weightcache with what was wanted of it, where that was measured."""
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
    for case, others, what, wanted in BESIDE:
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


def about() -> Told:
    """Tell what a reader needs to know of this machine and of the contestants."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = model[0].partition(":")[2].strip() if model else "unknown"
    needed = dict.fromkeys(each.needs for each in CONTESTANTS.values())
    return {**machine(), "cpu": cpu, "kernel": os.uname().release, "versions": {n: version_of(n) for n in needed}}


MACHINE = """
Machine: {cpus} cores ({cpu}), Linux {kernel}, Python {python}, {date:.10}; load average before: {load};
the disk: {disk}. {peers}.

Times are the least of all rounds, but for the medians. In process: from the call to the verified file, without the
start of the interpreter and imports; for a program, the whole process. Above 1 in "÷ weightcache" the peer is slower.
CPU is the least, peak memory the largest. weightcache, aria2c and the plain write fsync the file, the others do not.
"""

LINE = """
The shaped line alone: 24 connections bring {rate:.0f} MB/s of {wanted} to readers that drop everything, for {cpu:.2f} s
of the shaper's CPU a GB; without limits it brings {free:.0f} MB/s. Over a round trip of {trip} ms an empty answer takes
{new:.0f} ms on a new connection (wanted: two round trips) and {kept:.0f} ms on a kept one (wanted: one).
"""


def introduction(result: Told, disk: str) -> list[str]:
    """Tell what the tables rest on."""
    told = result["machine"]
    load = " ".join(f"{each:.1f}" for each in told["loadavg"])
    peers = ", ".join(f"{name} {each}" for name, each in told["versions"].items() if each)
    text = MACHINE.format(**told, load=load, disk=disk, peers=peers)
    if result["line alone"]:
        text += LINE.format(**result["line alone"])
    return "\n\n".join(textwrap.fill(part, 120) for part in text.strip().split("\n\n")).splitlines()


def report(result: Told, disk: str) -> str:
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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Download and verify, weightcache beside its peers.")
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="processes of each contestant (default: %(default)s)")
    add("--case", default=",".join(CASES), metavar="NAME,…", help="(default: %(default)s)")
    add("--only", default=",".join(CONTESTANTS), metavar="NAME,…", help="(default: %(default)s)")
    add("--quick", action="store_true", help="one round of `one` and `shaped`, there without single streams")
    add("--disk", default=tempfile.gettempdir(), help="where the case `disk` writes (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write every run there")
    add("--serve", action="store_true", help="only start the servers and tell their URLs, until Ctrl-C")
    options = parser.parse_args()
    options.case, options.only = options.case.split(","), options.only.split(",")
    if unknown := set(options.case) - set(CASES) | set(options.only) - set(CONTESTANTS):
        parser.error(f"unknown: {', '.join(unknown)}")
    if options.rounds < 1:
        parser.error("--rounds: want 1 or more")
    if options.quick:
        options.rounds, options.case = 1, [name for name in ("one", "shaped") if name in options.case]
    return options


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the servers' ends
    missing = {
        name: CONTESTANTS[name].needs
        for name in options.only
        if not find_spec(CONTESTANTS[name].needs) and not shutil.which(CONTESTANTS[name].needs)
    }
    result: Told = {"benchmark": "download", "machine": about(), "rounds": options.rounds, "missing": missing}
    result |= {"line alone": None, "cases": {}}
    kind = subprocess.run(["stat", "-f", "-c", "%T", options.disk], capture_output=True, text=True, check=True).stdout
    if shutil.disk_usage(MEMORY).free < 6.5e9:
        sys.exit(f"6.5 GB are not free in {MEMORY}")
    with (
        tempfile.TemporaryDirectory(prefix="weightcache-bench-", dir=MEMORY) as temporary,
        tempfile.TemporaryDirectory(prefix="weightcache-bench-", dir=options.disk) as disk,
        serving(Path(temporary)) as (urls, shapers),
    ):
        files = lay_out(Path(temporary))
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
                result["line alone"] = line_alone(urls, shapers, "/" + files[ONE[0]]["name"])
            turns = {each: options.rounds if CONTESTANTS[each].many else single for each in options.only}
            turns = {name: 0 if CONTESTANTS[name].disk and not case.disk else count for name, count in turns.items()}
            turns = {each: count for each, count in turns.items() if count and each not in missing}
            if case.alone:
                turns = {each: count for each, count in turns.items() if each == "weightcache"}
            field = Field(Path(temporary), Path(disk if case.disk else temporary, "into"), case.link, urls[case.link])
            result["cases"][name] = measure(field, case, turns, files)
    result["targets"] = targets(result["cases"])
    print(report(result, kind.strip()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
