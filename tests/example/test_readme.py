"""The example's README: from a clone to deployed, as it stands, against the control plane."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from PIL import Image

from control_plane import ControlPlane, needs_namespaces
from deployment import EXAMPLE, copy_example
from origin import Origin
from shell import commands, shell
from support import lacking

if TYPE_CHECKING:
    from conftest import StandIns

README = (EXAMPLE / "README.md").read_text()


def blocks() -> list[str]:
    """Return every shell block, out of the indentation of its step."""
    found = re.findall(r"^( *)```sh\n(.*?)```", README, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indentation}", "", text, flags=re.MULTILINE) for indentation, text in found]


def test_the_pythons_it_names_are_those_that_its_pins_allow() -> None:
    """Each pinned package says which Pythons it runs on: what the README promises, all of them keep."""
    pins = [
        Requirement(line.partition("#")[0])
        for name in ("requirements.txt", "requirements-without-dependencies.txt")
        for line in (EXAMPLE / name).read_text().splitlines()
        if "==" in line.partition("#")[0]
    ]
    wanted = [metadata(pin.name).get("Requires-Python") or ">=3" for pin in pins]
    allowed = [f"3.{minor}" for minor in range(8, 15) if all(f"3.{minor}.9" in SpecifierSet(each) for each in wanted)]
    assert f"Python {allowed[0]} to {allowed[-1]} without 3.14.1" in " ".join(README.split())
    assert [each for each in wanted if "3.14.1" not in SpecifierSet(each)]


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    needs_namespaces()
    with ControlPlane(tmp_path / "plane") as plane:
        yield plane


@pytest.fixture
def clone(stand_ins: StandIns, origin: Origin, tmp_path: Path) -> Path:
    copy_example(tmp_path / "clone" / "examples" / "fashion_crop", stand_ins, origin)
    return tmp_path / "clone"


def test_from_a_clone_to_crops(plane: ControlPlane, clone: Path, origin: Origin, tmp_path: Path) -> None:
    if absent := [tool for tool in ("curl", "bash") if not shutil.which(tool)]:
        lacking(f"no {', '.join(absent)}")
    tools = commands(tmp_path / "bin", "modal", "weightcache")
    Image.effect_noise((320, 240), 80).convert("RGB").save(clone / "photo.jpg")

    def run(*texts: str) -> str:
        done = shell("\n".join(texts), clone, plane.outside() | {"PATH": f"{tools}:{os.environ['PATH']}"})
        assert done.returncode == 0, done.stdout + done.stderr + "".join(each.log for each in plane.containers)
        return done.stdout

    local, setup, fill, deploy, crops, pinged, detect, ask = blocks()
    assert local == "make fashion\n"
    install, login, key = setup.split("\n", 2)
    assert (install, login) == ("pip install '.[modal]'", "modal setup")
    run(key.replace("openssl rand -hex 32", "echo let-me-in"))  # the same in every one of these processes
    run(fill)
    sent = origin.sent()
    assert sent > 30_000_000
    assert not [each.path for each in origin.requests if "tiny" in each.path]
    run(deploy)
    assert (clone / "crops").is_dir()
    url = plane.web_url(plane.requests("AppPublish")[-1].function_ids["FashionCrop.*"])
    here = re.sub(r"https://YOU--\S+", url, crops)
    known = "export FASHION_API_KEY=let-me-in", f"export FASHION_URL={url}"
    listed = run(*known, here)
    assert re.search(r"^manifest\.json ", listed, re.MULTILINE)
    told = json.loads(run(*known, detect))
    assert told["model"]["stand_ins"] is True
    assert {each["label"] for each in told["detections"]}
    assert '"ready"' in run(*known, ask)
    run(*known, pinged)
    for container in plane.containers:
        if container.is_serving:
            assert plane.stop(container) == 0
    assert origin.sent() == sent  # the app found what was filled before
