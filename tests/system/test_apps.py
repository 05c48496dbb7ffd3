"""Apps as people write them: each in `apps/`, by the real Modal client, in the containers of the real entrypoint."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from control_plane import ControlPlane
from hub import File, Hub
from origin import Origin
from support import blob, one, sha256, toml_of
from weightcache import Manifest

APPS = Path(__file__).parent / "apps"
DATA = blob(100_000)
LINES = 40

torch = pytest.importorskip("torch")


def start(plane: ControlPlane, app: Path) -> list[str]:
    """Do ``modal run`` and return the lines that the app prints."""
    done = plane.client("-m", "modal", "run", str(app), directory=app.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def app(name: str, folder: Path) -> Path:
    return Path(shutil.copy(APPS / f"{name}.py", folder))


def said(lines: list[str], word: str) -> list[str]:
    [line] = [line for line in lines if line.startswith(word)]
    return line.split()[1:]


@pytest.mark.parametrize("path", sorted(APPS.glob("*.py")), ids=lambda path: path.stem)
def test_an_app_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES
    ast.parse(path.read_text())


def test_shards_from_the_hub_in_transformers(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    model = transformers.BertModel(config).eval()
    model.save_pretrained(tmp_path / "bert", max_shard_size="20KB")
    files = {path.name: path.read_bytes() for path in (tmp_path / "bert").iterdir()}
    shards = [name for name in files if name.endswith(".safetensors")]
    assert len(shards) > 2
    with Hub() as hub:
        commit = hub.push("acme/bert", "main", {name: File(data, lfs=name in shards) for name, data in files.items()})
        pins = {name: {"sha256": sha256(data), "size": len(data)} for name, data in files.items()}
        manifest = {"checkpoints": {"bert": {"urls": [f"hf://acme/bert@{commit}"], "files": pins}}}
        toml_of(manifest, tmp_path / "weights.toml")
        path = app("encoder", tmp_path)
        path.write_text(
            path.read_text().replace('"transformers"))', f'"transformers").env({{"HF_ENDPOINT": "{hub.url}"}}))')
        )
        lines = start(plane, path)
        asked = len(hub.seen) + len(hub.cdn.requests)
        assert asked >= len(files)
    with torch.inference_mode():
        expected = model(torch.tensor([[1, 2, 3]])).last_hidden_state[0, 0]
    assert torch.allclose(torch.tensor([float(each) for each in said(lines, "encoded")]), expected, atol=1e-6)
    assert said(lines, "outcome") == ["hit"]  # another container, after the first one has filled the Volume


def test_a_snapshot_and_a_prefetch(plane: ControlPlane, origin: Origin, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64)
    torch.save(model.state_dict(), tmp_path / "detector.pt")
    data = (tmp_path / "detector.pt").read_bytes()
    origin.put("/detector.pt", data)
    toml_of(one(data, origin.url("/detector.pt"), name="detector"), tmp_path / "weights.toml")
    path = app("detector", tmp_path)
    expected = model(torch.full((64,), 0.5)).tolist()
    assert said(start(plane, path), "downloaded") == str(expected).split()
    origin.requests.clear()
    assert said(start(plane, path), "hit") == str(expected).split()
    assert origin.requests == []


def test_an_unmodified_program_with_fixed_folders(plane: ControlPlane, origin: Origin, tmp_path: Path) -> None:
    origin.put("/sam2.pt", DATA)
    toml_of(one(DATA, origin.url("/sam2.pt")), tmp_path / "weights.toml")
    (tmp_path / "program").mkdir()
    (tmp_path / "program/main.py").write_text(
        "import hashlib\nprint(hashlib.sha256(open('data/weights/sam2_hiera_large.pt', 'rb').read()).hexdigest())\n"
    )
    path = app("unmodified", tmp_path)
    assert said(start(plane, path), "downloaded") == [sha256(DATA)]
    origin.requests.clear()
    assert said(start(plane, path), "hit") == [sha256(DATA)]
    assert origin.requests == []
    assert Manifest.load(tmp_path / "weights.toml")["sam2"].files[0].sha256 == sha256(DATA)
