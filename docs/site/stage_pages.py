"""Collect the pages of the site from the repository: one set of Markdown files serves GitHub, the site and its `.md`.

A link between two pages becomes a link between their places on the site. A link to another file of the repository
becomes one to its source. Everything else stays as it is written.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

SITE = Path(__file__).resolve().parent
REPOSITORY = SITE.parents[1]
CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(\]\()([^)\s]+)(\))|(\b(?:src|srcset|href)=\")([^\"]+)(\")")
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|#|//", re.IGNORECASE)
PICTURES = (".svg", ".png", ".jpg")


class StagingError(Exception):
    """A page that cannot be a part of the site; the message has one line for each problem."""


class Page(NamedTuple):
    """A page of the site.

    Attributes:
        file: Its file in the repository; "" for a list of pages, which has none.
        path: Its place on the site.
        section: The title of its section; "" for the home page.
        listed_on: The place of the page that lists it; "" for the menu itself.
    """

    file: str
    path: str
    section: str
    listed_on: str = ""

    @property
    def document(self) -> str:
        """The path on the site without its suffix, which is the name that Sphinx gives the page."""
        return self.path.removesuffix(".md")


class Staged(NamedTuple):
    """All pages in the order of the menu, and the other files that the site shows: file in the repository to path."""

    pages: list[Page]
    others: dict[str, str]


def contents() -> dict[str, Any]:
    """Return what contents.toml says."""
    return tomllib.loads((SITE / "contents.toml").read_text())


def pages_of(repository: Path, listed: dict[str, Any]) -> list[Page]:
    """Return the pages in the order of the menu.

    Raises:
        StagingError: A listed page has no file, or a Markdown file of docs/ is not listed.
    """
    names = listed["names"]
    home = listed["home"]
    found = {home: Page(home, home.removeprefix("docs/"), "")}
    problems = []
    for section in listed["sections"]:
        title, listed_on = section["title"], section.get("listed_on", "")
        if listed_on:
            found[listed_on] = Page("", listed_on, title)
        for pattern in section["pages"]:
            files = [file.relative_to(repository).as_posix() for file in sorted(repository.glob(pattern))]
            if not files:
                problems.append(f"docs/site/contents.toml: {pattern}: no such file")
            for file in files:
                found.setdefault(file, Page(file, names.get(file, file.removeprefix("docs/")), title, listed_on))
    written = (file.relative_to(repository).as_posix() for file in sorted(repository.glob("docs/**/*.md")))
    problems += [f"{file}: is in no section of docs/site/contents.toml" for file in written if file not in found]
    if problems:
        raise StagingError("\n".join(problems))
    return list(found.values())


def stage(target: Path, repository: Path = REPOSITORY) -> Staged:
    """Write the pages and what they show into a directory.

    Args:
        target: An empty or missing directory.
        repository: The root of the repository.

    Raises:
        StagingError: A page is missing or not listed, or a link leads to no file.
    """
    listed = contents()
    pages = pages_of(repository, listed)
    links = _Links(repository, listed["source"], {page.file: page.path for page in pages})
    for page in sorted(pages, key=lambda page: not page.file):  # lists last: they have the titles of the others
        written = target / page.path
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(links.rewritten(page) if page.file else _list_of(page, pages, target))
    if links.problems:
        raise StagingError("\n".join(links.problems))
    for file, path in links.others.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repository / file, target / path)
    return Staged(pages, links.others)


def _list_of(page: Page, pages: list[Page], target: Path) -> str:
    """Return a page that lists other pages by their titles."""
    directory = posixpath.dirname(page.path)
    lines = [
        f"- [{title_of((target / each.path).read_text())}]({posixpath.relpath(each.path, directory)})"
        for each in pages
        if each.listed_on == page.path
    ]
    return f"# {page.section}\n\n" + "\n".join(lines) + "\n"


class _Links:
    """The links of all pages, and what is wrong with them."""

    def __init__(self, repository: Path, source: str, pages: dict[str, str]) -> None:
        self.repository = repository
        self.source = source
        self.pages = pages
        self.others: dict[str, str] = {}
        self.problems: list[str] = []

    def rewritten(self, page: Page) -> str:
        """Return the text of a page with the links that its place on the site needs."""
        pieces = CODE.split((self.repository / page.file).read_text())
        for number in range(0, len(pieces), 2):  # the others are code, where nothing is a link
            pieces[number] = LINK.sub(lambda match: self._link(page, match), pieces[number])
        return "".join(pieces)

    def _link(self, page: Page, match: re.Match[str]) -> str:
        before, target, after = (each for each in match.groups() if each is not None)
        if ELSEWHERE.match(target):
            return match[0]
        path, mark, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(page.file), path))
        if file.startswith("..") or not (self.repository / file).exists():
            self.problems.append(f"{page.file}: a link leads to {target}, and there is no {file}")
            return match[0]
        return f"{before}{self._place(page, file)}{mark}{anchor}{after}"

    def _place(self, page: Page, file: str) -> str:
        """Return how a page of the site names a file of the repository."""
        directory = posixpath.dirname(page.path)
        if (path := self.pages.get(file)) is not None:
            return posixpath.relpath(path, directory)
        if file.endswith(PICTURES) or file.endswith(".schema.json"):
            path = self.others.setdefault(
                file, file.removeprefix("docs/") if file.startswith("docs/") else f"files/{file}"
            )
            return posixpath.relpath(path, directory)
        kind = "tree" if (self.repository / file).is_dir() else "blob"
        return f"{self.source}/{kind}/main/{file}"


def title_of(text: str) -> str:
    """Return the title of a page: its first heading, without marks."""
    heading = re.search(r"^# (.+)$", text, re.MULTILINE)
    if heading is None:
        raise StagingError("a page has no line that begins with `# `")
    return heading[1].replace("`", "")


def summary_of(text: str) -> str:
    """Return the first sentence below the title, without its links. A page without text has the summary ""."""
    for paragraph in text.partition("# ")[2].split("\n\n")[1:]:
        if re.match(r"[\w`*\[\"]", paragraph) and not paragraph.startswith("```"):
            words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
            return re.split(r"(?<=[.?])\s(?=\W*[A-Z])", words)[0].replace("**", "").rstrip(":")
    return ""


def menus(pages: list[Page]) -> dict[str, str]:
    """Return what Sphinx makes the menu from: texts for the ends of the home page and of pages that list others."""
    trees: dict[str, dict[str, list[str]]] = {}
    for page in pages:
        if page.section:
            trees.setdefault(page.listed_on or "index.md", {}).setdefault(page.section, []).append(f"/{page.document}")
    return {path: "\n\n" + "\n".join(_tree(*each) for each in sections.items()) for path, sections in trees.items()}


def _tree(title: str, documents: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *documents, "```", ""])
