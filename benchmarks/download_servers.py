"""The servers of download.py: nginx with stand-in files, plain and over TLS, and the shapers in front of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from download_cases import BOTH, RATE, ROUND_TRIP, THROTTLED

if TYPE_CHECKING:
    from collections.abc import Iterator

    Job = dict[str, Any]
    Result = dict[str, Any]


HERE = Path(__file__).parent


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


def write_stand_in(path: Path, size: int) -> str:
    """Write ``size`` random bytes without repeated blocks, and return their sha256."""
    block, digest = bytearray(os.urandom(1 << 20)), hashlib.sha256()
    with open(path, "wb") as stream:
        for at in range(0, size, len(block)):
            block[:8] = at.to_bytes(8, "big")
            with memoryview(block)[: size - at] as piece:
                digest.update(piece)
                stream.write(piece)
    return digest.hexdigest()


def write_files(folder: Path) -> dict[str, Job]:
    """Write the files to serve: the two checkpoints, and a small file for the warm-up."""
    from weightcache import Manifest

    # On a virtual machine the first use of memory can be ten times slower than later ones.
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
    """Start nginx and the shapers, one without limits; yield base URLs, and process ids of two shapers."""
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


def measure_shaper(urls: dict[str, str], shapers: dict[str, int], path: str) -> Result:
    """Measure the rate of the shapers with 24 readers that discard the bytes: it must not limit a contestant."""
    told = {}
    for name, pid in shapers.items():
        before = cpu_seconds(pid)
        command = [sys.executable, "-c", READERS, urls[name].rpartition(":")[2], path, "24"]
        told[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        told[name]["cpu"] = (cpu_seconds(pid) - before) / told[name].pop("GB")
    return {**told["shaped"], "free": told["free"]["rate"], "wanted": 24 * RATE, "trip": ROUND_TRIP}
