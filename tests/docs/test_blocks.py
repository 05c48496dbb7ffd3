"""The code of the README, the quickstart and the page about calling `ensure`: it loads, runs and deploys."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from control_plane import ControlPlane
from origin import Origin
from support import blob, one, toml_of
from weightcache import Manifest

HERE = Path(__file__).resolve().parents[2]
README, QUICKSTART, DIRECTLY = "README.md", "docs/quickstart.md", "docs/how-to/call-ensure-directly.md"


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (HERE / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [README, QUICKSTART, DIRECTLY])
def test_python_blocks_compile(page: str) -> None:
    assert blocks(page)
    for block in blocks(page):
        compile(block, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", [README, QUICKSTART, "docs/reference/manifest.md"])
def test_manifests_load(page: str, tmp_path: Path) -> None:
    assert blocks(page, "toml")
    for block in blocks(page, "toml"):
        (tmp_path / "weights.toml").write_text(block)
        assert Manifest.load(tmp_path / "weights.toml")["sam2"].size == 897952466


def test_the_plain_python_of_the_quickstart_runs(origin: Origin, tmp_path: Path) -> None:
    data = blob(1000)
    origin.put("/a", data)
    for name in ("weights.toml", "other.toml"):
        toml_of(one(data, origin.url("/a")), tmp_path / name)
    first, second, third, prune = (block for block in blocks(QUICKSTART) if "modal" not in block and "…" not in block)
    code = "\n".join([first, second, "async def main():", *(f"    {line}" for line in third.splitlines()), prune])
    code += "\nimport asyncio\nasyncio.run(main())\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:2] == ["downloaded"]
    assert "would delete" not in done.stdout


def test_ensure_on_a_plain_disk(origin: Origin, tmp_path: Path) -> None:
    data = blob(1000)
    origin.put("/a", data)
    toml_of(one(data, origin.url("/a")), tmp_path / "weights.toml")
    [_, code] = blocks(DIRECTLY)
    command, environment = [sys.executable, "-c", code], {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == data
    assert done.stdout.startswith(str(tmp_path / "weights"))


@pytest.mark.parametrize(("page", "name"), [(README, "FashionCrop"), (QUICKSTART, "FashionCrop"), (DIRECTLY, "ByHand")])
def test_the_app_can_be_deployed(page: str, name: str, plane: ControlPlane, tmp_path: Path) -> None:
    [code] = [block for block in blocks(page) if "modal.App" in block]
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "app.py").write_text(code)
    (folder / "weights.toml").write_text(blocks(README, "toml")[0])
    (folder / "weightcache").symlink_to(HERE)  # the clone that the page asks for
    done = plane.client("-m", "modal", "deploy", "app.py", directory=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    [function] = [each.function for each in plane.requests("FunctionCreate")]
    assert function.function_name == f"{name}.*"
    [mount] = function.volume_mounts
    assert (mount.mount_path, plane.volumes[mount.volume_id].name) == ("/root/data/weights", "fashion-models")


def test_one_page_says_that_there_is_no_release_yet() -> None:
    """The README, whose line works without one. CONTRIBUTING.md quotes it, to say when to delete it."""
    says = re.compile(r"(?:not|until|yet)\b[^.\n]{0,20} on PyPI|on PyPI yet", re.IGNORECASE)
    pages = [*HERE.glob("*.md"), *HERE.glob("docs/**/*.md"), *HERE.glob("examples/**/*.md")]
    found = {str(page.relative_to(HERE)) for page in pages if says.search(page.read_text())}
    assert found - {"CONTRIBUTING.md", README} == set()
    assert says.search("The library is not on PyPI yet")
    assert says.search("until it is on PyPI")
