"""The built site in a browser: size, offline, keyboard, accessibility, search, light and dark; and its Markdown."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

import build_site
from stage_pages import REPOSITORY, Staged, StagingError
from stage_pages import Page as PageOfSite
from weightcache import ensure, errors

expect.set_options(timeout=60_000)  # ms; a busy machine takes longer than the usual five seconds
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
LIMIT = 500_000  # bytes of the home page with all that it loads
WIDTHS = (1280, 390)
PAGES = ("index", "quickstart", "reference/cli", "reference/docstrings", "benchmarks", "decisions/index", "search")
chromium = shutil.which("chromium")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("site") / "site"
    run = subprocess.run(
        (sys.executable, "docs/site/build_site.py", "--output", output), cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.endswith("open " + str(output / "index.html") + "\n")
    return output


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        assert chromium is not None, "tests/prerequisites.sh installs it"
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of a browser, 1280 pixels wide and light unless the test has other parameters."""
    given = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    context = browser.new_context(
        viewport={"width": given.get("width", 1280), "height": 900},
        color_scheme=given.get("scheme", "light"),
        reduced_motion="reduce",
    )
    context.set_default_timeout(60_000)
    yield context.new_page()
    context.close()


def violations(page: Page, *but: str) -> list[tuple[str, list[str]]]:
    """Return what axe-core finds, by its rules but some."""
    if not page.evaluate("typeof axe === 'object'"):
        page.add_script_tag(path=AXE)
    rules = {rule: {"enabled": False} for rule in but}
    found = page.evaluate("(rules) => axe.run({rules}).then((result) => result.violations)", rules)
    return [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found]


def test_the_home_page_is_small_and_loads_nothing_from_elsewhere(page: Page, address: str) -> None:
    bodies: list[int] = []
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("response", lambda response: bodies.append(len(response.body())))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address, wait_until="networkidle")
    assert wrong == []
    assert [url for url in asked if not url.startswith((f"{address}/", "data:"))] == []
    assert len(bodies) > 5
    assert sum(bodies) < LIMIT


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_accessible_in_each_scheme_and_width(page: Page, address: str, scheme: str, width: int) -> None:
    for name in PAGES:
        page.goto(f"{address}/{name}.html")
        assert violations(page) == [], name


def test_every_page_is_accessible_and_none_scrolls_sideways(page: Page, address: str, site: Path) -> None:
    page.set_viewport_size({"width": WIDTHS[1], "height": 900})
    names = sorted(file.relative_to(site).as_posix() for file in site.rglob("*.html"))
    assert len(names) > 60
    for name in names:
        page.goto(f"{address}/{name}")
        assert violations(page, "color-contrast") == [], name  # it takes half of the time; PAGES have all colours
        assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[1], name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_switch_of_the_scheme_takes_the_pictures_along(page: Page, address: str, scheme: str) -> None:
    page.goto(address)
    picture = page.locator("article img").first
    before = picture.screenshot()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Toggle Light / Dark / Auto color theme").locator("visible=true").first.click()
    other = {"light": "dark", "dark": "light"}[scheme]
    expect(page.locator("body")).to_have_attribute("data-theme", re.compile("light|dark"))
    if page.locator("body").get_attribute("data-theme") != other:  # the first click may only confirm what was automatic
        page.get_by_role("button", name="Toggle Light / Dark / Auto color theme").locator("visible=true").first.click()
    expect(page.locator("body")).to_have_attribute("data-theme", other)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != ground
    assert picture.evaluate("element => getComputedStyle(element).colorScheme") == other
    assert picture.screenshot() != before


