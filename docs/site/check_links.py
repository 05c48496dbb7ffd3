"""Find links of a built site that lead nowhere, and files that it would load from another host."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from stage_pages import CODE

if TYPE_CHECKING:
    from pathlib import Path

LOADED = {"img": "src", "script": "src", "link": "href", "source": "srcset", "iframe": "src"}
MARKDOWN_LINK = re.compile(r"\]\(([^)\s]+)\)")


class _Document(HTMLParser):
    """The links of one page, what it loads, and the names in it that a link can lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if name := values.get("id"):
            self.names.add(name)
        if tag == "a" and (target := values.get("href")) is not None:
            self.links.append(target)
        target = values.get(LOADED.get(tag, ""))
        if target and not target.startswith("data:"):
            (self.links if values.get("rel") == "alternate" else self.loaded).append(target)


def dead_links(site: Path) -> list[str]:
    """Return one line for each link of the site that leads to no file or to no section, and for each foreign load.

    Links to other hosts are not followed: a check that needs the network fails when a foreign server does.
    """
    documents = {}
    for file in sorted(site.rglob("*.html")):
        documents[file] = _Document()
        documents[file].feed(file.read_text())
    problems = []
    for file, document in documents.items():
        where = file.relative_to(site)
        problems += [f"{where}: loads {each} from another host" for each in document.loaded if _is_foreign(each)]
        for target in [*document.links, *document.loaded]:
            if _is_foreign(target):
                continue
            parts = urlsplit(target)
            other = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not other.is_file():
                problems.append(f"{where}: {target} leads to no file")
            elif parts.fragment and other in documents and unquote(parts.fragment) not in documents[other].names:
                problems.append(f"{where}: {target} leads to no section")
    for page in [*sorted(site.rglob("*.md")), *site.glob("llms.txt")]:
        for target in MARKDOWN_LINK.findall(CODE.sub("", page.read_text())):
            path = urlsplit(target).path
            if not _is_foreign(target) and path and not (page.parent / unquote(path)).is_file():
                problems.append(f"{page.relative_to(site)}: {target} leads to no file")
    return problems


def _is_foreign(target: str) -> bool:
    return bool(re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.IGNORECASE))
