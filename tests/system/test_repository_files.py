"""The files for GitHub: workflows, templates, citation and hooks say what is true and grant no more than needed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).resolve().parents[2]
GITHUB = HERE / ".github"
WORKFLOWS = sorted(GITHUB.glob("workflows/*.yml"))
SCHEMAS = {
    "CITATION.cff": "citation-file-format",
    ".github/dependabot.yml": "dependabot",
    ".github/ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
    ".github/ISSUE_TEMPLATE/idea.yml": "github-issue-forms",
    ".github/workflows/ci.yml": "github-workflows",
    ".github/workflows/release.yml": "github-workflows",
}
PYPROJECT = (HERE / "pyproject.toml").read_text()

pytestmark = pytest.mark.skipif(not GITHUB.exists(), reason="this is an sdist, and not a clone")


def load(path: Path) -> Any:
    # YAML 1.1 reads the key `on` as true.
    return {"on" if key is True else key: value for key, value in yaml.safe_load(path.read_text()).items()}


def steps() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path.name, name, step)
        for path in WORKFLOWS
        for name, job in load(path)["jobs"].items()
        for step in job["steps"]
    ]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (HERE / "Makefile").read_text(), re.MULTILINE))


def unknown(command: str) -> set[str]:
    """The words of a command that are neither `make`, nor a target that exists, nor a variable with a value."""
    words = {word for word in command.split() if not re.fullmatch(r'[A-Z]+=([\w.]+|"\$[A-Z_]+")', word)}
    return words - {"make"} - targets()


def test_every_command_is_a_target_of_the_makefile() -> None:
    commands = [step["run"] for _, _, step in steps() if "run" in step]
    assert [command for command in commands if not command.startswith("make ") or unknown(command)] == []
    assert unknown("make lint; curl evil") == {"lint;", "curl", "evil"}
    assert {"core", "dist", "lint", "oldest", "test"} <= set(" ".join(commands).split())


def test_every_target_is_phony_and_explained() -> None:
    makefile = (HERE / "Makefile").read_text()
    phony = set(" ".join(re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)).split())
    assert phony == targets()
    contributing = (HERE / "CONTRIBUTING.md").read_text()
    # These two are parts of others, for CI and for developers with several Pythons.
    assert {name for name in targets() if f"make {name}" not in contributing} <= {"prerequisites", "pythons"}


def test_every_action_is_pinned_to_a_commit_and_names_its_version() -> None:
    lines = [line for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
    pinned = [re.fullmatch(r"\s*- uses: ([\w/-]+)@([0-9a-f]{40}) # v\d+\.\d+\.\d+", line) for line in lines]
    assert [line for line, match in zip(lines, pinned, strict=True) if not match] == []
    assert len(lines) == sum("uses" in step for *_, step in steps()) > 0
    versions = {(match[1], match[2]) for match in pinned if match}
    assert len({action for action, _ in versions}) == len(versions), "one action in two versions"
    assert load(GITHUB / "dependabot.yml")["updates"][0]["package-ecosystem"] == "github-actions"


def test_no_job_may_do_more_than_it_needs() -> None:
    allowed = {"contents": "read"}
    exceptions = {
        ("release.yml", "attest"): {"id-token": "write", "attestations": "write"},
        ("release.yml", "publish"): {"id-token": "write"},
    }
    for path in WORKFLOWS:
        workflow = load(path)
        assert workflow["permissions"] == {}, path
        assert "pull_request_target" not in workflow["on"], path
        for name, job in workflow["jobs"].items():
            assert job["permissions"] == exceptions.get((path.name, name), allowed), name
            assert job["timeout-minutes"] <= 180, name
    assert "secrets." not in "".join(path.read_text() for path in WORKFLOWS)
    checkouts = [step for *_, step in steps() if "actions/checkout@" in step.get("uses", "")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)
    # A name from outside, such as that of a branch, must not become a part of a shell command.
    assert not [step for *_, step in steps() if "${{" in step.get("run", "")]


def test_a_release_publishes_what_was_built_and_checked_once() -> None:
    workflow = load(GITHUB / "workflows/release.yml")
    jobs = workflow["jobs"]
    assert workflow["on"] == {"push": {"tags": ["v*"]}}
    assert (jobs["attest"]["needs"], jobs["publish"]["needs"]) == ("build", ["build", "attest"])
    assert [(job, step["run"]) for file, job, step in steps() if file == "release.yml" and "run" in step] == [
        ("build", 'make dist PYTHON=python3.12 TAG="$GITHUB_REF_NAME"')
    ]
    assert jobs["publish"]["environment"]["name"] == "pypi"
    assert jobs["publish"]["steps"][-1]["with"] == {"attestations": True}


def test_ci_runs_every_version_that_the_package_names() -> None:
    jobs = load(GITHUB / "workflows/ci.yml")["jobs"]
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    assert jobs["core"]["strategy"]["matrix"]["python"] == named
    assert jobs["oldest"]["container"]["image"] == f"python:{named[0]}-bookworm"
    import other_pythons

    assert list(other_pythons.VERSIONS) == named


def test_the_oldest_requirements_are_those_of_the_package() -> None:
    tomllib = pytest.importorskip("tomllib")
    import other_pythons

    project = tomllib.loads(PYPROJECT)["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + [each for name in other_pythons.OLDEST_EXTRAS for each in extras[name]]
    bounds = [re.match(r"([\w-]+)>=([\w.]+)", each) for each in wanted]
    assert sorted(other_pythons.oldest_requirements()) == sorted(f"{each[1]}=={each[2]}" for each in bounds if each)
    assert None not in bounds


def tool(module: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name(module)
    if not program.exists():
        pytest.skip("needs the extra `lint`, which `make test` installs")
    return subprocess.run([program, *words], cwd=HERE, capture_output=True, text=True)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_file_has_the_form_that_its_reader_expects(name: str, tmp_path: Path) -> None:
    schema = ("--builtin-schema", f"vendor.{SCHEMAS[name]}")
    done = tool("check-jsonschema", *schema, HERE / name)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / Path(name).name
    broken.write_text("a: b\n")
    assert tool("check-jsonschema", *schema, broken).returncode != 0


def test_every_file_for_github_has_a_schema() -> None:
    files = {str(path.relative_to(HERE)) for path in GITHUB.rglob("*.yml")}
    assert files == {name for name in SCHEMAS if name.startswith(".github/")}


def test_the_workflows_have_no_known_weakness(tmp_path: Path) -> None:
    done = tool("zizmor", "--offline", "--no-progress", GITHUB)
    assert done.returncode == 0, done.stdout + done.stderr
    weak = WORKFLOWS[0].read_text().replace("run: make core", "run: echo ${{ github.head_ref }}")
    (tmp_path / "weak.yml").write_text(weak)
    assert "template-injection" in tool("zizmor", "--offline", "--no-progress", tmp_path / "weak.yml").stdout


def test_the_issue_chooser_leads_to_a_private_report() -> None:
    [link] = load(GITHUB / "ISSUE_TEMPLATE/config.yml")["contact_links"]
    assert link["url"] in (HERE / "SECURITY.md").read_text()


def test_the_citation_names_the_package() -> None:
    citation = load(HERE / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert f'name = "{citation["title"]}"' in PYPROJECT
    assert f'license = "{citation["license"]}"' in PYPROJECT


def test_the_hook_before_a_commit_is_a_target_of_the_makefile() -> None:
    [repository] = load(HERE / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    [hook] = repository["hooks"]
    assert {"id", "name", "entry", "language"} <= set(hook)
    assert not unknown(hook["entry"])


def test_every_address_of_the_repository_is_that_of_the_package() -> None:
    [source] = re.findall(r'^Source = "https://github\.com/([\w-]+/weightcache)"$', PYPROJECT, re.MULTILINE)
    tracked = subprocess.run(["git", "ls-files"], cwd=HERE, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("this is not a clone")
    for name in tracked.stdout.splitlines():
        if name.startswith(("tests/", "examples/")) or not (HERE / name).is_file():
            continue
        text = (HERE / name).read_bytes().decode(errors="replace")
        found = set(re.findall(r"git(?:hub|hubusercontent)\.com/([\w-]+/weightcache)\b", text))
        assert found <= {source}, name
    install = re.findall(r"git\+https://github\.com/(.*)'$", (HERE / "README.md").read_text(), re.MULTILINE)
    assert set(install) <= {source}  # after the first release, there is none
