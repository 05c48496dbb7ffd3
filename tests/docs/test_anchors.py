"""Every link of the documentation to a section leads to a heading that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2]
PAGES = sorted([*HERE.glob("*.md"), *HERE.glob("docs/**/*.md"), *HERE.glob("examples/*/README.md")])


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found: dict[str, int] = {}
    result = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        words = re.sub(r"\]\(.*?\)", "]", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = found.get(anchor, 0)
        found[anchor] = count + 1
        result.add(f"{anchor}-{count}" if count else anchor)
    return result


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HERE)))
def test_links_to_sections_lead_to_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text()):
        other = page.parent / target if target else page
        assert anchor in anchors(other), f"{target}#{anchor}"


def test_the_glossary_is_linked_and_its_terms_are_sorted() -> None:
    for name in ("README.md", "docs/quickstart.md"):
        assert "glossary.md" in (HERE / name).read_text()
    rows = re.findall(r"^\| \*\*(.+?)\*\* \| (.*) \|$", (HERE / "docs/glossary.md").read_text(), re.MULTILINE)
    terms = [term for term, _ in rows]
    assert terms == sorted(terms)
    assert len(terms) > 20
    assert all("](" in meaning for _, meaning in rows)
