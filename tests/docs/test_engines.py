"""The page about vLLM, SGLang and ComfyUI: each app, by the real client and container, with an engine that maps."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from control_plane import ControlPlane
from origin import Origin
from support import blob, directory, one, sha256, toml_of, until

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/vllm-sglang-comfyui.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
SHARDS = {f"model-{number}-of-3.safetensors": blob(300_000 + number, seed=number) for number in (1, 2, 3)}
INDEX = {"model.safetensors.index.json": b'{"weight_map": {}}'}
CHECKPOINT = blob(200_000, seed=9)

# Stands for vllm, sglang and comfy: it maps every file of weights before it listens, and answers with their digests.
# It listens on every address, because Modal's client looks for the port of a `web_server` at that of eth0.
ENGINE = """#!{python}
import hashlib, http.server, json, mmap, pathlib, sys
sys.stdin.close()
words = sys.argv
places = [pathlib.Path(word) for word in words if word.startswith("/weights")] or [pathlib.Path("{models}")]
files = sorted(path for place in places for path in place.rglob("*.safetensors"))
seen = {{}}
for path in files:
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as shard:
        seen[path.name] = hashlib.sha256(shard).hexdigest()

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({{"program": pathlib.Path(words[0]).name, "words": words[1:], "seen": seen}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.HTTPServer(("0.0.0.0", int(words[words.index("--port") + 1])), Answer).serve_forever()
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number


def deploy(plane: ControlPlane, code: str, port: int, folder: Path, origin: Origin, monkeypatch: Any) -> str:
    """Deploy one block of the page, with an engine on the PATH of its containers; return the id of its function."""
    models = folder / "models"  # of ComfyUI, which is in the image
    (folder / "bin").mkdir(parents=True)
    for name in ("vllm", "python", "comfy"):
        (folder / "bin" / name).write_text(ENGINE.format(python=sys.executable, models=models))
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    for path, data in (SHARDS | INDEX).items():
        origin.put(f"/llm/{path}", data)
    origin.put("/sdxl.safetensors", CHECKPOINT)
    manifest = directory(SHARDS | INDEX, origin.url("/llm"), name="llm")
    if "sdxl" in code:
        manifest = one(CHECKPOINT, origin.url("/sdxl.safetensors"), name="sdxl")
    toml_of(manifest, folder / "weights.toml")
    code = code.replace("8000", str(port)).replace("/root/comfy/ComfyUI/models", str(models))
    code = code.replace("reading.wait()", "print('read all:', reading.wait(), reading.stats.skipped, flush=True)")
    code = code.replace("process.terminate()", "process.terminate(); print('ended:', self.process.wait(), flush=True)")
    (folder / "app.py").write_text(code)
    done = plane.client("-m", "modal", "deploy", "app.py", directory=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    [function] = plane.requests("AppPublish")[-1].function_ids.values()
    return str(function)


def ask(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=100) as answer:
        told: dict[str, Any] = json.load(answer)
        return told


def test_the_page_has_an_app_for_each_and_none_starts_in_the_default_time() -> None:
    assert len(BLOCKS) == 3
    for block in BLOCKS:
        assert block.count("startup_timeout=") == (1 if "app.server" in block else 2)
        assert block.index("cache.ensure()") < block.index("cache.prefetch(") < block.index("subprocess.Popen(")


@pytest.mark.usefixtures("namespaces")
def test_app_server(
    plane: ControlPlane, port: int, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = deploy(plane, BLOCKS[0], port, tmp_path / "app", origin, monkeypatch)
    assert plane.requests("FunctionCreate")[-1].function.startup_timeout_secs == 3600
    app = next(app for app, names in plane._app_functions.items() if function in names.values())
    container = plane.start_container(function, app, [], is_serving=True)
    assert container.process is not None
    process = container.process
    until(lambda: "ContainerServerLifecycleReady" in container.calls or process.poll() is not None)
    assert "ContainerServerLifecycleReady" in container.calls, container.log

    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    until(listens)
    told = ask(f"http://127.0.0.1:{port}/v1/models")
    assert told["seen"] == {name: sha256(data) for name, data in SHARDS.items()}
    assert told["words"][:2] == ["serve", told["words"][1]]
    assert told["words"][1].startswith("/weights/llm/")
    assert "read all: True ()" in container.log
    assert "ended:" not in container.log
    process.send_signal(signal.SIGTERM)  # what a container of `app.server` waits for (modal/_container_entrypoint.py)
    assert plane.finish(container) == 0
    assert f"ended: {-signal.SIGTERM}" in container.log  # by `@modal.exit`, before the container's end kills all of it


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize(("number", "program", "timeout"), [(1, "python", 3600), (2, "comfy", 1800)])
def test_web_server(
    number: int,
    program: str,
    timeout: int,
    plane: ControlPlane,
    port: int,
    origin: Origin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    function = deploy(plane, BLOCKS[number], port, tmp_path / "app", origin, monkeypatch)
    assert plane.requests("FunctionCreate")[-1].function.startup_timeout_secs == timeout
    told = ask(f"{plane.web_url(function)}/v1/models")
    shards = {"sd_xl_base_1.0.safetensors": CHECKPOINT} if program == "comfy" else SHARDS
    assert told["program"] == program
    assert told["seen"] == {name: sha256(data) for name, data in shards.items()}
    [container] = plane.containers
    assert "read all: True ()" in container.log
    requests = len(origin.requests)
    plane.kill(container)
    again = plane.start_container(function, container.app, [], is_serving=True)  # another container: nothing is fetched
    until(lambda: "read all: True ()" in again.log)
    assert len(origin.requests) == requests
