"""The contestants of download.py: weightcache and its peers, each a command line that downloads the files of a job."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Job = dict[str, Any]
    Result = dict[str, Any]


# Every contestant in Python is CHILD and its own lines, and prints its seconds last. Imports come before the clock.
CHILD = """\
import hashlib, json, os, sys, time
job = json.load(open(sys.argv[1]))
def check(path, sha256):
    with open(path, "rb") as stream:
        assert hashlib.file_digest(stream, "sha256").hexdigest() == sha256, "wrong bytes"
"""


WEIGHTCACHE = """\
import filelock, requests, weightcache, weightcache._transfer.download, weightcache._engine.run_miss
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
    verified: str = "by itself"  # who verifies; "by us": this benchmark, within the measured time
    disk: bool = False  # only in cases that write to a disk
    many: bool = False  # uses many connections; the others take a constant 18 s on the shaped link and run there once


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
