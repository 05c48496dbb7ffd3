"""Build the site: `make docs`.

    python docs/site/build_site.py --output .cache/site

Every warning of Sphinx ends the build, and so does a link that leads nowhere. Beside each page lies its Markdown, and
`llms.txt` lists the pages. Nothing on the site is loaded from another host, so it also works as files on a disk.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from check_links import dead_links
from stage_pages import REPOSITORY, SITE, Page, StagingError, menus, stage, summary_of, title_of

OUTPUT = REPOSITORY / ".cache" / "site"
DOCSTRINGS = "reference/docstrings"
# What Furo and Docutils leave out: levels and names for screen readers, and what the keyboard reaches.
LABELS = {
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="Pages">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="On this page">',
    '<aside class="toc-drawer no-toc">': '<aside class="toc-drawer no-toc" aria-label="On this page">',
    "<pre>": '<pre tabindex="0">',  # else only a mouse scrolls what is too wide
    '<div class="table-wrapper ': '<div tabindex="0" class="table-wrapper ',
    '<th class="head"><p></p></th>': "<td></td>",  # the corner of a table is no header
    '<div id="search-results"></div>': '<h1>Search</h1>\n<div id="search-results"></div>',
}


def main() -> int:
    """Build the site and check its links; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the directory to write, which is replaced")
    output = parser.parse_args().output
    try:
        pages = build(output)
    except StagingError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    print(f"{len(pages)} pages in {output}: open {output / 'index.html'}")
    return 0


def build(output: Path) -> list[Page]:
    """Write the site into a directory, which is replaced once the new site is whole; return its pages.

    Raises:
        StagingError: See `stage`; a link of the built site is dead; or the directory holds something else than a site.
        subprocess.CalledProcessError: Sphinx has warned; it has printed why.
    """
    target = output
    if target.exists() and not (target / "llms.txt").is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise StagingError(f"{target}: is there, and is no site that this program has built; name another directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".site-", dir=target.parent) as folder:  # beside it, for the rename
        sources, output = Path(folder, "sources"), Path(folder, "site")
        pages, others = stage(sources)
        texts = {page: (sources / page.path).read_text() for page in pages}
        for path, menu in menus(pages).items():
            with (sources / path).open("a") as page_with_menu:
                page_with_menu.write(menu)
        _sphinx("html", sources, output)
        for file in output.rglob("*.html"):
            text = file.read_text()
            for written, labelled in LABELS.items():
                text = text.replace(written, labelled)
            file.write_text(text)
        for page, text in texts.items():
            (output / page.path).write_text(text)
        for path in others.values():  # what the Markdown shows
            (output / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sources / path, output / path)
        (output / f"{DOCSTRINGS}.md").write_text(_docstrings(sources))
        (output / "llms.txt").write_text(index_of(pages, texts))
        if problems := dead_links(output):
            raise StagingError("\n".join(problems))
        shutil.rmtree(target, ignore_errors=True)
        output.rename(target)
    return pages


def _sphinx(builder: str, sources: Path, output: Path, *files: Path) -> None:
    trees = sources.with_name("trees")  # what Sphinx has read, for the second call
    options = ("--quiet", "--fail-on-warning", "--conf-dir", SITE, "--doctree-dir", trees, "--builder", builder)
    subprocess.run((sys.executable, "-m", "sphinx", *options, sources, output, *files), check=True)


def _docstrings(sources: Path) -> str:
    """Return the page of the docstrings as text, because its own Markdown says only where they are."""
    output = sources.with_name("text")
    _sphinx("text", sources, output, sources / f"{DOCSTRINGS}.md")
    return "# Docstrings\n" + (output / f"{DOCSTRINGS}.txt").read_text().partition("*\n\n")[2]


def index_of(pages: list[Page], texts: dict[Page, str]) -> str:
    """Return `llms.txt` (https://llmstxt.org): the pages with what each is about, by section."""
    home = " ".join(texts[pages[0]].split("\n\n")[1].split())
    lines = [
        "# weightcache",
        "",
        f"> {home}",
        "",
        "Each link leads to the Markdown of a page. Begin with the quickstart.",
    ]
    lines += ["", f"- [{title_of(texts[pages[0]])}]({pages[0].path}): the shortest app, and where to go from there"]
    section = ""
    for page in pages[1:]:
        if page.section != section:
            section = page.section
            lines += ["", f"## {section}", ""]
        summary = summary_of(texts[page])
        lines.append(f"- [{title_of(texts[page])}]({page.path})" + (f": {summary}" if summary else ""))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
