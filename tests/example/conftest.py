"""Fixtures: the stand-in weights, made once, and the two models started with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from fashion_crop.models._packages import EXPECTED_WARNINGS

if TYPE_CHECKING:
    from fashion_crop.web.backend import Backend


settings.register_profile("example", deadline=None)  # how long an input takes depends on what else the machine does
settings.load_profile("example")


def pytest_configure(config: pytest.Config) -> None:
    for message, category in EXPECTED_WARNINGS:  # pytest forgets after each test what the import of models has set
        config.addinivalue_line("filterwarnings", f"ignore:{message}:{category.__name__}")


@dataclass(frozen=True)
class StandIns:
    """The stand-in weights: a manifest whose URLs are files on this machine, and those files."""

    manifest: Path
    files: Path

    @property
    def detector(self) -> Path:
        return self.files / "groundingdino_stand_in.pth"

    @property
    def segmenter(self) -> Path:
        return self.files / "sam2_large_stand_in.pt"

    @property
    def text_encoder(self) -> Path:
        return self.files / "bert-base-uncased"


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> StandIns:
    from fashion_crop.benchmarks.stand_ins import make_stand_ins

    manifest = make_stand_ins(tmp_path_factory.mktemp("stand-ins"))
    return StandIns(manifest, manifest.with_name("files"))


@pytest.fixture(scope="session")
def backend(stand_ins: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    """The stand-ins in memory, by the way that the app takes."""
    from fashion_crop.web.backend import start

    return start(stand_ins.manifest, root=tmp_path_factory.mktemp("root"), stand_ins=True)
