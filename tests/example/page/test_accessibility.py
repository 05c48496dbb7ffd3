"""The page in a real browser: keyboard, names, narrow screens, contrast and motion."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from browsing import Visit, file, unzipped, visiting
from fakes import Gate
from fashion_crop.models.detection import Box, Detection
from page_server import CLOTHES, KEY, Told, backend_of
from serving import serving

# For everybody.


def test_the_keyboard_is_enough(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    expect(visit.state).to_contain_text("Ready")
    # `expect_file_chooser` asks Chromium to report the dialog, and does not wait until Chromium does: a key that is
    # pressed at once can come first, and then nothing is reported. This listener asks long before the first key.
    page.on("filechooser", lambda chooser: None)

    def tab_to(role: Any, name: str | re.Pattern[str]) -> None:
        wanted = page.get_by_role(role, name=name) if role else page.get_by_label(name)
        for _ in range(40):
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
        tab_to(None, "Choose photos")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press(key)
        chooser.value.set_files(file(f"{key}.png"))
        expect(visit.row(f"{key}.png")).to_contain_text("2 garments")
    expect(visit.cards).to_have_count(2)

    tab_to("button", re.compile("^Enter.png"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("img", name="The photo Enter.png")).to_be_visible()
    tab_to("button", "Remove Enter.png")
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name=re.compile("^Space.png"))).to_be_focused()

    tab_to("slider", "Strictness")
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    expect(visit.cards).to_have_count(1)
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    expect(visit.cards).to_have_count(2)

    for name, other in {"Transparent": "White", "Original": "1:1", "PNG": "WebP"}.items():
        tab_to("radio", name)
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("radio", name=other, exact=True)).to_be_checked()

    page.get_by_text("Advanced").focus()
    page.keyboard.press("Enter")
    tab_to("slider", "Overlap")
    tab_to("button", "Restore defaults")
    page.keyboard.press("Space")
    expect(page.get_by_role("slider", name="Strictness")).to_be_focused()  # the button is gone
    expect(page.get_by_role("radio", name="Transparent")).to_be_checked()

    tab_to("button", "Download zip")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert len(unzipped(download.value, tmp_path)) == 3
    tab_to("button", "Download Space_01_shirt.png")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "Space_01_shirt.png"
    tab_to("button", "Download Space_02_pants.png")


def test_the_focus_is_kept_when_what_has_it_goes(visit: Visit) -> None:
    visit.choose()
    visit.page.get_by_role("button", name="Download photo_02_pants.png").focus()
    visit.page.get_by_role("slider", name="Strictness").evaluate(
        "each => { each.value = 0.8; each.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    expect(visit.cards).to_have_count(1)
    expect(visit.page.get_by_role("heading", name="Garments")).to_be_focused()


def test_the_focus_stays_where_a_crop_is_drawn_again(visit: Visit) -> None:
    visit.choose()
    button = visit.page.get_by_role("button", name="Download photo_02_pants")
    button.focus()
    visit.page.get_by_role("radio", name="White").evaluate("each => each.click()")
    expect(visit.page.locator("#list")).to_have_class("opaque")
    expect(button).to_be_focused()


def test_everything_has_a_name(visit: Visit) -> None:
    visit.choose_all(file("one.png"), file("two.png"))
    expect(visit.page.get_by_text("2 of 2 done")).to_be_visible()
    expect(visit.cards).to_have_count(2)
    visit.show_options()
    page = visit.page
    for name in ("Photo", "Photos", "Garments"):
        expect(page.get_by_role("region", name=name, exact=True)).to_be_visible()
    expect(page.get_by_role("form", name="Options")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text("Fashion crop")
    for name, choices in {"Background": 4, "Shape": 3, "Format": 3}.items():
        expect(page.get_by_role("group", name=name).get_by_role("radio")).to_have_count(choices)
    nameless = page.locator("button, a, input, textarea, img, canvas, progress, summary").evaluate_all(
        """all => all.filter((each) => each.checkVisibility() && !each.closest("[aria-hidden=true], .thumbnail")
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
        visiting(browser, client, viewport={"width": width, "height": 640}, has_touch=width < 800) as visit,
    ):
        expect(visit.state).to_contain_text("Ready")
        assert not visit.scrolls_sideways()
        visit.show_options()
        visit.page.get_by_role("textbox", name="Look for").fill(f"shirt, pants, {long}")
        visit.choose_all(file(f"{long}.png"), file(f"{long}.txt", b"text"))
        expect(visit.cards).to_have_count(3)
        visit.page.locator("#server").evaluate("each => { each.open = true }")
        visit.option("Colour")
        visit.option("JPEG")
        expect(visit.page.get_by_text("Refused")).to_be_visible()
        assert not visit.scrolls_sideways()
        fingers = visit.page.locator("button:visible, label.button:visible").evaluate_all(
            "all => all.map(each => Math.min(each.offsetWidth, each.offsetHeight))"
        )
        assert min(fingers) >= (44 if width < 800 else 36)


