"""The main job on real input: both full-size checkpoints and the BERT directory from nginx, plain and TLS.

The bytes are stand-ins of the true lengths (facts of the public files: examples/fashion_crop/weights.toml).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from support import lacking
from weightcache import Manifest, ensure, verify

pytestmark = [pytest.mark.fullsize, pytest.mark.timeout(600)]

REAL = Manifest.load(Path(__file__).parents[2] / "examples/fashion_crop/weights.toml")

CONFIG = """
daemon off; worker_processes 1; {user} pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log {folder}/access.log; sendfile on; default_type application/octet-stream; root {folder}/files;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{plain}; }}
  server {{ listen 127.0.0.1:{tls} ssl; ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem; }}
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_stand_in(path: Path, size: int) -> str:
    """Write ``size`` bytes that no two blocks share, and return their sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    block, digest = os.urandom(1 << 20), hashlib.sha256()
    with open(path, "wb") as stream:
        for number in range(0, size, len(block)):
            piece = (number.to_bytes(8, "big") + block[8:])[: size - number]
            digest.update(piece)
            stream.write(piece)
    return digest.hexdigest()


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if not program:
        lacking("nginx is not installed")
    folder = tmp_path_factory.mktemp("nginx")
    if shutil.disk_usage(folder).free < 6e9:
        lacking("6 GB of disk are not free")
    tables: dict[str, Any] = {}
    for checkpoint in REAL.select(["groundingdino", "sam2-large", "bert-base-uncased"]):  # what the example loads
        pins = {}
        for file in checkpoint.files:
            digest = write_stand_in(folder / "files" / checkpoint.name / file.path, file.size or 0)
            pins[file.path] = {"sha256": digest, "size": file.size}
        name = next(iter(pins))
        tables[checkpoint.name] = {"files": pins} if checkpoint.is_directory else {"file": name, **pins[name]}
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    plain, tls = free_port(), free_port()
    user = "user root;" if os.geteuid() == 0 else ""  # else its workers run as "nobody", which may not read our folders
    (folder / "nginx.conf").write_text(CONFIG.format(user=user, folder=folder, plain=plain, tls=tls))
    server = subprocess.Popen([program, "-c", folder / "nginx.conf", "-e", folder / "error.log"])
    while True:  # until it listens; it ends if it cannot
        assert server.poll() is None, (folder / "error.log").read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", tls)) == 0:
                break
    yield {"folder": folder, "plain": f"http://127.0.0.1:{plain}", "tls": f"https://127.0.0.1:{tls}", "tables": tables}
    server.terminate()
    server.wait()
    shutil.rmtree(folder)


@pytest.mark.parametrize("scheme", ["plain", "tls"])
def test_both_checkpoints_and_the_directory_in_one_ensure(
    scheme: str, nginx: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(nginx["folder"] / "ca.pem"))
    checkpoints = {}
    for name, table in nginx["tables"].items():
        base = f"{nginx[scheme]}/{name}"
        checkpoints[name] = {**table, "urls": [base if "files" in table else f"{base}/{table['file']}"]}
    manifest = Manifest.load({"version": 1, "checkpoints": checkpoints})
    began = time.monotonic()
    weights = ensure(manifest, root=root)
    seconds = time.monotonic() - began
    assert [report.outcome for report in weights.report.values()] == ["downloaded"] * 3
    assert weights.report.bytes_fetched == 693_997_677 + 897_952_466 + 698_188
    assert weights["sam2-large"].stat().st_size == 897_952_466
    assert [seen.state for seen in verify(manifest, root=root)] == ["ready"] * 3
    again = ensure(manifest, root=root)
    assert {report.outcome for report in again.report.values()} == {"hit"}
    print(f"{scheme}: {weights.report.bytes_fetched / 1e6:.0f} MB in {seconds:.2f} s")
    shutil.rmtree(root)
