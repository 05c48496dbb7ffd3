"""The wheel and the sdist: what is in them, the page on PyPI, the same bytes each time, tests without the sources."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("build", reason="needs the extra `dist`, which `make test` installs")

import distribution
from distribution import Distribution, RefusedError

HERE = Path(__file__).resolve().parents[2]
EPOCH = "1700000000"
QUICK = (
    "tests/test_errors.py",
    "tests/cli/test_main.py::test_as_a_program",
    "tests/store/test_receipts.py",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    return distribution.build(HERE, tmp_path_factory.mktemp("dist"), SOURCE_DATE_EPOCH=EPOCH)


def changed(built: Distribution, folder: Path, name: str, *, to: str | None) -> Distribution:
    """Return a copy whose wheel, and the list of files in it, has other text in a file, or has no such file."""
    wheel = folder / built.wheel.name
    with zipfile.ZipFile(built.wheel) as before, zipfile.ZipFile(wheel, "w") as after:
        files = {each: before.read(each).decode() for each in before.namelist() if each != name}
        [record] = [each for each in files if each.endswith(".dist-info/RECORD")]
        if to is not None:
            files[name] = to
        files[record] = "".join(f"{each},,\n" for each in files)
        for each, text in files.items():
            after.writestr(each, text)
    return built._replace(wheel=wheel)


def test_the_checks_pass(built: Distribution) -> None:
    distribution.check_contents(built)


@pytest.mark.parametrize(
    ("name", "to", "says"),
    [
        ("weightcache/py.typed", None, "weightcache/py.typed"),
        ("weightcache/_engine/plan.py", None, "W101"),  # of check-wheel-contents: a module is missing
        ("tests/test_api.py", "", "W20"),
        ("dist-info/licenses/LICENSE", None, "no weightcache-"),
        ("dist-info/METADATA", "Metadata-Version: 2.4\nName: weightcache\nVersion: 1\n", "twine"),
    ],
)
def test_what_the_checks_refuse(built: Distribution, tmp_path: Path, name: str, to: str | None, says: str) -> None:
    names = zipfile.ZipFile(built.wheel).namelist()
    name = next((each for each in names if each.endswith(name)), name)
    with pytest.raises(RefusedError, match=re.escape(says)):
        distribution.check_contents(changed(built, tmp_path, name, to=to))


def test_a_second_build_has_the_same_bytes(built: Distribution, tmp_path: Path) -> None:
    pairs = distribution.build_again(built, EPOCH, tmp_path)
    assert [path.suffix for pair in pairs for path in pair] == [".gz", ".gz", ".whl", ".whl", ".whl", ".whl"]
    distribution.check_same(pairs)
    with pairs[2][1].open("ab") as wheel:
        wheel.write(b"x")
    with pytest.raises(RefusedError, match="two builds of weightcache"):
        distribution.check_same(pairs)


def test_the_sdist_has_what_its_tests_need_and_nothing_that_is_made(built: Distribution) -> None:
    with tarfile.open(built.sdist) as archive:
        files = {member.name.partition("/")[2]: member for member in archive if member.isfile()}
    tracked = subprocess.run(["git", "ls-files"], cwd=HERE, capture_output=True, text=True)
    if tracked.returncode == 0:  # this is a clone, and not an sdist
        not_included = (".ci/", ".git", ".pre-commit")
        expected = {name for name in tracked.stdout.splitlines() if not name.startswith(not_included)}
        assert expected - set(files) == set()
    assert [name for name in files if "__pycache__" in name or name.startswith((".venv", "dist"))] == []
    assert files["tests/prerequisites.sh"].mode & 0o111


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src", "srcset"):
                self.targets.append(value or "")
            elif name == "id":
                self.ids.add(value or "")


def rendered(text: str) -> Links:
    with warnings.catch_warnings(action="error") if sys.version_info >= (3, 11) else warnings.catch_warnings():
        from readme_renderer import markdown

        html = markdown.render(text)
    assert html is not None
    page = Links()
    page.feed(html)
    return page


def relative(page: Links) -> list[str]:
    return [each for each in page.targets if not each.startswith(("https://", "#"))]


def test_every_link_and_picture_of_the_page_on_pypi_is_absolute(built: Distribution) -> None:
    version = distribution.metadata(built.wheel)["Version"]
    page = rendered(distribution.description(built.wheel))
    assert relative(rendered((HERE / "README.md").read_text())) != []  # the check sees one
    assert relative(page) == []
    assert [each for each in page.targets if each.startswith("#") and each[1:] not in page.ids] == []
    for kind, path in re.findall(
        rf"(raw\.githubusercontent\.com/[^/]+/weightcache|blob)/v{re.escape(version)}/(\S*)", "\n".join(page.targets)
    ):
        assert (HERE / path.partition("#")[0]).exists(), path
        assert (kind != "blob") == path.endswith((".svg", ".png", ".webp")), path


@pytest.mark.parametrize(
    ("markdown", "target"),
    [
        ("[a](docs/a.md#b)", "https://github.com/{owner}/weightcache/blob/v{version}/docs/a.md#b"),
        ("[a](#b)", "#user-content-b"),
        ("[a](https://x.example/)", "https://x.example/"),
        ("![a](docs/a.svg)", "https://raw.githubusercontent.com/{owner}/weightcache/v{version}/docs/a.svg"),
        ('<img src="docs/a.svg">', "https://raw.githubusercontent.com/{owner}/weightcache/v{version}/docs/a.svg"),
        ('<a href="docs/a.md">a</a>', "https://github.com/{owner}/weightcache/blob/v{version}/docs/a.md"),
    ],
)
def test_how_a_link_of_the_readme_becomes_absolute(markdown: str, target: str, built: Distribution) -> None:
    from hatch_fancy_pypi_readme._builder import build_text
    from hatch_fancy_pypi_readme._config import load_and_validate_config
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    found = distribution.metadata(built.wheel)
    [source] = [each for each in found.get_all("Project-URL", []) if each.startswith("Source, ")]
    owner = source.split("/")[-2]
    hooks = ProjectMetadata(str(HERE), PluginManager()).config["tool"]["hatch"]["metadata"]["hooks"]
    config = load_and_validate_config({**hooks["fancy-pypi-readme"], "fragments": [{"text": markdown}]})
    text = build_text(config.fragments, config.substitutions, version=found["Version"])
    assert rendered(text).targets == [target.format(owner=owner, version=found["Version"])]


def test_the_core_runs_from_the_installed_wheel_without_the_sources(built: Distribution, tmp_path: Path) -> None:
    version = distribution.metadata(built.wheel)["Version"]
    python = distribution.install_offline(built.wheel, tmp_path / "venv")
    sources = distribution.unpack_tests(built, tmp_path / "tests")
    assert " passed" in distribution.check_installed(python, sources, version, QUICK)

    shutil.copytree(HERE / "weightcache", sources / "weightcache")  # now it would be found first
    with pytest.raises(RefusedError, match="and imported"):
        distribution.check_installed(python, sources, version, QUICK)


@pytest.mark.parametrize("is_url", [True, False], ids=["url", "path"])
def test_the_install_lines_of_the_readme_work_with_a_clone(is_url: bool, tmp_path: Path) -> None:
    if subprocess.run(["git", "rev-parse"], cwd=HERE, capture_output=True).returncode:
        pytest.skip("this is not a clone")
    readme = (HERE / "README.md").read_text()
    if "not on PyPI yet" not in readme:
        pytest.skip("after the first release, the README has another line")
    if is_url:
        [line] = re.findall(r"^pip install '(.*)'$", readme, re.MULTILINE)
        requirement, count = re.subn(r"git\+https://\S+", f"git+file://localhost{HERE}", line)
    else:
        [line] = re.findall(r"`'(/path/.*)'`", readme)
        requirement, count = re.subn(r"^/path/to/a/clone", str(HERE), line)
    assert count == 1
    python = distribution.install_offline(requirement, tmp_path / "venv")
    where = distribution.must("env", "-C", tmp_path, python, "-c", "import weightcache; print(weightcache.__file__)")
    assert where.startswith(str(tmp_path / "venv"))


@pytest.mark.parametrize(
    ("tag", "files", "says"),
    [
        ("v1.2.0", {}, []),
        ("1.2.0", {}, ["the tag is 1.2.0, and the version in pyproject.toml 1.2.0"]),
        ("v1.2.0", {"CHANGELOG.md": "## [Unreleased]\n## [1.2.01] - 2027-01-31\n"}, ["CHANGELOG.md has no section"]),
        ("v1.2.0", {"pyproject.toml": "https://github.com/OWNER/a"}, ["OWNER"]),
        ("v1.2.0", {"README.md": "It is not on PyPI yet."}, ["README.md says"]),
        ("v1.2.0", {"git": " M docs/cost.md"}, ["docs/cost.md"]),
        ("v1", {"CHANGELOG.md": "", "git": "?? x"}, ["the tag is v1", "CHANGELOG.md", "x"]),
    ],
)
def test_what_must_not_be_released(
    tag: str, files: dict[str, str], says: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"CHANGELOG.md": "## [1.2.0] - 2027-01-31\n", "pyproject.toml": "", "README.md": "", "git": ""}
    monkeypatch.setattr(distribution, "read", {**good, **files}.__getitem__)
    done = subprocess.CompletedProcess("git", 0, stdout={**good, **files}["git"])
    monkeypatch.setattr(distribution, "run", lambda *command: done)
    found = list(distribution.reasons_against(tag, "1.2.0"))
    assert [words in reason for words, reason in zip(says, found, strict=True)] == [True] * len(says)


def test_the_version_stands_in_one_place(built: Distribution) -> None:
    version = distribution.metadata(built.wheel)["Version"]
    line = f'version = "{version}"'
    assert (HERE / "pyproject.toml").read_text().count(line) == 1
    package = [path.read_text() for path in (HERE / "weightcache").rglob("*.py")]
    assert not [text for text in package if re.search(rf"[\"']{re.escape(version)}[\"']", text)]
    assert "\nversion:" not in (HERE / "CITATION.cff").read_text()
