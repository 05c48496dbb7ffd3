"""The public surface, and the documentation that must not go stale."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import weightcache
from origin import Origin
from support import blob, one, toml_of
from weightcache import errors
from weightcache.cli.commands import COMMANDS

HERE = Path(__file__).parents[1]
DOCS = sorted(
    [
        *(HERE / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "examples/fashion_crop/README.md")),
        *HERE.glob("docs/**/*.md"),
    ]
)
CLI = (HERE / "docs/reference/cli.md").read_text()


def test_exports() -> None:
    assert weightcache.__all__ == sorted(weightcache.__all__)
    for name in weightcache.__all__:
        assert getattr(weightcache, name).__doc__, name
        assert getattr(weightcache, name).__module__.startswith("weightcache")
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", str(weightcache.__version__))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = weightcache.nonsense


@pytest.mark.parametrize("name", ["ensure", "aensure", "status", "verify", "prune", "publish"])
def test_everything_after_the_manifest_is_keyword_only(name: str) -> None:
    first, *rest = inspect.signature(getattr(weightcache, name)).parameters.values()
    assert first.kind in (first.POSITIONAL_OR_KEYWORD, first.VAR_POSITIONAL)
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in rest)


def test_values_cannot_be_changed() -> None:
    manifest = weightcache.Manifest.load(one(b"x"))
    checkpoint = manifest["sam2"]
    with pytest.raises(AttributeError, match="Checkpoint cannot be changed"):
        checkpoint.name = "other"
    with pytest.raises(AttributeError, match="Checkpoint cannot be changed"):
        del checkpoint.name
    assert hash(manifest) == hash(weightcache.Manifest.load(one(b"x")))
    assert manifest != weightcache.Manifest.load(one(b"y"))
    assert "sha256='2d711642b726b044" in repr(checkpoint)
    import pickle

    assert pickle.loads(pickle.dumps(manifest)) == manifest


def test_every_name_is_listed_and_there() -> None:
    assert set(weightcache.__all__) <= set(dir(weightcache))
    assert all(hasattr(weightcache, name) for name in weightcache.__all__)


def test_every_name_is_documented() -> None:
    api, tree = (HERE / "docs/reference/api.md").read_text(), (HERE / "docs/reference/errors.md").read_text()
    assert [name for name in weightcache.__all__ if f"`{name}" not in api] == []
    assert [name for name in errors.__all__ if name not in tree] == []


@pytest.mark.parametrize(
    "name", ["ensure", "aensure", "status", "verify", "prune", "publish", "pin", "prefetch", "prefetch_files"]
)
def test_the_documented_signature(name: str) -> None:
    api = (HERE / "docs/reference/api.md").read_text()
    parameters = inspect.signature(getattr(weightcache, name)).parameters.values()
    for parameter in parameters:
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        assert re.search(rf"{name}\([^)]*{parameter.name}{re.escape(default)}(?!\w)", api) or default.endswith(")"), (
            parameter
        )


def verbs() -> list[str]:
    return ["", *(command.name for command in COMMANDS)]


@pytest.mark.parametrize("verb", verbs())
def test_the_documented_help(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "weightcache", *([verb] if verb else []), "--help"]
    said = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "NO_COLOR": "1"}
    ).stdout
    words = " ".join(["weightcache", *([verb] if verb else []), "--help"])
    [block] = re.findall(rf"```text\n\$ {re.escape(words)}\n(.*?)```", CLI, re.DOTALL)
    assert block == said, "run python -m weightcache.cli.reference_page docs/reference/cli.md"


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(HERE)))
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"\btest_\w+\.py\b", text):
        assert list((HERE / "tests").rglob(name)), name


def test_the_readme_is_short_and_begins_with_the_two_commands() -> None:
    lines = (HERE / "README.md").read_text().splitlines()
    assert len(lines) <= 100
    text = "\n".join(lines[:25])
    assert "make demo" in text
    assert "make test" in text


def test_the_image_that_is_built_by_hand_holds_the_package_and_no_weights(tmp_path: Path) -> None:
    from modal.file_pattern_matcher import FilePatternMatcher

    page = (HERE / "docs/how-to/call-ensure-directly.md").read_text()
    [patterns] = re.findall(r"^ALL_BUT = (\[.*\])", page, re.M)
    is_left_out = FilePatternMatcher(*ast.literal_eval(patterns))
    needed = ["pyproject.toml", "README.md", "LICENSE", "weightcache/__init__.py", "weightcache/torch/_load.py"]
    assert [each for each in needed if is_left_out(Path(each))] == []
    others = ["demo-volume/sam2/7442/a.pt", ".venv/bin/python", ".git/HEAD", "weights/a.pt", "examples/origin.py"]
    assert [each for each in others if not is_left_out(Path(each))] == []


PAGES = sorted(set((HERE / "docs/how-to").glob("*.md")) - {HERE / "docs/how-to/README.md"})


def test_every_how_to_is_listed() -> None:
    listed = re.findall(r"\((.*?\.md)\)", (HERE / "docs/how-to/README.md").read_text())
    assert sorted(listed) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_how_to_is_python(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    for block in blocks:
        compile(block, str(page), "exec")
    assert blocks or re.search("```(sh|yaml)", page.read_text())


def test_the_quickstart_runs(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = blob(1000)
    origin.put("/a", data)
    toml_of(one(data, origin.url("/a")), tmp_path / "weights.toml")
    [code, *_] = re.findall(r"```python\n(.*?)```", (HERE / "docs/quickstart.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.read_bytes() for path in tmp_path.glob("weights/sam2/*/weights.pt")] == [data]


def test_the_folders_are_documented_as_they_are_checked() -> None:
    [checked] = re.findall(r"^layers = \[(.*?)^\]", (HERE / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    table = (HERE / "docs/design.md").read_text().partition("| folder |")[2]
    documented = [
        row.replace("\\|", "|").replace("`", "") for row in re.findall(r"^\| (`.*?`) \| ", table, re.MULTILINE)
    ]
    assert documented == re.findall(r'"([^"]+)"', checked)
    assert len(documented) <= 8


def test_every_decision_has_its_parts() -> None:
    for page in sorted((HERE / "docs/decisions").glob("*.md")):
        text = page.read_text().lower()
        assert all(part in text for part in ("context", "decision", "consequences", "what would change it")), page
