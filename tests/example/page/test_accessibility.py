"""The page in a real browser: keyboard, names, narrow screens, contrast and motion."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from browsing import Visit, file, unzipped, visiting
from fakes import Gate
from fashion_crop.models.detection import Box, Detection
from serving import serving

if TYPE_CHECKING:
    pass
from page_server import CLOTHES, KEY, Told, backend_of

# For everybody.


def test_the_keyboard_is_enough(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    expect(visit.state).to_contain_text("Ready")
    # `expect_file_chooser` asks Chromium to report the dialog, and does not wait until Chromium does: a key that is
    # pressed at once can come first, and then nothing is reported. This listener asks long before the first key.
    page.on("filechooser", lambda chooser: None)

    def tab_to(role: Any, name: str) -> None:
        wanted = page.get_by_role(role, name=name) if role else page.get_by_label(name)
        for _ in range(30):
            page.keyboard.press("Tab")
            if wanted.evaluate("element => element === document.activeElement"):
                break
        expect(wanted).to_be_focused()
        assert page.evaluate(
            """() => [document.activeElement, ...document.activeElement.labels ?? []].some((element) =>
                [element, ...element.querySelectorAll("*")].some((each) => {
                    const {outlineStyle, outlineWidth} = getComputedStyle(each);
                    return each.checkVisibility() && outlineStyle !== "none" && parseFloat(outlineWidth) >= 1;
                }))"""
        ), f"nothing shows that {name} has the focus"

    for key in ("Enter", "Space"):
        page.evaluate("document.activeElement.blur()")
        tab_to(None, "Choose a photo")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press(key)
        chooser.value.set_files(file(f"{key}.png"))
        expect(page.get_by_text(f"{key}.png")).to_be_visible()
        expect(page.get_by_role("progressbar")).to_be_hidden()
    expect(visit.cards).to_have_count(2)

    tab_to("slider", "Box threshold")
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    expect(visit.cards).to_have_count(1)
    page.keyboard.press("Home")
    expect(visit.cards).to_have_count(2)

    tab_to("radio", "Transparent")
    with page.expect_response("**/v1/crops"):
        page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="White")).to_be_checked()
    expect(page.get_by_role("progressbar")).to_be_hidden()

    tab_to("button", "Restore defaults")
    with page.expect_response("**/v1/crops"):
        page.keyboard.press("Space")
    expect(page.get_by_role("textbox", name="Look for")).to_be_focused()  # the button is gone
    expect(page.get_by_role("progressbar")).to_be_hidden()

    tab_to("button", "Download zip")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert len(unzipped(download.value, tmp_path)) == 3
    tab_to("link", "Download 00_shirt.png")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "00_shirt.png"
    tab_to("link", "Download 01_pants.png")


def test_the_focus_is_kept_when_what_has_it_goes(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client) as visit:
        visit.choose()
        visit.page.get_by_role("link", name="Download 01_pants.png").focus()
        visit.slide("Box threshold", 0.8)
        visit.page.get_by_role("link", name="Download 01_pants.png").focus()
        expect(visit.cards).to_have_count(1)
        expect(visit.page.get_by_role("heading", name="Garments")).to_be_focused()


def test_everything_has_a_name(visit: Visit) -> None:
    visit.choose()
    expect(visit.cards).to_have_count(2)
    page = visit.page
    for name in ("Photo", "Garments"):
        expect(page.get_by_role("region", name=name)).to_be_visible()
    expect(page.get_by_role("form", name="Options")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text("Fashion crop")
    expect(page.get_by_role("group", name="Background").get_by_role("radio")).to_have_count(4)
    nameless = page.locator("button, a, input, textarea, img, progress, summary").evaluate_all(
        """all => all.filter((each) => each.checkVisibility() && !each.closest("[aria-hidden=true]")
            && !(each.ariaLabel || each.alt || each.labels?.length || each.textContent.trim()))
            .map((each) => each.outerHTML)"""
    )
    assert nameless == []
    ids = page.locator("[id]").evaluate_all("all => all.map(each => each.id)")
    assert len(ids) == len(set(ids))
    pointed = page.locator("[aria-labelledby], [aria-describedby], label[for]").evaluate_all(
        """all => all.flatMap((each) => [each.getAttribute("aria-labelledby"), each.getAttribute("aria-describedby"),
            each.htmlFor].filter(Boolean).join(" ").split(" "))"""
    )
    assert set(pointed) <= set(ids)


@pytest.mark.parametrize("width", [320, 360, 800, 1240])
def test_nothing_is_wider_than_the_screen(browser: Browser, width: int) -> None:
    long = "averylongwordthatnobodywouldeverwritebutsomebodydoes" * 2
    found = [*CLOTHES, Detection(long, 0.5, Box(0, 0, 60, 40))]
    with (
        serving(backend_of(Told(found), versions={long: long})) as client,
        visiting(
            browser, client, expected=[415], viewport={"width": width, "height": 640}, has_touch=width < 800
        ) as visit,
    ):
        expect(visit.state).to_contain_text("Ready")
        assert not visit.scrolls_sideways()
        visit.page.get_by_role("heading", name="Options").click()
        visit.page.locator("#options-open").evaluate("each => { each.open = true }")
        visit.page.get_by_role("textbox", name="Look for").fill(f"shirt, pants, {long}")
        visit.choose(f"{long}.png")
        expect(visit.cards).to_have_count(3)
        visit.page.locator("#server").evaluate("each => { each.open = true }")
        visit.page.get_by_role("radio", name="Colour").check()
        assert not visit.scrolls_sideways()
        visit.choose(f"{long}.txt", b"text", "text/plain")
        expect(visit.alert).to_contain_text(long)
        assert not visit.scrolls_sideways()
        fingers = visit.page.locator("button:visible, .card a").evaluate_all(
            "all => all.map(each => Math.min(each.offsetWidth, each.offsetHeight))"
        )
        assert min(fingers) >= (44 if width < 800 else 36)


def test_a_phone_has_the_crops_right_below_the_photo(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, viewport={"width": 360, "height": 740}) as visit:
        visit.choose()
        expect(visit.cards).to_have_count(2)
        expect(visit.page.get_by_role("slider", name="Box threshold")).to_be_hidden()
        visit.page.get_by_role("heading", name="Options").click()
        expect(visit.page.get_by_role("slider", name="Box threshold")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser: Browser, scheme: str) -> None:
    refused: list[int] = [401, 415, 422]
    with (
        serving(backend_of(Told()), api_key=KEY) as client,
        visiting(browser, client, expected=refused, color_scheme=scheme, reduced_motion="reduce") as visit,
    ):
        expect(visit.state).to_contain_text("Ready")
        seen = visit.contrasts()
        visit.choose()
        expect(visit.page.get_by_label("API key", exact=True)).to_be_focused()
        seen |= visit.contrasts()
        visit.page.get_by_label("API key", exact=True).fill(KEY)
        visit.page.keyboard.press("Enter")
        expect(visit.cards).to_have_count(2)
        visit.page.get_by_text("This server was ready").click()
        visit.page.get_by_role("radio", name="Colour").check()
        visit.cards.nth(1).hover()
        expect(visit.page.locator(".tag.lit")).to_have_count(1)
        seen |= visit.contrasts()
        visit.page.get_by_role("textbox", name="Look for").fill(",")
        visit.page.get_by_role("textbox", name="Look for").press("Enter")
        expect(visit.page.locator("#prompts-problem")).not_to_be_empty()
        seen |= visit.contrasts()
        ground = visit.page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert {"Drop a photo here", "Choose a photo", "Use this key", "shirt", "pants 0.62", "Options"} <= set(seen)
    assert {text: ratio for text, ratio in seen.items() if ratio < 4.5} == {}
    red, *_ = (int(each) for each in re.findall(r"\d+", ground))
    assert (red < 64) == (scheme == "dark")


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_for_who_does_not_want_it(browser: Browser, motion: str) -> None:
    gate = Gate()
    with serving(backend_of(Told(gate=gate))) as client, visiting(browser, client, reduced_motion=motion) as visit:
        try:
            visit.choose()
            assert gate.entered.acquire(timeout=20)
            expect(visit.said).to_have_text("Looking for garments")
            moving = visit.page.evaluate("document.getAnimations().length")
        finally:
            gate.opened.set()
        expect(visit.cards).to_have_count(2)
    assert (moving > 0) == (motion == "no-preference")
