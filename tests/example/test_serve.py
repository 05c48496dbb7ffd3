"""`make fashion`, as processes: how it starts, on what root, and how it ends."""

from __future__ import annotations

import re
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from fashion_crop.web import serve
from fashion_crop.web.backend import Backend
from origin import Origin
from serving import Process, photo, process
from support import until
from weightcache import Manifest

if TYPE_CHECKING:
    from conftest import StandIns

MAIN = "import sys; from fashion_crop.web.serve import main; sys.exit(main(sys.argv[1:]))"


@contextmanager
def served(*argv: str, code: str = MAIN) -> Iterator[tuple[Process, httpx.Client]]:
    """Start a server; it listens when it has said where, and loads meanwhile."""
    with process(code, *argv) as child:
        url = re.search(r"http://127\.0\.0\.1:\d+", child.line())
        assert url is not None
        with httpx.Client(base_url=url[0], timeout=60) as client:
            yield child, client


def ended(child: Process, how: signal.Signals = signal.SIGTERM) -> int:
    child.send_signal(how)
    return child.wait(60)


def phases(cache: Path) -> dict[str, float]:
    """Start a server with stand-ins until it is ready, let it crop a photo, and return the phases of its start."""
    with served("--port", "0", "--cache", str(cache)) as (child, client):
        assert re.fullmatch(rf"ready after \d+\.\d s: {client.base_url}, with stand-in weights: .*", child.line())
        answer = client.post("/v1/crops", files={"image": photo(300, 400)}, data={"box_threshold": "0.2"})
        assert answer.status_code == 200
        info = client.get("/v1/info").json()
        assert info["stand_ins"] is True
        assert answer.json()["model"]["weights"] == info["weights"]
        assert ended(child) == -signal.SIGTERM
    return info["phases"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache whose stand-ins are made, and whose root is filled."""
    folder = tmp_path_factory.mktemp("serve") / "cache"
    assert phases(folder)["download"] > 0
    return folder


def copied(cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cache, tmp_path / "cache"))


# The root.


def test_a_filled_root_is_looked_at_and_read_beside_the_imports(cache: Path) -> None:
    taken = phases(cache)
    assert "download" not in taken
    assert 0 < taken["inspect"] < taken["ready"]
    assert taken["prefetch"] > 0


def test_a_half_filled_root_is_completed(cache: Path, tmp_path: Path) -> None:
    cache = copied(cache, tmp_path)
    root = cache / "stand-in-root"
    (segmenter,) = root.glob("sam2-large/*/*.pt")
    segmenter.unlink()
    (detector,) = root.glob("groundingdino/*/*.pth")
    detector.write_bytes(detector.read_bytes()[:1000])  # as a copy that broke off
    assert phases(cache)["download"] > 0
    assert segmenter.is_file()
    assert detector.stat().st_size > 1_000_000
    assert "download" not in phases(cache)


START = """
import sys
from dataclasses import replace
from fashion_crop.web.backend import start
from weightcache._runtime import tuning_constants as settings
settings.DEFAULT = replace(settings.DEFAULT, slow_after=60.0)  # even if this machine is busy, each byte comes once
print("ready", flush=True)
sys.stdin.readline()
backend = start(sys.argv[1], root=sys.argv[2], stand_ins=True)
print(sorted(backend.weights), flush=True)
sys.stdin.readline()
"""


def test_two_starts_at_once_download_once(stand_ins: StandIns, tmp_path: Path) -> None:
    with Origin() as origin, ExitStack() as stack:
        manifest = serve._served(stand_ins.manifest.parent, origin, tmp_path)
        arguments = str(manifest), str(tmp_path / "root")
        children = [stack.enter_context(process(START, *arguments)) for _ in range(2)]
        assert [child.line() for child in children] == ["ready", "ready"]
        for child in children:
            child.say("go")
        assert [child.line() for child in children] == ["['bert-base-uncased', 'groundingdino', 'sam2-large']"] * 2
        sizes = sum(file.size or 0 for checkpoint in Manifest.load(manifest) for file in checkpoint.files)
        assert origin.sent() == sizes


def test_two_servers_at_once_make_and_share_one_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with ExitStack() as stack:
        first, other = (stack.enter_context(served("--port", "0", "--cache", str(cache))) for _ in range(2))
        for child, _ in (first, other):
            assert child.line().startswith("ready after")
        assert "".join(child.told() for child, _ in (first, other)).count("MB of 6 file(s)") == 1
    assert sorted(path.name.partition("-")[0] for path in cache.iterdir()) == ["stand", "stand"]


# While it loads, and when it cannot.

FAKE = """
import sys, threading
from fakes import FakeDetector, Gate, fake_backend
from fashion_crop.web import serve

gate, loaded = Gate(), threading.Event()

def load(cache):
    assert loaded.wait(60)
    if "broken" in sys.argv:
        raise ImportError("torch is not here: install it")
    return fake_backend(FakeDetector(gate=gate))

def listen():
    for line in sys.stdin:
        {"load": loaded, "open": gate.opened}[line.strip()].set()

threading.Thread(target=listen, daemon=True).start()
serve.load_stand_ins = load
sys.exit(serve.main(["--port", "0"]))
"""


def test_the_page_is_there_before_the_models_are() -> None:
    with served(code=FAKE) as (child, client):
        response = client.get("/readyz")
        assert (response.status_code, int(response.headers["retry-after"]) > 0) == (503, True)
        assert client.get("/").status_code == 200
        child.say("load")
        assert child.line().startswith("ready after")
        assert client.get("/readyz").status_code == 200


def test_a_server_that_loads_ends_when_it_is_told_to() -> None:
    with served(code=FAKE) as (child, client):
        assert client.get("/readyz").status_code == 503
        assert ended(child) == -signal.SIGTERM


def test_a_server_that_cannot_load_says_why_and_ends() -> None:
    with served("broken", code=FAKE) as (child, client):
        assert client.get("/healthz").status_code == 200
        child.say("load")
        assert child.wait(60) == 1
        assert "the models cannot be loaded: torch is not here: install it" in child.told()
        assert "Traceback" not in child.told()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_request_at_work_is_finished_before_the_server_ends(how: signal.Signals) -> None:
    with served(code=FAKE) as (child, client), ExitStack() as stack:
        child.say("load")
        assert child.line().startswith("ready after")
        connection = stack.enter_context(socket.create_connection((client.base_url.host, client.base_url.port)))
        request = client.build_request("POST", "/v1/crops", files={"image": photo()})
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        connection.sendall(f"POST /v1/crops HTTP/1.1\r\n{head}Expect: 100-continue\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")  # it has begun
        connection.sendall(request.read())
        child.send_signal(how)
        until(lambda: refused(client))
        assert child.poll() is None
        child.say("open")
        answer = b""
        while received := connection.recv(65536):
            answer += received
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"]}")
        assert child.wait(60) in (-how, 0)
        assert "Traceback" not in child.told()


def refused(client: httpx.Client) -> bool:
    try:
        client.get("/healthz", headers={"Connection": "close"})
    except httpx.TransportError:
        return True
    return False


def test_a_port_in_use_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve.main(["--port", str(port)]) == 1
    assert f"port {port} cannot be had" in capsys.readouterr().err
    assert serve.main(["--port", "70000"]) == 1
    assert "port 70000 cannot be had" in capsys.readouterr().err


def test_real_weights_are_those_of_the_manifest_that_is_deployed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[tuple[Any, dict[str, Any]]] = []

    def start(manifest: Any, **options: Any) -> Backend:
        started.append((Manifest.load(manifest), options))
        return Backend(pipeline=None, phases={"ready": 0.0})  # type: ignore[arg-type]

    monkeypatch.setattr(serve, "start", start)
    monkeypatch.setattr(serve, "_serve", lambda load, *_: load() and 0)
    assert serve.main(["--weights", "real", "--port", "0", "--cache", str(tmp_path)]) == 0
    ((manifest, options),) = started
    assert [checkpoint.name for checkpoint in manifest] == ["groundingdino", "sam2-large", "bert-base-uncased"]
    assert options == {"root": tmp_path / "real-root"}
