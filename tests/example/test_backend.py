"""A cold start: what it does first, what it reports, what it returns, and its message when it fails."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import textwrap
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import fashion_crop
import weightcache
from fashion_crop import models
from fashion_crop.models.pipeline import Pipeline
from fashion_crop.web import backend as loading
from serving import process
from weightcache import (
    DownloadError,
    IntegrityError,
    LoadError,
    Manifest,
    NotCachedError,
    WeightCacheError,
    ensure,
    prefetch,
    timeline,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import StandIns
    from fashion_crop.web.backend import Backend

PHASES = {"inspect", "build", "load", "to device"}  # of every start in this process, which has imported all already
BLANK = np.zeros((80, 80, 3), np.uint8)


@pytest.fixture(autouse=True)
def ends_its_timeline() -> Iterator[None]:
    yield
    timeline().ready()  # of a start that failed


def memory_files() -> list[str]:
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [target for link in links if os.path.lexists(link) and "memfd:" in (target := os.readlink(link))]


def found(backend: Backend) -> Any:
    return backend.pipeline._detector.detect(BLANK, ["shirt", "hat"], box_threshold=0, text_threshold=0)


def edited(stand_ins: StandIns, folder: Path, old: str, new: str) -> Path:
    """A manifest of the stand-ins that says something else."""
    text = stand_ins.manifest.read_text()
    assert old in text
    (folder / "weights.toml").write_text(text.replace(old, new))
    return folder / "weights.toml"


def test_an_empty_root_and_then_a_filled_one(stand_ins: StandIns, tmp_path: Path) -> None:
    first = loading.start(stand_ins.manifest, root=tmp_path / "root", stand_ins=True)
    assert first.phases.keys() >= PHASES | {"download", "other", "ready"}
    assert first.phases["prefetch"] == 0
    assert first.phases["download"] > 0

    second = loading.start(stand_ins.manifest, root=tmp_path / "root", stand_ins=True)
    assert "download" not in second.phases
    assert min(second.phases[name] for name in PHASES | {"prefetch"}) > 0
    parts = [seconds for name, seconds in second.phases.items() if name not in ("prefetch", "ready")]
    assert sum(parts) == pytest.approx(second.phases["ready"])
    assert found(first) == found(second)
    assert not memory_files()


def test_a_timeline_that_was_begun_earlier(stand_ins: StandIns, tmp_path: Path) -> None:
    with timeline().phase("earlier"):
        time.sleep(0.001)
    assert loading.start(stand_ins.manifest, root=tmp_path, stand_ins=True).phases["earlier"] > 0


def test_the_phases_are_nearly_all_of_a_start(stand_ins: StandIns, tmp_path: Path) -> None:
    ensure(stand_ins.manifest, root=tmp_path, progress=False)
    code = """
    import sys, weightcache
    timeline = weightcache.timeline()
    from fashion_crop.web.backend import start
    start(sys.argv[1], root=sys.argv[2], stand_ins=True)
    print(timeline.json(), flush=True)
    """
    with process(textwrap.dedent(code), str(stand_ins.manifest), str(tmp_path)) as child:
        told = json.loads(child.line())
    assert told["phases"].keys() == PHASES | {"import", "prefetch"}
    assert sum(phase["seconds"] for phase in told["phases"].values()) >= 0.95 * told["ready"]
    assert told["phases"]["load"]["bytes"] > 30_000_000
    assert told["phases"]["prefetch"]["bytes"] > 30_000_000


def test_nothing_is_collected_meanwhile(stand_ins: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enabled = []
    import_models = loading._import_models
    monkeypatch.setattr(loading, "_import_models", lambda: (enabled.append(gc.isenabled()), import_models())[1])
    loading.start(stand_ins.manifest, root=tmp_path, stand_ins=True)
    with pytest.raises(WeightCacheError):
        loading.start(stand_ins.manifest, root=tmp_path)  # the full size
    assert (enabled, gc.isenabled()) == ([False, False], True)
    assert gc.get_freeze_count() > 100_000
    gc.disable()
    try:
        loading.start(stand_ins.manifest, root=tmp_path, stand_ins=True)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_a_backend_tells(backend: Backend, stand_ins: StandIns) -> None:
    assert isinstance(backend.pipeline, Pipeline)
    assert set(backend.weights) == {"groundingdino", "sam2-large", "bert-base-uncased"}
    digests = {entry.name: entry.digest for entry in Manifest.load(stand_ins.manifest)}
    assert dict(backend.weights).items() <= digests.items()
    assert backend.versions["torch"] == version("torch")
    assert set(backend.versions) == set(loading.PACKAGES)
    assert (backend.device, backend.stand_ins) == ("cpu", True)


def test_the_reading_begins_before_all_that_takes_time(
    stand_ins: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    def noted(owner: Any, name: str) -> None:
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: (order.append(name), function(*args, **kwargs))[1])

    noted(loading, "prefetch")
    noted(weightcache, "ensure")
    noted(loading, "_import_models")
    noted(loading, "skip_init")
    loading.start(stand_ins.manifest, root=tmp_path / "root", stand_ins=True)
    assert order == ["prefetch", "ensure", "_import_models", "skip_init"]


def test_a_reading_that_was_begun_earlier(stand_ins: StandIns, tmp_path: Path) -> None:
    weights = ensure(stand_ins.manifest, root=tmp_path, progress=False)
    reading = prefetch(stand_ins.manifest, root=tmp_path, into="memory")
    assert reading.wait(60)
    took = reading.stats.seconds
    assert len(memory_files()) == 7
    backend = loading.start(stand_ins.manifest, root=tmp_path, reading=reading, stand_ins=True)
    assert took > 0
    assert backend.phases["prefetch"] == 0  # it was over before the start began
    assert reading.path(weights["sam2-large"]) == str(weights["sam2-large"])  # closed
    assert not memory_files()
    model = backend.pipeline._segmenter._predictor.model
    assert model.no_mem_embed.equal(torch.load(stand_ins.segmenter, weights_only=True)["model"]["no_mem_embed"])


def test_a_reading_is_used(stand_ins: StandIns, tmp_path: Path) -> None:
    """The bytes in the reading are others than those of the files."""
    weights = ensure(stand_ins.manifest, root=tmp_path, progress=False)
    reading = prefetch(stand_ins.manifest, root=tmp_path, into="memory")
    assert reading.wait(60)
    for name, weight in (("sam2-large", "no_mem_embed"), ("groundingdino", "module.feat_map.bias")):
        state = torch.load(weights[name], weights_only=True)
        state["model"][weight][:] = 7
        torch.save(state, reading.path(weights[name]))
    pipeline = loading.start(stand_ins.manifest, root=tmp_path, reading=reading, stand_ins=True).pipeline
    assert (pipeline._segmenter._predictor.model.no_mem_embed == 7).all()
    assert (pipeline._detector._model.feat_map.bias == 7).all()


def test_another_ensure(stand_ins: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = ensure(stand_ins.manifest, root=tmp_path, progress=False)
    monkeypatch.setattr(weightcache, "ensure", lambda *args, **kwargs: 1 / 0)
    backend = loading.start(stand_ins.manifest, root=tmp_path, ensure=lambda: weights, stand_ins=True)
    assert found(backend)


def test_a_volume_is_committed(stand_ins: StandIns, tmp_path: Path) -> None:
    class Volume:
        commits = reloads = 0

        def commit(self) -> None:
            self.commits += 1

        def reload(self) -> None:
            self.reloads += 1

    volume = Volume()
    loading.start(stand_ins.manifest, root=tmp_path / "root", volume=volume, stand_ins=True)
    assert volume.commits > 0


def test_the_hub_is_switched_off(stand_ins: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    code = """
    import sys
    from fashion_crop.web.backend import start
    start(sys.argv[1], root=sys.argv[2], stand_ins=True)
    from huggingface_hub import constants  # which has read it once
    print(constants.HF_HUB_OFFLINE)
    """
    with process(textwrap.dedent(code), str(stand_ins.manifest), str(tmp_path)) as child:
        assert child.line() == "True"


# What goes wrong.


def test_a_file_that_is_another_one(stand_ins: StandIns, tmp_path: Path) -> None:
    sha256 = Manifest.load(stand_ins.manifest)["sam2-large"].digest
    manifest = edited(stand_ins, tmp_path, sha256, "0" * 64)
    with pytest.raises(IntegrityError, match="sam2-large"):
        loading.start(manifest, root=tmp_path / "root", stand_ins=True)


def test_a_file_that_is_nowhere(stand_ins: StandIns, tmp_path: Path) -> None:
    manifest = edited(stand_ins, tmp_path, "files/sam2_large_stand_in.pt", "files/gone.pt")
    with pytest.raises(DownloadError, match=r"gone\.pt"):
        loading.start(manifest, root=tmp_path / "root", stand_ins=True)


def test_weights_of_another_model(stand_ins: StandIns, tmp_path: Path) -> None:
    text = stand_ins.manifest.read_text()
    swapped = {"sam2-large": "x", "groundingdino": "sam2-large", "x": "groundingdino"}
    for old, new in swapped.items():
        text = text.replace(f"[checkpoints.{old}]", f"[checkpoints.{new}]")
    manifest = tmp_path / "weights.toml"
    manifest.write_text(text)
    with pytest.raises(LoadError, match=r"(?s)GroundingDINO.*missing"):
        loading.start(manifest, root=tmp_path / "root", stand_ins=True)
    assert not memory_files()


def test_stand_ins_are_no_real_weights(stand_ins: StandIns, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="GroundingDINO"):
        loading.start(stand_ins.manifest, root=tmp_path / "root")


def test_an_error_closes_the_reading(stand_ins: StandIns, tmp_path: Path) -> None:
    weights = ensure(stand_ins.manifest, root=tmp_path, progress=False)
    reading = prefetch(stand_ins.manifest, root=tmp_path, into="memory")

    def fails() -> Any:
        raise NotCachedError("sam2-large", hint="", missing=())

    with pytest.raises(NotCachedError):
        loading.start(stand_ins.manifest, root=tmp_path, reading=reading, ensure=fails, stand_ins=True)
    assert reading.path(weights["sam2-large"]) == str(weights["sam2-large"])
    assert not memory_files()


def test_a_package_that_is_not_installed(stand_ins: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sam", "grounding_dino"):
        monkeypatch.delattr(models, module, raising=False)
        monkeypatch.delitem(sys.modules, f"fashion_crop.models.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "sam2.build_sam", None)
    with pytest.raises(ImportError, match=r"sam2\.build_sam.*requirements-without-dependencies\.txt") as caught:
        loading.start(stand_ins.manifest, root=tmp_path / "root", stand_ins=True)
    assert caught.value.name == "sam2.build_sam"


def test_a_package_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PACKAGES", ("torch", "no-such-package"))
    assert loading._versions() == {"torch": version("torch")}


def test_the_package_imports_no_model() -> None:
    program = (
        "import sys, fashion_crop, fashion_crop.models.labels, fashion_crop.web.backend, fashion_crop.models.pipeline\n"
        "heavy = {'torch', 'torchvision', 'transformers', 'groundingdino', 'sam2', 'fashion_crop.models.sam'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    path = str(Path(fashion_crop.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
