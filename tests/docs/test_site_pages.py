"""Which pages the site has, and where their links lead; tests/site looks at the built site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import check_links
import stage_pages as stage
from stage_pages import Page, StagingError, menus, pages_of, summary_of, title_of

CONTENTS = {
    "source": "https://example.invalid/project",
    "home": "docs/index.md",
    "names": {"CHANGELOG.md": "changelog.md"},
    "sections": [
        {"title": "Pages", "pages": ["docs/a/*.md", "CHANGELOG.md"]},
        {"title": "Records", "pages": ["docs/records/*.md"], "listed_on": "records/index.md"},
    ],
}
FILES = {
    "docs/index.md": "# Home\n\n[one](a/one.md#part), ![picture](picture.svg)\n",
    "docs/a/one.md": "# One\n\n## Part\n\n[code](../../src/code.py), [all](../../src), [log](../../CHANGELOG.md)\n",
    "docs/records/0001.md": "# 0001: `x`\n\nText.\n",
    "docs/picture.svg": "<svg/>",
    "CHANGELOG.md": "# Changes\n\n[home](docs/index.md) and [other](https://example.invalid/).\n",
    "src/code.py": "",
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stage, "contents", lambda: CONTENTS)
    for name, text in FILES.items():
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_text(text)
    return tmp_path / "project"


def test_links_lead_to_the_places_of_the_site(repository: Path, tmp_path: Path) -> None:
    pages, others = stage.stage(tmp_path / "site", repository)
    assert [page.path for page in pages] == [
        "index.md",
        "a/one.md",
        "changelog.md",
        "records/index.md",
        "records/0001.md",
    ]
    assert others == {"docs/picture.svg": "picture.svg"}
    site = tmp_path / "site"
    assert "[one](a/one.md#part), ![picture](picture.svg)" in (site / "index.md").read_text()
    assert (site / "picture.svg").read_text() == "<svg/>"
    source = "https://example.invalid/project"
    assert (
        f"[code]({source}/blob/main/src/code.py), [all]({source}/tree/main/src), [log](../changelog.md)"
        in (site / "a/one.md").read_text()
    )
    assert "[home](index.md) and [other](https://example.invalid/)" in (site / "changelog.md").read_text()
    assert (site / "records/index.md").read_text() == "# Records\n\n- [0001: x](0001.md)\n"


def test_code_is_no_link(repository: Path, tmp_path: Path) -> None:
    text = "# One\n\n`a[0](b.md)`\n\n```python\ncalls[0](nothing.md)\n```\n"
    (repository / "docs/a/one.md").write_text(text)
    stage.stage(tmp_path / "site", repository)
    assert (tmp_path / "site/a/one.md").read_text() == text


@pytest.mark.parametrize("target", ["gone.md", "../../gone.py", "../../../outside.md", "gone.md#part"])
def test_a_link_to_nothing(repository: Path, tmp_path: Path, target: str) -> None:
    (repository / "docs/a/one.md").write_text(f"# One\n\n[x]({target})\n")
    with pytest.raises(StagingError, match=rf"docs/a/one.md: a link leads to {re.escape(target)}, and there is no "):
        stage.stage(tmp_path / "site", repository)


def test_a_page_that_no_section_has(repository: Path) -> None:
    (repository / "docs/new.md").write_text("# New\n")
    with pytest.raises(StagingError, match=r"docs/new.md: is in no section of docs/site/contents.toml"):
        pages_of(repository, CONTENTS)


def test_a_section_without_a_file(repository: Path) -> None:
    (repository / "CHANGELOG.md").unlink()
    with pytest.raises(StagingError, match=r"docs/site/contents.toml: CHANGELOG.md: no such file"):
        pages_of(repository, CONTENTS)


def test_menus() -> None:
    pages = [
        Page("docs/index.md", "index.md", ""),
        Page("docs/a.md", "a.md", "Pages"),
        Page("", "records/index.md", "Records"),
        Page("docs/records/1.md", "records/1.md", "Records", "records/index.md"),
    ]
    found = menus(pages)
    assert list(found) == ["index.md", "records/index.md"]
    assert re.findall(r":caption: (.*)\n\n/(.*)\n", found["index.md"]) == [("Pages", "a"), ("Records", "records/index")]
    assert re.findall(r":caption: (.*)\n\n/(.*)\n", found["records/index.md"]) == [("Records", "records/1")]


def test_title_and_summary() -> None:
    text = "# Call `ensure`\n\n![x](y.svg)\n\n```sh\nmake\n```\n\nIt [reads](z.md) a file. It ends.\n"
    assert title_of(text) == "Call ensure"
    assert summary_of(text) == "It reads a file."
    assert summary_of("# Alone\n") == ""
    with pytest.raises(StagingError, match="no line that begins with"):
        title_of("text\n")


def test_the_pages_of_this_project() -> None:
    pages = pages_of(stage.REPOSITORY, stage.contents())
    assert len({page.path for page in pages}) == len(pages) > 60
    for page in pages:
        if page.file and page.section:
            text = (stage.REPOSITORY / page.file).read_text()
            assert title_of(text)
            assert summary_of(text), page.file


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="b.html#part">1</a><a href="b.html#gone">2</a><a href="c.html">3</a>'
        '<a href="#top">4</a>'
        '<img src="https://example.invalid/x.png"><a href="https://example.invalid/">5</a><script src="x.js"></script>'
        '<link rel="icon" href="data:,"><a href="b%2Ehtml">6</a>'
    )
    (tmp_path / "b.html").write_text('<h2 id="part">B</h2>')
    (tmp_path / "a.md").write_text("[1](b.html) [2](gone.md) `[3](gone.md)` [4](https://example.invalid/)\n")
    (tmp_path / "llms.txt").write_text("[1](a.md) [2](other.md)\n")
    assert check_links.dead_links(tmp_path) == [
        "a.html: loads https://example.invalid/x.png from another host",
        "a.html: b.html#gone leads to no section",
        "a.html: c.html leads to no file",
        "a.html: x.js leads to no file",
        "a.md: gone.md leads to no file",
        "llms.txt: other.md leads to no file",
    ]
