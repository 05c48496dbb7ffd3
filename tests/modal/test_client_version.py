"""Modal's client must be new enough, and is asked once, in one sentence."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import modal
import pytest

from support import blob, one, toml_of
from weightcache.cli import modal_app
from weightcache.errors import VolumeError
from weightcache.modal import WeightVolume
from weightcache.modal.client_version import OLDEST, check_client_version

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("version", ["0.77.0", "1.4.3", "1.0.3.dev7"])
def test_an_old_client_is_refused_in_one_sentence(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modal, "__version__", version)
    cache = WeightVolume(one(blob(10)), name="v", path="/w")
    message = rf"^modal {re.escape(version)} is installed, and weightcache needs modal 1.5 or newer\n"
    with pytest.raises(VolumeError, match=message) as caught:
        cache.mounts  # noqa: B018 (it makes the handle)
    assert caught.value.hint == "pip install --upgrade modal"
    with pytest.raises(VolumeError, match=message):
        cache.fill(modal.Image.debian_slim())
    with pytest.raises(VolumeError, match=message):
        modal_app.connect(argparse.Namespace(volume="v", env=None))


def test_the_command_line_says_it_too(tmp_path: Path) -> None:
    manifest = toml_of(one(blob(10), "https://h.example/a"), tmp_path / "weights.toml")
    code = "import sys, modal; modal.__version__ = '1.4.3'; from weightcache.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "ensure", "-m", str(manifest), "--volume", "v"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (5, "")
    assert "modal 1.4.3 is installed, and weightcache needs modal 1.5 or newer" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("version", ["1.5.0", "1.6.4", "1.10.0", "2.0", "unknown", None])
def test_newer_ones_and_unknown_ones_are_not(version: object) -> None:
    check_client_version(version)


def test_the_requirement_is_the_same() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'modal = ["modal>={OLDEST[0]}.{OLDEST[1]},<2"]' in text
