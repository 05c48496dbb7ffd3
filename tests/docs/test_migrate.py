"""The pages about moving from another way: the old code, the commands, the new code, and the old code again run."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from control_plane import ControlPlane, needs_namespaces
from hub import File, Hub
from modal_apps import modal_run
from origin import Origin
from shell import commands, shell
from support import blob, sha256

HERE = Path(__file__).resolve().parents[2]
PAGES = [path.read_text() for path in sorted((HERE / "docs/how-to").glob("from-*.md"))]
DATA = blob(100_000)
HOSTS = re.compile(r"https://(?:dl\.fbaipublicfiles|download\.pytorch)\.[^ \"]*/([^ /\"]+)(?=[ \"\n])")

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]  # each test starts modal several times


def blocks(title: str) -> tuple[str, str, str]:
    """Return the code before, the commands and the code after of one page."""
    [text] = [each for each in PAGES if each.startswith(f"# {title}\n")]
    [before, after] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    [between] = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return before, between, after


class Move:
    """One of the pages, in a folder and on a control plane of its own."""

    def __init__(self, title: str, plane: ControlPlane, folder: Path, local: Callable[[str], str]) -> None:
        needs_namespaces()
        self._plane, self._folder = plane, folder
        self._before, self._between, self._after = (local(each) for each in blocks(title))
        tools = commands(folder / "bin", "modal", "weightcache")
        self._environment = plane.outside() | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(HERE)}

    def before(self) -> Any:
        [found] = modal_run(self._plane, self._folder, self._before, "load,")
        return found

    def between(self) -> str:
        done = shell(self._between, self._folder, self._environment)
        assert done.returncode == 0, done.stdout + done.stderr + "".join(each.log for each in self._plane.containers)
        return done.stdout

    def after(self) -> Any:
        [found] = modal_run(self._plane, self._folder, self._after, "load,")
        return found


@pytest.fixture
def here(origin: Origin) -> Callable[[str], str]:
    return lambda text: HOSTS.sub(lambda match: origin.url(f"/{match[1]}"), text)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def test_from_urlretrieve(plane: ControlPlane, origin: Origin, project: Path, here: Callable[[str], str]) -> None:
    origin.put("/sam2_hiera_large.pt", DATA)
    move = Move("From `urlretrieve` and `os.path.exists`", plane, project, here)
    assert move.before() == len(DATA)
    assert re.search(r"^sam2 +ready", move.between(), re.MULTILINE)
    requests = len(origin.requests)
    assert move.after() == len(DATA)
    assert move.before() == len(DATA)
    assert len(origin.requests) == requests  # the file of the old code was adopted, and the old code finds it still


def test_half_of_a_file_is_not_taken_over(
    plane: ControlPlane, origin: Origin, project: Path, here: Callable[[str], str], tmp_path: Path
) -> None:
    origin.put("/sam2_hiera_large.pt", DATA)
    (tmp_path / "half").write_bytes(DATA[: len(DATA) // 2])
    plane.volumes[plane.volume("fashion-models")].put("sam2_hiera_large.pt", tmp_path / "half")
    move = Move("From `urlretrieve` and `os.path.exists`", plane, project, here)
    assert move.before() == len(DATA) // 2  # what the page says of the old code
    with pytest.raises(AssertionError, match=r"sam2 +missing"):
        move.between()
    assert move.after() == len(DATA)


def test_from_snapshot_download(plane: ControlPlane, hub: Hub, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # the fake Hub has no Xet storage
    files: dict[str, bytes | File | None] = {"config.json": b"{}", "model.safetensors": File(DATA, lfs=True)}
    hub.push("google-bert/bert-base-uncased", "main", files)
    move = Move("From `snapshot_download` into a Volume", plane, project, str)
    assert move.before() == ["config.json", "model.safetensors"]
    assert re.search(r"^bert +ready", move.between(), re.MULTILINE)
    requests = len(hub.seen)
    assert move.after() == ["config.json", "model.safetensors"]
    assert len(hub.seen) == requests
    sent = [each for each in hub.seen if each.path.endswith("model.safetensors")]
    assert move.before() == ["config.json", "model.safetensors"]
    assert [each for each in hub.seen if each.path.endswith("model.safetensors")] == sent


def test_from_the_image(plane: ControlPlane, project: Path) -> None:
    (project / "data/weights").mkdir(parents=True)
    (project / "data/weights/lama.pt").write_bytes(DATA)
    move = Move(
        "From weights in the image",
        plane,
        project,
        lambda text: text.replace('"data/weights"', repr(str(project / "data/weights"))),
    )
    assert move.before() == len(DATA)
    move.between()
    assert "urls = []" in (project / "weights.toml").read_text()
    assert move.after() == len(DATA)
    assert move.before() == len(DATA)


def test_from_torch_hub(plane: ControlPlane, origin: Origin, project: Path, here: Callable[[str], str]) -> None:
    torch = pytest.importorskip("torch")
    saved = io.BytesIO()
    torch.save({"fc.bias": torch.zeros(10), "fc.weight": torch.ones(10, 4)}, saved)
    digits = sha256(saved.getvalue())[:8]  # the name says how the sha256 begins, and `add` compares
    origin.put(f"/resnet18-{digits}.pth", saved.getvalue())
    move = Move("From `torch.hub`", plane, project, lambda text: here(text.replace("f37072fd", digits)))
    assert move.before() == ["fc.bias", "fc.weight"]
    assert re.search(r"^resnet18 +ready", move.between(), re.MULTILINE)
    requests = len(origin.requests)
    assert move.after() == ["fc.bias", "fc.weight"]
    assert move.before() == ["fc.bias", "fc.weight"]
    assert len(origin.requests) == requests
