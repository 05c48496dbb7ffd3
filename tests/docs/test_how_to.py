"""The how-to pages about getting weights in: every command and snippet of them runs, against loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from control_plane import ControlPlane
from hub import File, Hub, isolated_client
from origin import Origin
from shell import commands
from shell import shell as in_shell
from support import blob, child, finish, one, sha256, toml_of
from weightcache import DownloadError, Manifest, ensure

HERE = Path(__file__).resolve().parents[2]
DATA = blob(200_000)
TOKEN = "hf_SeCrEtSeCrEtSeCrEt"
TOKENIZER: dict[str, Any] = {"config.json": b"{}", "vocab.txt": b"[PAD]\n", "tf_model.h5": File(b"h5", lfs=True)}

Run = Callable[..., str]


def blocks(page: str, language: str) -> list[str]:
    text = (HERE / "docs" / "how-to" / f"{page}.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def function_of(code: str) -> tuple[Callable[[], object], dict[str, Any]]:
    """Run code with one Modal function in it, ``fill``; return that, not called yet, and its options on Modal.

    `ensure` gets no Volume: what there is of one here is a name.
    """
    import modal

    app, told = modal.App("how-to"), {}

    def function(**options: Any) -> Callable[[Any], Any]:
        told.update(options)
        app.function(**options, serialized=True)(lambda: None)  # the real client takes the settings
        return lambda fill: fill

    names: dict[str, Any] = {"modal": modal, "app": SimpleNamespace(function=function), "ensure": ensure}
    names |= {"image": modal.Image.debian_slim(), "volume": modal.Volume.from_name("v")}
    exec(compile(code.replace(", volume=volume)", ")"), "the code of a how-to", "exec"), names)
    return names["fill"], told


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        server.push("google-bert/bert-base-uncased", "main", {**TOKENIZER, "model.safetensors": File(DATA, lfs=True)})
        yield server


@pytest.fixture
def shell(hub: Hub, origin: Origin, tmp_path: Path) -> Run:
    """Run a block as it stands, but for hosts (which are on loopback here), ``pip install``, and what is elided."""
    folder = tmp_path / "project"
    folder.mkdir()
    tools = commands(tmp_path / "bin", "weightcache")
    (tools / "aws").write_text(f'#!/bin/sh\necho "{origin.url("/sam2.pt")}?X-Amz-Signature=hush&X-Amz-Expires=3600"\n')
    (tools / "aws").chmod(0o755)
    environment = {**os.environ, **hub.environment(tmp_path / "hf"), "PATH": f"{tools}:{os.environ['PATH']}"}
    host = re.compile(r"https://[a-z0-9.-]+\.(?:com|org|example)/[^ '\"?]*?([^ '\"?/]+)(?=[ '\"?\n])")

    def run(text: str, *, code: int = 0, **more: str) -> str:
        text = re.sub(r"^pip install .*$", "", text, flags=re.MULTILINE).replace("hf_…", TOKEN).replace("=…", "=secret")
        text = host.sub(lambda match: origin.url(f"/{match[1]}"), text)
        done = in_shell(text, folder, {**environment, **more})
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tmp_path / "project" / "weights.toml"


def test_add_a_checkpoint(shell: Run, origin: Origin, manifest: Path) -> None:
    for name in ("sam2_hiera_large.pt", "138296", "detector.pth", "sam2_hiera_tiny.pt"):
        origin.put(f"/{name}", DATA)
    old = manifest.parent / "old-weights"
    old.mkdir()
    (old / "lama.pt").write_bytes(DATA[:1000])
    first, named, second, directory, by_hand = blocks("add-a-checkpoint", "sh")
    assert "computed here from" in shell(first)
    assert origin.sent() == len(DATA)
    assert "BodHor V1.safetensors" in shell(named, CIVITAI_TOKEN="hush")
    origin.put("/mirror/detector.pth", DATA)
    shell(second.replace("https://mirror.example.org/", origin.url("/mirror/")))
    shell(directory)
    assert "tiny: pinned in weights.toml" in shell(by_hand)
    assert [each.name for each in Manifest.load(manifest)] == ["sam2", "bodhor", "detector", "lama", "tiny"]
    assert "# The segmenter of the demo." in manifest.read_text()
    found = ensure(manifest, root=manifest.parent / "weights", only=["sam2", "lama"], offline=True)
    assert {each.outcome for each in found.report.values()} == {"hit"}


def test_a_hugging_face_snapshot(shell: Run, hub: Hub, manifest: Path) -> None:
    pin, rest = blocks("a-hugging-face-snapshot", "sh")
    assert "published by the Hub (google-bert/bert-base-uncased)" in shell(pin)
    assert [file.path for file in Manifest.load(manifest)["bert"].files] == ["config.json", "model.safetensors"]
    said = shell(rest)
    assert "vocabulary  downloaded" in said
    code = (
        "import sys, weightcache; w = weightcache.ensure(sys.argv[1], root=sys.argv[2], progress=False); "
        "print(sorted(m for m in sys.modules if 'huggingface' in m or m.startswith('httpx')), w['bert'].is_dir())"
    )
    for root in ("weights", "another"):  # a hit, and a download
        command = [sys.executable, "-c", code, str(manifest), str(manifest.parent / root)]
        environment = {**os.environ, **hub.environment(manifest.parent)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == "[] True\n"  # the Hub's own client is for pinning only


def test_weights_that_a_request_names(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    files = {"adapter_config.json": b"{}", "adapter.safetensors": File(DATA, lfs=True), "train.py": b"x = 1\n"}
    hub.push("acme/lora", "main", files)
    hub.push("acme/many", "main", {f"{number}.safetensors": b"x" for number in range(21)})
    [code] = blocks("weights-that-a-request-names", "python")
    code = code.replace('"/root/data/adapters"', repr(str(tmp_path / "adapters"))).replace(", volume=volume", "")
    names: dict[str, Any] = {}
    exec(compile(code, "the code of a how-to", "exec"), names)
    path = Path(names["handle"]({"adapter": "acme/lora"})["path"])
    assert sorted(each.name for each in path.iterdir()) == ["adapter.safetensors", "adapter_config.json"]
    before = len(hub.seen)
    assert names["handle"]({"adapter": "acme/lora"}) == {"path": str(path)}
    assert names["handle"]({"adapter": "../../api"})["status"] == 400
    assert len(hub.seen) == before
    assert "max_files is 20" in names["handle"]({"adapter": "acme/many"})["error"]
    assert caplog.messages == []


def test_private_and_gated_weights(
    shell: Run, hub: Hub, origin: Origin, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create("meta-llama/Llama-3.2-1B", gated=True)
    hub.push("meta-llama/Llama-3.2-1B", "main", {**TOKENIZER, "model.safetensors": File(DATA, lfs=True)})
    origin.put("/detector.pt", DATA)
    gated, elsewhere = blocks("private-and-gated-weights", "sh")
    hub.grant(TOKEN)
    said = shell(gated, code=3)
    assert "the token from HF_TOKEN was sent" in said
    assert f"accept its licence at {hub.url}/meta-llama/Llama-3.2-1B" in said
    hub.grant(TOKEN, "meta-llama/Llama-3.2-1B")
    shell(gated)
    shell(elsewhere)
    assert Manifest.load(manifest)["detector"].auth == "ACME_TOKEN"
    assert {each.headers.get("Authorization") for each in origin.requests} == {"Bearer secret"}
    assert TOKEN not in manifest.read_text() + said

    [on_modal] = blocks("private-and-gated-weights", "python")
    on_modal = on_modal.replace('"/root/weights.toml"', repr(str(manifest)))
    root = tmp_path / "volume"
    fill, told = function_of(on_modal.replace('root="/vol/weights"', f'root="{root}"'))
    assert (list(told["volumes"]), len(told["secrets"])) == (["/vol/weights"], 1)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    with pytest.raises(DownloadError, match="no token was sent"):
        fill()
    with monkeypatch.context() as secret:
        secret.setenv("HF_TOKEN", TOKEN)
        secret.setenv("ACME_TOKEN", "secret")
        fill()
    assert next(root.rglob("model.safetensors")).read_bytes() == DATA
    requests = len(hub.seen), len(origin.requests)
    fill()  # a hit reads no token
    assert (len(hub.seen), len(origin.requests)) == requests


def test_check_pins_in_ci(shell: Run, hub: Hub, manifest: Path) -> None:
    [workflow] = blocks("check-pins-in-ci", "yaml")
    check, upstream = re.findall(r"run: (weightcache .*)", workflow)
    shell("weightcache add bert hf://google-bert/bert-base-uncased --include '*.json'")
    assert "everything is pinned" in shell(check)
    assert "nothing moved" in shell(upstream)
    hub.push("google-bert/bert-base-uncased", "main", {"config.json": b"[]"})
    assert "has other bytes of config.json at main" in shell(upstream, code=1)
    with manifest.open("a") as stream:
        stream.write('[checkpoints.x]\nurls = ["https://h/x.pt"]\n')
    assert "WARN  x  the sha256 of x.pt" in shell(check, code=1)


def test_take_over_a_hub_cache(shell: Run, hub: Hub, manifest: Path, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    local, on_modal = blocks("take-over-a-hub-cache", "sh")
    cache = tmp_path / ".cache" / "huggingface" / "hub"
    with isolated_client(tmp_path / "hf"):
        snapshot_download("google-bert/bert-base-uncased", cache_dir=cache, endpoint=hub.url)
    assert "google-bert--bert-base-uncased  hit" in shell(local, HOME=str(tmp_path))
    [bert] = Manifest.load(manifest)
    [url] = bert.urls
    assert url.startswith("hf://google-bert/bert-base-uncased@")
    with ControlPlane(tmp_path / "plane") as plane:
        volume = plane.volumes[plane.volume("models", 2)]
        for path in cache.rglob("*"):
            inner = f"huggingface/hub/{path.relative_to(cache)}"
            if path.is_symlink():
                volume.files[inner] = os.readlink(path)
            elif path.is_file():
                volume.put(inner, path)
        assert "google-bert--bert-base-uncased  ready" in shell(on_modal, **plane.env())
    assert Manifest.load(manifest)[bert.name] == bert


def test_update_pins(shell: Run, hub: Hub, manifest: Path, tmp_path: Path) -> None:
    [commands] = blocks("update-pins", "sh")
    check, upgrade, _ = commands.splitlines()
    [workflow] = blocks("update-pins", "yaml")
    [scheduled] = re.findall(r"run: (weightcache .*)", workflow)
    shell("weightcache add bert hf://google-bert/bert-base-uncased --include '*.json'")
    pinned = manifest.read_text()
    assert "bert: nothing changed" in shell(check)
    commit = hub.push("google-bert/bert-base-uncased", "main", {"config.json": b"[]"})
    assert "bert: would change" in shell(check, code=1)
    assert manifest.read_text() == pinned
    assert f"(2 bytes) → {sha256(b'[]')} (2 bytes)" in shell(upgrade)
    assert f"@{commit}" in manifest.read_text()
    commit = hub.push("google-bert/bert-base-uncased", "main", {"config.json": b"[1]"})
    shell(scheduled, RUNNER_TEMP=str(tmp_path))
    assert (tmp_path / "changes.txt").read_text().startswith("bert: changed\n")
    assert f"@{commit}" in manifest.read_text()


def test_weights_in_a_bucket(shell: Run, origin: Origin, manifest: Path, tmp_path: Path) -> None:
    origin.put("/sam2.pt", DATA)
    [presigned] = blocks("weights-in-a-bucket", "sh")
    shell(presigned)
    assert {each.path for each in origin.requests} == {"/sam2.pt?X-Amz-Signature=hush&X-Amz-Expires=3600"}
    assert "hush" not in manifest.read_text()
    assert "${SAM2_SIGNATURE}" in manifest.read_text()

    [mounted] = blocks("weights-in-a-bucket", "python")
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "sam2.pt").write_bytes(DATA)
    root = tmp_path / "volume"
    mounted = re.sub(r'"sha256": "[0-9a-f]{64}"', f'"sha256": "{sha256(DATA)}"', mounted)
    mounted = mounted.replace("file:///bucket", f"file://{tmp_path}/bucket").replace(
        'root="/vol/weights"', f'root="{root}"'
    )
    fill, told = function_of(mounted)
    fill()
    assert next(root.rglob("sam2.pt")).read_bytes() == DATA
    assert list(told["volumes"]) == ["/vol/weights", "/bucket"]


def test_many_containers_at_once(origin: Origin, tmp_path: Path) -> None:
    """As processes of one machine: there the lock says what between containers the lease says."""
    origin.put("/sam2.pt", DATA)
    reached, go_on = threading.Event(), threading.Event()
    origin.on_request = lambda _: (reached.set(), go_on.wait())
    manifest = tmp_path / "weights.toml"
    toml_of(one(DATA, origin.url("/sam2.pt")), manifest)
    starts, tells = blocks("many-containers-at-once", "python")
    starts = starts.replace('"/root/weights.toml"', repr(str(manifest)))
    starts = starts.replace('"/root/data/weights"', repr(str(tmp_path / "weights")))
    # A held request is not called slow.
    patient = "settings.DEFAULT = replace(settings.DEFAULT, slow_after=60.0)\n"
    code = f"{patient}class volume:\n    commit = reload = staticmethod(lambda: None)\n{starts}{tells}"
    first = child(code)
    assert reached.wait(60)
    second = child(code)
    assert second.stderr is not None
    assert "waiting for process" in second.stderr.readline()
    go_on.set()
    assert finish(first) == "downloaded\n0 s for \n"
    assert re.fullmatch(r"waited\n\d+ s for process \d+ \(.*\)\n", finish(second))
    assert origin.sent() == len(DATA)


def test_signed_weights(shell: Run, hub: Hub, manifest: Path) -> None:
    """The publisher's command is a stand-in here; tests/data/model_signing has what the real one writes."""
    add, upgrade, verify, sign = blocks("signed-weights", "sh")
    folder = manifest.parent
    stand_in = folder.parent / "bin" / "model_signing"
    stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE}/tests/shared/signing.py" "$@"\n')
    stand_in.chmod(0o755)
    (folder / "bert").mkdir()

    def publish(config: bytes, commands: str) -> str:
        (folder / "bert" / "config.json").write_bytes(config)
        (folder / "bert" / "model.safetensors").write_bytes(DATA)
        shell(commands)
        made = {path.name: path.read_bytes() for path in folder.glob("bert/*")}
        lfs = {"model.safetensors": File(DATA, lfs=True)}
        return hub.push("acme/bert", "main", {**made, **lfs, "README.md": b"#\n"})

    commit = publish(b"{}", sign)
    assert "not signed are left out: README.md" in shell(add)
    [bert] = Manifest.load(manifest)
    assert bert.urls == (f"hf://acme/bert@{commit}",)
    assert bert.signed_by == f"sha256:{sha256((folder / 'acme.pem').read_bytes())}"
    assert f"signed by {bert.signed_by}" in shell(verify)
    commit = publish(b"[]", sign[sign.index("model_signing ") :])
    assert "bert: changed" in shell(upgrade)
    assert Manifest.load(manifest)["bert"].urls == (f"hf://acme/bert@{commit}",)


def test_a_page_is_one_wish_and_not_much_more_than_a_screen() -> None:
    lines = {path.name: len(path.read_text().splitlines()) for path in (HERE / "docs/how-to").glob("*.md")}
    assert {name: count for name, count in lines.items() if count > 110} == {}
