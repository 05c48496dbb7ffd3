"""The page about cold starts: its program runs as it stands, in what a container is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import weightcache.modal.deployed_manifest
from weightcache import publish

torch = pytest.importorskip("torch")

PAGE = Path(__file__).parents[2] / "docs/how-to/make-cold-starts-fast.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_functions_for_shards(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    embed, head = torch.randn(8, 4), torch.randn(8, 4)
    save_file({"model.embed_tokens.weight": embed, "other": torch.ones(1)}, tmp_path / "model-1.safetensors")
    save_file({"lm_head.weight": head}, tmp_path / "model-2.safetensors")
    names: dict[str, Any] = {}
    exec(compile(blocks()[1], PAGE, "exec"), names)
    part = names["load_part"](tmp_path, 1, 4)
    assert sorted(part) == ["lm_head.weight", "model.embed_tokens.weight"]
    assert torch.equal(part["lm_head.weight"], head[2:4])
    assert torch.equal(part["model.embed_tokens.weight"], embed[2:4])
    parameters = {"model.embed_tokens.weight": embed * 0, "lm_head.weight": head * 0, "other": torch.zeros(1)}
    names["copy_while_reading"](tmp_path, parameters)
    assert torch.equal(parameters["lm_head.weight"], head)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_program_of_the_page(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, _ = blocks()
    place = tmp_path / "weights.toml"
    monkeypatch.setattr(weightcache.modal.deployed_manifest, "manifest_path", lambda name: str(place))
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    expected = torch.nn.Transformer(256, 8, 2, 2, batch_first=True)
    torch.save(expected.state_dict(), tmp_path / "model.pt")
    place.write_text(str(publish(tmp_path / "model.pt", name="model", root=root)))
    names: dict[str, Any] = {}
    exec(compile(program.replace("/root/data/weights", str(root)), PAGE, "exec"), names)
    reading = names["reading"]
    assert reading.path(next(root.rglob("model.pt"))).startswith("/proc/self/fd/")
    model = names["load"]()
    assert not model.training
    theirs = model.state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in expected.state_dict().items())
    assert reading.stats.files == 1
