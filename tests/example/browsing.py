"""A browser that looks at the page, and notes whatever should not happen there."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import axe_playwright_python
from playwright.sync_api import Locator, Page, expect

from serving import photo

if TYPE_CHECKING:
    from collections.abc import Sequence

    import httpx
    from playwright.sync_api import Browser, Download, FilePayload

expect.set_options(timeout=20_000)
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")

# What has text of its own and can be seen, with the colours of the text and of all that lies beneath it.
CONTRASTS = """() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const over = (colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((each) => each / 255);
    };
    const light = (colour) => {
        const linear = (each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4;
        const [red, green, blue] = colour.map(linear);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const seen = [...document.querySelectorAll("body *")].filter((element) =>
        [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
        && element.checkVisibility({visibilityProperty: true})
        && !element.closest("script, style, template, noscript, .hidden, :disabled"));
    return seen.map((element) => {
        const beneath = [];
        for (let each = element; each; each = each.parentElement) {
            beneath.unshift(getComputedStyle(each).backgroundColor);
        }
        const ground = ["white", ...beneath], text = [...ground, getComputedStyle(element).color];
        const [low, high] = [light(over(ground)), light(over(text))].sort((one, other) => one - other);
        return [element.textContent.trim().slice(0, 40), (high + 0.05) / (low + 0.05)];
    });
}"""


@dataclass
class Visit:
    """One look at the page.

    Attributes:
        page: The page.
        expected: Statuses of refusals that belong to the test. The browser itself logs each one as an error.
        posts: How many photos the page has sent.
        wrong: Errors on the console, exceptions, and requests to anybody but the server.
    """

    page: Page
    expected: tuple[int, ...]
    posts: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def watch(self, origin: str) -> None:
        def on_console(kind: str, text: str) -> None:
            refusal = re.match(r"Failed to load resource: the server responded with a status of (\d+)", text)
            if kind in ("error", "warning") and not (refusal and int(refusal[1]) in self.expected):
                self.wrong.append(f"{kind}: {text}")

        def on_request(method: str, url: str) -> None:
            if not url.startswith((f"{origin}/", f"blob:{origin}/", "data:")):
                self.wrong.append(f"request: {url}")
            if method == "POST":
                self.posts.append(url)

        self.page.on("console", lambda message: on_console(message.type, message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(f"exception: {error}"))
        self.page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: on_request(request.method, request.url))

    def choose(self, name: str = "photo.png", data: bytes | None = None, kind: str = "image/png") -> None:
        self.choose_all(file(name, data, kind))

    def choose_all(self, *files: FilePayload) -> None:
        self.page.get_by_label("Choose photos").set_input_files(files)

    def stop_clock(self) -> None:
        """Stop the clock of the page: from now on only ``page.clock.run_for`` moves it.

        A clock that is installed and not stopped follows the real one too. On a busy machine it is ahead of the test.
        """
        self.page.clock.install(time=0)
        # Playwright refuses a time that is past, so this is later than the slowest machine comes here.
        self.page.clock.pause_at(3600)

    def labels(self) -> list[str]:
        return self.cards.locator(".label").all_text_contents()

    def slide(self, name: str, value: float) -> None:
        self.page.get_by_role("slider", name=name).fill(str(value))

    def show_options(self) -> None:
        """Open all of the form, of which a narrow screen shows a heading."""
        self.page.locator("#options details").evaluate_all("all => all.forEach((each) => { each.open = true })")

    def option(self, name: str) -> None:
        self.page.get_by_role("radio", name=name, exact=True).check()

    @property
    def rows(self) -> Locator:
        return self.page.get_by_role("region", name="Photos").get_by_role("listitem")

    def row(self, name: str) -> Locator:
        return self.rows.filter(has=self.page.get_by_role("button", name=re.compile(f"^{re.escape(name)} ")))

    @property
    def cards(self) -> Locator:
        return self.page.get_by_role("region", name="Garments").get_by_role("listitem")

    @property
    def alert(self) -> Locator:
        return self.page.get_by_role("alert")

    @property
    def state(self) -> Locator:
        return self.page.get_by_role("banner").get_by_role("status")

    @property
    def said(self) -> Locator:
        """Return what a screen reader says of the photos."""
        return self.page.locator("#status")

    def problems(self) -> list[str]:
        """Return what axe-core finds wrong, each rule with the elements that break it."""
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{rule['id']}: {node['html'][:200]} {node['failureSummary']}"
            for rule in found["violations"]
            for node in rule["nodes"]
        ]

    def contrasts(self) -> dict[str, float]:
        return dict(self.page.evaluate(CONTRASTS))

    def scrolls_sideways(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")


def file(name: str = "photo.png", data: bytes | None = None, kind: str = "image/png") -> FilePayload:
    return {"name": name, "mimeType": kind, "buffer": photo() if data is None else data}


@contextmanager
def visiting(
    browser: Browser, client: httpx.Client, *, expected: Sequence[int] = (), script: str = "", **options: Any
) -> Iterator[Visit]:
    """Open the page; nothing that should not happen may have happened in the end.

    Args:
        expected: See `Visit`.
        script: What runs before the page's own script.
        options: Of the browser, such as ``color_scheme``.
    """
    origin = str(client.base_url).rstrip("/")
    with browser.new_context(**options) as context:
        context.set_default_timeout(20_000)
        visit = Visit(context.new_page(), tuple(expected))
        visit.watch(origin)
        if script:
            visit.page.add_init_script(script)
        visit.page.goto(origin)
        yield visit
        assert visit.wrong == []


def unzipped(download: Download, folder: Path) -> Mapping[str, bytes]:
    download.save_as(folder / "saved.zip")
    return contents((folder / "saved.zip").read_bytes())


def contents(data: bytes) -> Mapping[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert {each.compress_type for each in archive.infolist()} == {zipfile.ZIP_STORED}
        return {name: archive.read(name) for name in archive.namelist()}
