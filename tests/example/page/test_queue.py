"""The page in a real browser: several photos, one sent at a time, each with its state and what can be done about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from browsing import Visit, file, visiting
from fakes import Gate
from page_server import Told, backend_of, full
from serving import photo, serving

if TYPE_CHECKING:
    from playwright.sync_api import FilePayload


def photos(*names: str) -> list[FilePayload]:
    return [file(name, photo(60 + 2 * number, 40)) for number, name in enumerate(names)]


@contextmanager
def gated(browser: Browser, **options: Any) -> Iterator[tuple[Visit, Gate]]:
    """A page whose server looks at a photo until the gate opens."""
    gate = Gate()
    with serving(backend_of(Told(gate=gate))) as client, visiting(browser, client, **options) as visit:
        expect(visit.state).to_contain_text("Ready")
        try:
            yield visit, gate
        finally:
            gate.opened.set()


# States.


def test_photos_are_worked_on_one_at_a_time(browser: Browser) -> None:
    with gated(browser) as (visit, gate):
        visit.choose_all(*photos("one.png", "two.png", "three.png"))
        assert gate.entered.acquire(timeout=20)
        expect(visit.row("one.png")).to_contain_text("Looking for garments")
        expect(visit.row("two.png")).to_contain_text("Waiting")
        expect(visit.row("three.png")).to_contain_text("Waiting")
        expect(visit.page.get_by_text("0 of 3 done")).to_be_visible()
        expect(visit.page.get_by_role("progressbar", name="Progress of all photos")).to_be_visible()
        expect(visit.page.get_by_role("progressbar", name="Progress of one.png")).to_be_visible()
        expect(visit.page.get_by_role("progressbar", name="Progress of two.png")).to_be_hidden()
        assert len(visit.posts) == 1
        gate.opened.set()
        expect(visit.page.get_by_text("3 of 3 done")).to_be_visible()
        expect(visit.page.get_by_role("progressbar")).to_have_count(0)
        for name in ("one.png", "two.png", "three.png"):
            expect(visit.row(name)).to_contain_text("2 garments")
        assert len(visit.posts) == 3


HELD = """window.XMLHttpRequest = class extends XMLHttpRequest {  // each step waits until the test lets it go on
    send(data) {
        this.upload.onprogress({loaded: 4, total: 10});
        window.goOn = () => super.send(data);
    }
    set onload(load) {
        super.onload = () => {
            this.onprogress({loaded: 7, total: 10, lengthComputable: true});
            window.goOn = load;
        };
    }
}"""


def test_what_is_sent_and_what_comes_has_a_percentage(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, script=HELD) as visit:
        visit.choose()
        expect(visit.row("photo.png")).to_contain_text("Sending, 40 %")
        expect(visit.said).to_have_text("photo.png: Sending the photo")
        progress = visit.page.get_by_role("progressbar", name="Progress of photo.png")
        assert progress.evaluate("each => each.value") == 0.4
        visit.page.evaluate("goOn()")
        expect(visit.row("photo.png")).to_contain_text("Receiving, 70 %")
        expect(visit.said).to_have_text("photo.png: Receiving the masks")
        assert progress.evaluate("each => each.value") == 0.7
        visit.page.evaluate("goOn()")
        expect(visit.cards).to_have_count(2)
        expect(progress).to_have_count(0)


def test_seconds_are_counted_while_the_models_look(browser: Browser) -> None:
    with gated(browser) as (visit, gate):
        visit.stop_clock()
        visit.choose()
        assert gate.entered.acquire(timeout=20)
        expect(visit.said).to_have_text("photo.png: Looking for garments")
        visit.page.clock.run_for(12_000)
        expect(visit.row("photo.png")).to_contain_text("Looking for garments, 12 s")
        expect(visit.page.get_by_role("progressbar")).not_to_have_attribute("value", re.compile(".*"))


@pytest.mark.parametrize("patient", [True, False])
def test_when_the_queue_of_the_server_is_full_the_photo_is_tried_again(browser: Browser, patient: bool) -> None:
    gate = Gate()
    with full(gate) as client, visiting(browser, client, expected=[503]) as visit:
        expect(visit.state).to_contain_text("Ready")
        visit.stop_clock()
        visit.choose_all(*photos("one.png", "two.png"))
        expect(visit.row("one.png")).to_contain_text("Waiting for the server, tries again automatically")
        expect(visit.row("one.png")).to_contain_text("try again in 5 seconds")
        expect(visit.row("two.png")).to_contain_text("Waiting")
        gate.opened.set()
        done = visit.row("one.png").get_by_text("2 garments")
        while not done.count():  # the request before can still be there
            with visit.page.expect_response("**/v1/masks"):
                if patient:
                    visit.page.clock.run_for(5000)
                else:
                    visit.row("one.png").get_by_role("button", name="Try now").click()
            expect(done.or_(visit.row("one.png").get_by_text("tries again automatically"))).to_be_visible()
        expect(visit.cards).to_have_count(2)


def test_a_photo_that_is_tried_again_can_be_given_up(browser: Browser) -> None:
    gate = Gate()
    with full(gate) as client, visiting(browser, client, expected=[503]) as visit:
        expect(visit.state).to_contain_text("Ready")
        visit.stop_clock()
        visit.choose()
        expect(visit.row("photo.png")).to_contain_text("tries again automatically")
        visit.page.get_by_role("button", name="Cancel photo.png").click()
        expect(visit.row("photo.png")).to_contain_text("Cancelled")
        asked = []
        visit.page.on("request", lambda request: asked.append(request.url))
        visit.page.clock.run_for(60_000)
        assert asked == []


# What can be done.


def test_a_photo_of_the_list_is_shown_with_its_boxes_and_crops(visit: Visit) -> None:
    visit.choose_all(file("one.png"), file("turned.png", photo(40, 60)))
    expect(visit.page.get_by_text("2 of 2 done")).to_be_visible()
    first, second = (visit.page.get_by_role("button", name=re.compile(f"^{name}.png")) for name in ("one", "turned"))
    expect(first).to_have_attribute("aria-current", "true")
    expect(visit.page.get_by_role("img", name="The photo one.png")).to_be_visible()
    second.click()
    expect(second).to_have_attribute("aria-current", "true")
    expect(first).to_have_attribute("aria-current", "false")
    expect(visit.page.get_by_role("img", name="The photo turned.png")).to_be_visible()
    expect(visit.page.get_by_text(re.compile("40 . 60 pixels"))).to_be_visible()
    expect(visit.page.locator(".box")).to_have_count(2)
    expect(visit.page.get_by_role("button", name="Download turned_01_shirt.png")).to_be_visible()
    assert len(visit.posts) == 2


def test_the_selected_photo_comes_first(browser: Browser) -> None:
    with gated(browser) as (visit, gate):
        visit.choose_all(*photos("one.png", "two.png", "three.png"))
        assert gate.entered.acquire(timeout=20)
        visit.page.get_by_role("button", name=re.compile("^three.png")).click()
        visit.page.get_by_role("button", name="Cancel one.png").click()
        expect(visit.row("three.png")).to_contain_text("Looking for garments")
        expect(visit.row("two.png")).to_contain_text("Waiting")


def test_what_runs_can_be_cancelled_and_tried_again(browser: Browser) -> None:
    with gated(browser) as (visit, gate):
        visit.choose()
        assert gate.entered.acquire(timeout=20)
        expect(visit.page.get_by_role("region", name="Garments")).to_have_attribute("aria-busy", "true")
        with visit.page.expect_event("requestfailed") as ended:
            visit.page.get_by_role("button", name="Cancel photo.png").click()
        assert ended.value.failure == "net::ERR_ABORTED"
        expect(visit.row("photo.png")).to_contain_text("Cancelled")
        expect(visit.said).to_have_text("photo.png: Cancelled")
        expect(visit.page.get_by_role("region", name="Garments")).to_have_attribute("aria-busy", "false")
        gate.opened.set()
        visit.page.get_by_role("button", name="Try again").click()
        expect(visit.cards).to_have_count(2)
        expect(visit.page.get_by_role("button", name=re.compile("^photo.png"))).to_be_focused()  # the button is gone


def test_a_photo_is_removed(browser: Browser) -> None:
    with gated(browser) as (visit, gate):
        visit.choose_all(*photos("one.png", "two.png", "three.png"))
        assert gate.entered.acquire(timeout=20)
        visit.page.get_by_role("button", name="Remove two.png").click()
        expect(visit.rows).to_have_count(2)
        expect(visit.page.get_by_role("button", name=re.compile("^three.png"))).to_be_focused()
        gate.opened.set()
        expect(visit.page.get_by_text("2 of 2 done")).to_be_visible()
        visit.page.get_by_role("button", name="Remove one.png").click()
        expect(visit.page.get_by_role("img", name="The photo three.png")).to_be_visible()
        expect(visit.cards).to_have_count(2)
        visit.page.get_by_role("button", name="Remove three.png").click()
        expect(visit.page.get_by_text("Drop photos here")).to_be_visible()
        expect(visit.page.get_by_label("Choose photos")).to_be_focused()
        expect(visit.cards).to_have_count(0)
        expect(visit.page.get_by_role("region", name="Photos")).to_have_count(0)
        assert len(visit.posts) == 2


def test_all_are_stopped_and_cleared(browser: Browser) -> None:
    with gated(browser) as (visit, gate):
        visit.choose_all(*photos("one.png", "two.png"))
        assert gate.entered.acquire(timeout=20)
        visit.page.get_by_role("button", name="Stop").click()
        for name in ("one.png", "two.png"):
            expect(visit.row(name)).to_contain_text("Cancelled")
        assert len(visit.posts) == 1
        expect(visit.page.get_by_role("button", name=re.compile("^one.png"))).to_be_focused()
        visit.page.get_by_role("button", name="Clear").click()
        expect(visit.page.get_by_text("Drop photos here")).to_be_visible()
        expect(visit.page.get_by_label("Choose photos")).to_be_focused()


def test_more_photos_come_while_one_is_worked_on(browser: Browser) -> None:
    with gated(browser) as (visit, gate):
        visit.choose("one.png")
        assert gate.entered.acquire(timeout=20)
        visit.choose("two.png")
        expect(visit.row("two.png")).to_contain_text("Waiting")
        expect(visit.page.get_by_role("img", name="The photo two.png")).to_be_visible()
        expect(visit.row("one.png")).to_contain_text("Looking for garments")
        gate.opened.set()
        expect(visit.cards).to_have_count(2)
        expect(visit.page.get_by_text("2 of 2 done")).to_be_visible()


def test_a_photo_that_fails_does_not_stop_the_others(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, expected=[400]) as visit:
        visit.choose_all(file("one.png"), file("damaged.png", photo()[:60]), file("three.png"))
        expect(visit.page.get_by_text("2 of 3 done, 1 failed")).to_be_visible()
        expect(visit.row("damaged.png")).to_contain_text("Refused")
        expect(visit.row("damaged.png")).to_contain_text("the photo is damaged, cut off")
        expect(visit.row("three.png")).to_contain_text("2 garments")
        visit.page.get_by_role("button", name=re.compile("^damaged.png")).click()
        expect(visit.page.get_by_text("No crops of damaged.png")).to_be_visible()