def test_a_phone_has_the_crops_right_below_the_photo(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, viewport={"width": 360, "height": 740}) as visit:
        visit.choose()
        expect(visit.cards).to_have_count(2)
        expect(visit.page.get_by_role("slider", name="Strictness")).to_be_hidden()
        visit.page.get_by_role("heading", name="Options").click()
        expect(visit.page.get_by_role("slider", name="Strictness")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser: Browser, scheme: str) -> None:
    refused: list[int] = [401, 422]
    with (
        serving(backend_of(Told()), api_key=KEY) as client,
        visiting(browser, client, expected=refused, color_scheme=scheme, reduced_motion="reduce") as visit,
    ):
        expect(visit.state).to_contain_text("Ready")
        seen = visit.contrasts()
        visit.choose_all(file("one.png"), file("notes.txt", b"text"))
        expect(visit.page.get_by_label("API key", exact=True)).to_be_focused()
        seen |= visit.contrasts()
        visit.page.get_by_label("API key", exact=True).fill(KEY)
        visit.page.keyboard.press("Enter")
        expect(visit.cards).to_have_count(2)
        visit.page.get_by_text("This server was ready").click()
        visit.option("Colour")
        visit.cards.nth(1).hover()
        expect(visit.page.locator(".tag.lit")).to_have_count(1)
        seen |= visit.contrasts()
        visit.page.get_by_role("textbox", name="Look for").fill(",")
        visit.page.get_by_role("textbox", name="Look for").press("Enter")
        expect(visit.page.locator("#prompts-problem")).not_to_be_empty()
        seen |= visit.contrasts()
        ground = visit.page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    expected = {"Drop photos here", "Choose photos", "Try a photo", "Use this key", "shirt", "pants 0.62", "Options"}
    assert expected | {"Refused", "Waiting", "2 garments", "Failed"} <= set(seen)
    assert {text: ratio for text, ratio in seen.items() if ratio < 4.5} == {}
    red, *_ = (int(each) for each in re.findall(r"\d+", ground))
    assert (red < 64) == (scheme == "dark")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, scheme: str, width: int) -> None:
    gate = Gate()
    gate.opened.set()
    with (
        serving(backend_of(Told(gate=gate)), api_key=KEY) as client,
        visiting(
            browser,
            client,
            expected=[401, 422, 503],
            color_scheme=scheme,
            reduced_motion="reduce",
            viewport={"width": width, "height": 800},
        ) as visit,
    ):
        page = visit.page
        expect(visit.state).to_contain_text("Ready")
        found = {"empty": visit.problems()}
        visit.choose()
        expect(page.get_by_label("API key", exact=True)).to_be_focused()
        found["key"] = visit.problems()
        page.get_by_label("API key", exact=True).fill(KEY)
        page.keyboard.press("Enter")
        expect(visit.cards).to_have_count(2)
        found["one photo"] = visit.problems()
        visit.show_options()
        visit.option("JPEG")
        visit.option("Colour")
        page.get_by_text("This server was ready").click()
        found["all that opens"] = visit.problems()
        gate.opened.clear()
        try:
            visit.choose_all(file("one.png"), file("two.png"), file("IMG.HEIC", b"\0\0\0\x18ftypheic"))
            expect(visit.row("one.png")).to_contain_text("Looking for garments")
            expect(visit.row("IMG.HEIC")).to_contain_text("Refused")
            found["a queue"] = visit.problems()
            page.get_by_role("button", name="Cancel one.png").click()
            expect(visit.row("one.png")).to_contain_text("Cancelled")
        finally:
            gate.opened.set()
        expect(visit.row("two.png")).to_contain_text("2 garments")
        page.route("**/v1/masks", lambda route: route.fulfill(status=503, headers={"Retry-After": "60"}, json={}))
        visit.choose("busy.png")
        expect(visit.row("busy.png")).to_contain_text("tries again automatically")
        found["cancelled and busy"] = visit.problems()
        page.get_by_role("button", name="Cancel busy.png").click()
        page.unroute("**/v1/masks")
        page.get_by_role("textbox", name="Look for").fill(",")
        page.get_by_role("textbox", name="Look for").press("Enter")
        expect(page.locator("#prompts-problem")).not_to_be_empty()
        page.evaluate("document.dispatchEvent(new DragEvent('drop', {dataTransfer: new DataTransfer()}))")
        expect(visit.alert).to_contain_text("This is not a file")
        found["errors"] = visit.problems()
    assert {state: problems for state, problems in found.items() if problems} == {}


def test_what_is_chosen_shows_without_colours_of_the_page(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, forced_colors="active") as visit:
        visit.choose_all(file("one.png"), file("two.png"))
        expect(visit.page.get_by_text("2 of 2 done")).to_be_visible()
        outlined = """all => all.map((each) => getComputedStyle(each).outlineStyle !== "none")"""
        assert visit.rows.evaluate_all(outlined) == [True, False]
        labels = visit.page.get_by_role("group", name="Shape").locator("label")
        assert labels.evaluate_all(outlined) == [True, False, False]


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_for_who_does_not_want_it(browser: Browser, motion: str) -> None:
    gate = Gate()
    with serving(backend_of(Told(gate=gate))) as client, visiting(browser, client, reduced_motion=motion) as visit:
        try:
            visit.choose()
            assert gate.entered.acquire(timeout=20)
            expect(visit.said).to_have_text("photo.png: Looking for garments")
            moving = visit.page.evaluate("document.getAnimations().length")
        finally:
            gate.opened.set()
        expect(visit.cards).to_have_count(2)
    assert (moving > 0) == (motion == "no-preference")