def test_the_search_finds_a_page(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("textbox", name="Search").fill("LockTimeoutError")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=LockTimeoutError*")
    result = page.locator("#search-results a[href*='reference/errors']").first
    expect(result).to_be_visible()
    result.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Errors")


def test_the_keyboard_reaches_the_content(page: Page, address: str) -> None:
    page.goto(f"{address}/quickstart.html")
    page.keyboard.press("Tab")
    skip = page.locator(":focus")
    expect(skip).to_have_attribute("href", "#furo-main-content")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#furo-main-content$"))
    code = page.locator("pre").first
    code.focus()
    expect(code).to_be_focused()  # so that the arrow keys scroll what is wider than the page


@pytest.mark.parametrize("width", WIDTHS)
def test_the_keyboard_meets_nothing_that_is_out_of_sight(page: Page, address: str, width: int) -> None:
    page.goto(f"{address}/quickstart.html")
    hidden = """() => {
        const box = document.activeElement.getBoundingClientRect();
        return box.right <= 0 || box.left >= innerWidth ? document.activeElement.outerHTML.slice(0, 200) : "";
    }"""
    met = []
    for _ in range(60):
        page.keyboard.press("Tab")
        assert page.evaluate(hidden) == ""
        met.append(page.evaluate("document.activeElement.className"))
    assert ("nav-overlay-icon" in met) == (width < 1000)


def test_the_keyboard_opens_the_menu_of_a_narrow_page(page: Page, address: str) -> None:
    page.set_viewport_size({"width": WIDTHS[1], "height": 900})
    page.goto(f"{address}/quickstart.html")
    drawer = page.get_by_role("complementary", name="Pages")
    expect(drawer).to_be_hidden()
    button = page.get_by_role("button", name="Toggle site navigation sidebar")
    for key in ("Space", "Enter", "Space"):
        button.focus()
        page.keyboard.press(key)
        expect(button).to_have_attribute("aria-expanded", "false" if key == "Enter" else "true")
    expect(drawer).to_be_visible()
    assert violations(page) == []
    link = drawer.get_by_role("link", name="Glossary")
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/glossary.html")


def test_code_has_a_copy_button(page: Page, address: str) -> None:
    page.goto(address)
    button = page.get_by_role("button", name="Copy")
    assert button.count() == page.locator("article pre").count() > 0
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button.first.click()
    copied = "navigator.clipboard.readText().then((text) => text.startsWith('import modal\\nfrom weightcache.modal'))"
    page.wait_for_function(copied)


def test_each_page_is_there_as_markdown(site: Path) -> None:
    own = {"genindex.html", "search.html", "py-modindex.html"}
    for file in site.rglob("*.html"):
        if file.name in own:
            continue
        text = file.read_text()
        markdown = file.with_suffix(".md")
        assert markdown.read_text().startswith("# "), markdown
        assert f'<link rel="alternate" type="text/markdown" href="{markdown.name}">' in text
        assert "{toctree}" not in markdown.read_text()


def test_llms_txt_lists_every_page_once(site: Path) -> None:
    text = (site / "llms.txt").read_text()
    assert text.startswith("# weightcache\n\n> ")
    listed = re.findall(r"^- \[.+?\]\((.+?)\)", text, re.MULTILINE)
    there = {file.relative_to(site).as_posix() for file in site.rglob("*.md")}
    assert len(set(listed)) == len(listed)
    assert set(listed) == there


def test_the_docstrings_are_written_out(site: Path) -> None:
    for file in ("reference/docstrings.html", "reference/docstrings.md"):
        text = (site / file).read_text()
        assert " ".join(ensure.__doc__.splitlines()[0].split()) in re.sub(r"\s+", " ", re.sub("<.*?>", "", text)), file
        assert [name for name in errors.__all__ if name not in text] == [], file


def stage_home(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def staged(target: Path) -> Staged:
        (target / "reference").mkdir(parents=True)
        (target / "index.md").write_text(f"# Home\n\n{text}\n")
        (target / "reference/docstrings.md").write_text("---\norphan: true\n---\n\n# Docstrings\n")
        return Staged([PageOfSite("docs/index.md", "index.md", "")], {})

    monkeypatch.setattr(build_site, "stage", staged)


def test_a_warning_ends_the_build_and_the_old_site_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_home(monkeypatch, "Text.")
    build_site.build(tmp_path / "out/site")
    assert "Text." in (tmp_path / "out/site/index.html").read_text()
    stage_home(monkeypatch, "[to nothing](#nothing)")
    with pytest.raises(subprocess.CalledProcessError):
        build_site.build(tmp_path / "out/site")
    stage_home(monkeypatch, '<a href="nothing.html">to nothing</a>')
    with pytest.raises(StagingError, match=r"index.html: nothing.html leads to no file"):
        build_site.build(tmp_path / "out/site")
    assert "Text." in (tmp_path / "out/site/index.html").read_text()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["site"]


def test_only_a_site_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    for output in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(StagingError, match="is no site that this program has built"):
            build_site.build(output)
    assert (tmp_path / "thesis.txt").read_text() == "years"
