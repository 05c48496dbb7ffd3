"""What Sphinx does with the pages that stage_pages.py collects; `make docs` runs it."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "weightcache"
author = "the developers of weightcache"
copyright = "the developers of weightcache, Apache-2.0"  # noqa: A001 - Sphinx reads this name
release = version = metadata.version("weightcache")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
default_role = "code"  # docstrings write `name`, as Markdown does
myst_heading_anchors = 4  # links to sections, as on GitHub
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_ivar = True
suppress_warnings = ["myst.header"]  # a page of GitHub may begin below the first level

html_theme = "furo"
html_title = f"weightcache {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_copy_source = False  # each page lies beside its HTML as .md
html_show_sphinx = False
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
html_theme_options = {"top_of_page_buttons": []}


def add_markdown_link(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Link each page to its Markdown."""
    context["metatags"] = (
        context.get("metatags", "") + '<link rel="icon" href="data:,">'
    )  # else it asks for favicon.ico
    if doctree is None:  # the index and the search are no pages of ours
        return
    name = pagename.rpartition("/")[2]
    context["metatags"] += f'<link rel="alternate" type="text/markdown" href="{name}.md">'
    context["body"] += f'<p class="as-markdown"><a href="{name}.md">This page as Markdown</a></p>'


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("html-page-context", add_markdown_link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
