"""The page in a real browser: what it shows where something goes wrong, and while there are no models yet."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.sync_api import Browser, expect

from browsing import Visit, file, visiting
from fashion_crop.models.detection import Box, Detection
from serving import serving

if TYPE_CHECKING:
    from fashion_crop.web.backend import Backend

from page_server import KEY, Told, backend_of

# What goes wrong.


def test_a_server_that_is_away(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client) as visit:
        expect(visit.state).to_contain_text("Ready")
        visit.page.route("**/v1/masks", lambda route: route.abort("connectionrefused"))
        visit.choose_all(file("one.png"), file("two.png"))
        expect(visit.row("one.png")).to_contain_text("Failed")
        expect(visit.row("one.png")).to_contain_text("the server cannot be reached")
        expect(visit.said).to_contain_text("one.png: Failed: the server cannot be reached")
        expect(visit.row("two.png")).to_contain_text("Waiting")  # it would fail as well
        visit.page.unroute("**/v1/masks")
        visit.page.get_by_role("button", name="Try again").click()
        expect(visit.page.get_by_text("2 of 2 done")).to_be_visible()
        expect(visit.cards).to_have_count(2)
        expect(visit.page.get_by_role("button", name=re.compile("^one.png"))).to_be_focused()  # the button is gone
        assert [each for each in visit.wrong if "ERR_CONNECTION_REFUSED" not in each] == []
        visit.wrong.clear()


def test_the_others_go_on_when_the_photo_that_failed_is_removed(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, expected=[502]) as visit:
        expect(visit.state).to_contain_text("Ready")
        visit.page.route("**/v1/masks", lambda route: route.fulfill(status=502, body=""))
        visit.choose_all(file("one.png"), file("two.png"))
        expect(visit.row("one.png")).to_contain_text("Failed")
        visit.page.unroute("**/v1/masks")
        visit.page.get_by_role("button", name="Remove one.png").click()
        expect(visit.row("two.png")).to_contain_text("2 garments")


def test_a_key_is_waited_for_when_a_photo_is_removed(browser: Browser) -> None:
    with serving(backend_of(Told()), api_key=KEY) as client, visiting(browser, client, expected=[401]) as visit:
        visit.choose_all(file("one.png"), file("two.png"))
        field = visit.page.get_by_label("API key", exact=True)
        field.fill(KEY)
        visit.page.get_by_role("button", name="Remove one.png").click()
        visit.page.wait_for_timeout(500)
        expect(field).to_have_value(KEY)  # it would be empty after another request
        field.press("Enter")
        expect(visit.row("two.png")).to_contain_text("2 garments")
        assert len(visit.posts) == 2


def test_an_answer_that_is_not_the_servers(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, expected=[502]) as visit:
        expect(visit.state).to_contain_text("Ready")
        visit.page.route("**/v1/masks", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
        visit.choose()
        expect(visit.row("photo.png")).to_contain_text("the server answered with status 502")
        expect(visit.page.get_by_text("No crops of photo.png")).to_be_visible()


def test_a_photo_waits_for_the_models(browser: Browser) -> None:
    loaded = threading.Event()

    def load() -> Backend:
        assert loaded.wait(60)
        phases = {"inspect": 0.5, "import": 4.0, "build": 0.25, "load": 0.25, "other": 0.5, "prefetch": 3.0}
        return backend_of(Told(), phases={**phases, "ready": 5.5}, weights={"sam2-large": "7442e4e9b732" + "0" * 52})

    with serving(load) as client, visiting(browser, client, expected=[503]) as visit:
        try:
            expect(visit.state).to_have_text("The models are being loaded")
            expect(visit.page.get_by_role("slider", name="Strictness")).to_be_disabled()
            expect(visit.page.get_by_text("You can already choose photos")).to_be_visible()
            visit.choose()
            expect(visit.row("photo.png")).to_contain_text("Waiting for the models")
            assert visit.posts == []
        finally:
            loaded.set()
        expect(visit.cards).to_have_count(2)
        expect(visit.state).to_have_text("Ready, on cpu")
        visit.page.get_by_text("This server was ready after 5.5 s").click()
        for name in ("import 4.00 s", "prefetch 3.00 s", "ready 5.50 s", "sam2-large sha256 7442e4e9b732…"):
            expect(visit.page.get_by_role("row", name=name)).to_be_visible()
        whole, imports, beside = (
            visit.page.locator(each).bounding_box() for each in ("#phases", "#phases .import", "#beside .prefetch")
        )
        assert whole is not None
        assert imports is not None
        assert beside is not None
        assert imports["width"] == pytest.approx(whole["width"] * 4.0 / 5.5, abs=12)  # there are gaps between the parts
        assert beside["width"] == pytest.approx(whole["width"] * 3.0 / 5.5, abs=3)


def test_one_loop_waits_for_the_models_however_often_it_is_begun(browser: Browser) -> None:
    loaded = threading.Event()

    def load() -> Backend:
        assert loaded.wait(60)
        return backend_of(Told())

    with serving(load) as client, visiting(browser, client, expected=[503]) as visit:
        try:
            expect(visit.state).to_have_text("The models are being loaded")
            visit.stop_clock()
            visit.page.evaluate(
                """async () => {
                    const {connect, forgetServer} = await import("/page/facts.js");
                    const {setTimeout} = window;
                    window.sleeps = 0;  // each turn of a loop ends in one
                    window.setTimeout = (...of) => { window.sleeps++; return setTimeout(...of); };
                    window.waiting = [];
                    for (let count = 0; count < 4; count++) {
                        forgetServer();
                        window.waiting.push(connect(() => {}));
                    }
                }"""
            )
            wait_for_sleeps(visit, 1)
            asked: list[str] = []
            visit.page.on("request", lambda request: asked.append(request.url))
            for turns in range(2, 5):
                visit.page.clock.run_for(10_000)
                wait_for_sleeps(visit, turns)
            assert visit.page.evaluate("sleeps") == 4
            assert len(asked) == 3
        finally:
            loaded.set()
        client_ready(client)
        visit.page.clock.run_for(10_000)
        expect(visit.state).to_have_text("Ready, on cpu")
        assert visit.page.evaluate("Promise.all(window.waiting).then((all) => all.length)") == 4


def wait_for_sleeps(visit: Visit, count: int) -> None:
    while visit.page.evaluate("sleeps") < count:  # wait_for_function needs eval, which the page forbids
        pass


def client_ready(client: httpx.Client) -> None:
    while client.get("/readyz").status_code != 200:
        time.sleep(0.05)


def test_models_that_cannot_be_loaded(browser: Browser) -> None:
    def load() -> Backend:
        raise ImportError("the models cannot be imported: install torch")

    with serving(load) as client, visiting(browser, client, expected=[503]) as visit:
        expect(visit.alert).to_contain_text("install torch")
        expect(visit.state).to_have_text("Not ready")
        visit.choose()
        expect(visit.row("photo.png")).to_contain_text("the models cannot be loaded")


@pytest.mark.parametrize("stand_ins", [True, False])
def test_the_page_says_whether_the_weights_are_stand_ins(browser: Browser, stand_ins: bool) -> None:
    with serving(backend_of(Told(), stand_ins=stand_ins)) as client, visiting(browser, client) as visit:
        expect(visit.state).to_contain_text("Ready")
        note = visit.page.get_by_text("Stand-in weights: the results are meaningless.")
        expect(note).to_be_visible(visible=stand_ins)


def test_a_key_is_asked_for_when_the_server_wants_one(browser: Browser) -> None:
    with serving(backend_of(Told()), api_key=KEY) as client, visiting(browser, client, expected=[401]) as visit:
        field = visit.page.get_by_label("API key", exact=True)
        expect(visit.state).to_contain_text("Ready")
        expect(field).to_be_hidden()
        visit.choose()
        expect(field).to_be_focused()
        expect(visit.page.get_by_text("This server needs an API key.")).to_be_visible()
        expect(visit.row("photo.png")).to_contain_text("Waiting")
        field.fill("another")
        field.press("Enter")
        expect(visit.page.get_by_text("The server does not accept this key.")).to_be_visible()
        expect(field).to_be_focused()
        field.fill(KEY)
        visit.page.get_by_role("button", name="Use this key").click()
        expect(visit.cards).to_have_count(2)
        expect(field).to_be_hidden()
        expect(visit.page.get_by_role("button", name=re.compile("^photo.png"))).to_be_focused()  # the form is gone
        visit.page.reload()
        visit.choose()
        expect(visit.cards).to_have_count(2)
        assert KEY not in visit.page.content()


def test_a_key_works_where_the_browser_keeps_nothing(browser: Browser) -> None:
    nothing_kept = "Object.defineProperty(window, 'sessionStorage', {get() { throw new DOMException('denied') }})"
    with (
        serving(backend_of(Told()), api_key=KEY) as client,
        visiting(browser, client, expected=[401], script=nothing_kept) as visit,
    ):
        visit.choose()
        visit.page.get_by_label("API key", exact=True).fill(KEY)
        visit.page.keyboard.press("Enter")
        expect(visit.cards).to_have_count(2)


HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def test_what_others_write_is_text(browser: Browser) -> None:
    found = [Detection(HOSTILE, 0.9, Box(5, 5, 50, 35))]
    with serving(backend_of(Told(found))) as client, visiting(browser, client, expected=[413]) as visit:
        visit.page.get_by_role("textbox", name="Look for").fill(HOSTILE)
        visit.choose("<b onmouseover=alert(3)>.png")
        expect(visit.cards).to_have_count(1)
        assert visit.labels() == [HOSTILE]
        expect(visit.page.locator(".tag")).to_have_text(f"{HOSTILE} 0.90")
        name = "b_onmouseover_alert_3_01_img_src_x_onerror_alert_1_script_alert_2.png"
        expect(visit.page.get_by_role("button", name=f"Download {name}")).to_be_visible()
        error = {"code": "image-too-large", "message": HOSTILE, "fields": [{"field": "image", "message": HOSTILE}]}
        visit.page.route("**/v1/masks", lambda route: route.fulfill(status=413, json={"error": error}))
        visit.choose()
        expect(visit.row("photo.png")).to_contain_text(HOSTILE)
        expect(visit.row("photo.png")).to_contain_text("Refused")
        parts = ("#list", "#boxes", "#photos", "#status", "#alert", "#empty")
        written = ", ".join(f"{part} :is(script, b:not([id]), img[onerror])" for part in parts)
        assert visit.page.locator(written).count() == 0


def test_a_mistake_of_the_page_is_a_failed_photo_not_an_endless_wait(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client) as visit:
        expect(visit.state).to_contain_text("Ready")
        visit.page.route("**/v1/masks", lambda route: route.fulfill(status=200, json={"garments": []}))
        visit.choose_all(file("one.png"))
        expect(visit.row("one.png")).to_contain_text("Failed")
        visit.page.unroute("**/v1/masks")
        visit.page.get_by_role("button", name="Try again").click()
        expect(visit.cards).to_have_count(2)
        assert all("exception" in each for each in visit.wrong)
        visit.wrong.clear()
