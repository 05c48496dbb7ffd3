"""The page in a real browser: what it shows where something goes wrong, and while there are no models yet."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.sync_api import Browser, expect

from browsing import visiting
from fakes import Gate
from fashion_crop.models.detection import Box, Detection
from serving import serving

if TYPE_CHECKING:
    from fashion_crop.web.backend import Backend
from page_server import KEY, Told, backend_of, crops

# What goes wrong.


def test_a_text_is_no_photo_and_the_page_stays_as_it_is(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, expected=[415]) as visit:
        visit.choose("first.png")
        expect(visit.cards).to_have_count(2)
        visit.choose("notes.txt", b"this is no photo", "text/plain")
        told = client.post("/v1/crops", files={"image": b"this is no photo"}).json()["error"]["message"]
        expect(visit.alert).to_have_text(f"notes.txt: {told}")
        assert visit.labels() == ["shirt", "pants"]
        expect(visit.page.locator(".box")).to_have_count(2)
        expect(visit.page.get_by_text("first.png")).to_be_visible()
        visit.slide("Box threshold", 0.8)  # of the photo that is there
        expect(visit.cards).to_have_count(1)
        expect(visit.alert).to_be_empty()


def test_a_text_as_the_first_file(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, expected=[415]) as visit:
        visit.choose("notes.txt", b"this is no photo", "text/plain")
        expect(visit.alert).to_contain_text("notes.txt: ")
        expect(visit.page.get_by_text("Drop a photo here")).to_be_visible()
        expect(visit.page.get_by_text("notes.txt", exact=True)).to_be_hidden()


def test_a_photo_of_too_many_bytes_is_not_sent(browser: Browser) -> None:
    with serving(backend_of(Told()), max_bytes=1000) as client, visiting(browser, client) as visit:
        visit.choose("large.png", b"x" * 1001)
        expect(visit.alert).to_have_text(
            "large.png: the photo has 1,001 bytes, and at most 1,000 are taken: send a smaller one"
        )
        assert visit.posts == []


def test_a_field_tells_what_is_wrong_with_it(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, expected=[422]) as visit:
        prompts = visit.page.get_by_role("textbox", name="Look for")
        prompts.fill(",".join(f"thing {number}" for number in range(300)))
        visit.choose()
        expect(visit.page.locator("#prompts-problem")).to_contain_text("must be 50 at most, got 300")
        expect(prompts).to_have_attribute("aria-invalid", "true")
        expect(visit.alert).to_contain_text("photo.png: ")
        prompts.fill("shirt, pants")
        prompts.press("Enter")
        expect(visit.cards).to_have_count(2)
        expect(prompts).to_have_value("shirt, pants")
        expect(prompts).to_have_attribute("aria-invalid", "false")
        expect(visit.page.locator("#prompts-problem")).to_be_empty()


@contextmanager
def full(gate: Gate) -> Iterator[httpx.Client]:
    """A server with one place, and somebody who has it until the gate opens."""
    with (
        serving(backend_of(Told(gate=gate)), max_queue=0) as client,
        httpx.Client(base_url=client.base_url, timeout=60) as other,
        ThreadPoolExecutor() as pool,
    ):
        taken = pool.submit(crops, other)
        try:
            assert gate.entered.acquire(timeout=20)
            yield client
        finally:
            gate.opened.set()
            assert taken.result().status_code == 200


@pytest.mark.parametrize("patient", [True, False])
def test_when_the_queue_is_full_the_photo_is_tried_again(browser: Browser, patient: bool) -> None:
    gate = Gate()
    with full(gate) as client, visiting(browser, client, expected=[503]) as visit:
        expect(visit.state).to_contain_text("Ready")
        visit.page.clock.install()
        visit.choose()
        expect(visit.alert).to_contain_text("try again in 5 seconds. This page retries automatically.")
        gate.opened.set()
        if patient:
            with visit.page.expect_response("**/v1/crops") as answer:
                visit.page.clock.run_for(5000)
            while answer.value.status == 503:  # the request before has not ended yet
                with visit.page.expect_response("**/v1/crops") as answer:
                    visit.page.clock.run_for(5000)
        else:
            while not visit.cards.count():
                with visit.page.expect_response("**/v1/crops"):
                    visit.page.get_by_role("button", name="Try now").click()
                expect(visit.page.get_by_role("progressbar")).to_be_hidden()
        expect(visit.cards).to_have_count(2)
        expect(visit.alert).to_be_empty()


def test_a_photo_that_is_tried_again_can_be_given_up(browser: Browser) -> None:
    gate = Gate()
    with full(gate) as client, visiting(browser, client, expected=[503]) as visit:
        expect(visit.state).to_contain_text("Ready")
        visit.page.clock.install()
        visit.choose()
        visit.page.get_by_role("button", name="Stop trying").click()
        expect(visit.alert).to_be_empty()
        expect(visit.page.get_by_text("Drop a photo here")).to_be_visible()
        asked = []
        visit.page.on("request", lambda request: asked.append(request.url))
        visit.page.clock.run_for(60_000)
        assert asked == []


def test_a_server_that_is_away(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client) as visit:
        expect(visit.state).to_contain_text("Ready")
        visit.page.route("**/v1/crops", lambda route: route.abort("connectionrefused"))
        visit.choose()
        expect(visit.alert).to_contain_text("photo.png: the server cannot be reached")
        visit.page.unroute("**/v1/crops")
        visit.page.get_by_role("button", name="Try again").click()
        expect(visit.cards).to_have_count(2)
        assert [each for each in visit.wrong if "ERR_CONNECTION_REFUSED" not in each] == []
        visit.wrong.clear()


def test_an_answer_that_is_not_the_servers(browser: Browser, client: httpx.Client) -> None:
    with visiting(browser, client, expected=[502]) as visit:
        expect(visit.state).to_contain_text("Ready")
        visit.page.route("**/v1/crops", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
        visit.choose()
        expect(visit.alert).to_contain_text("photo.png: the server answered with status 502")


def test_a_photo_waits_for_the_models(browser: Browser) -> None:
    loaded = threading.Event()

    def load() -> Backend:
        assert loaded.wait(60)
        phases = {"inspect": 0.5, "import": 4.0, "build": 0.25, "load": 0.25, "other": 0.5, "prefetch": 3.0}
        return backend_of(Told(), phases={**phases, "ready": 5.5}, weights={"sam2-large": "7442e4e9b732" + "0" * 52})

    with serving(load) as client, visiting(browser, client, expected=[503]) as visit:
        try:
            expect(visit.state).to_have_text("The models are being loaded")
            expect(visit.page.get_by_role("slider", name="Box threshold")).to_be_disabled()
            visit.choose()
            expect(visit.page.get_by_text("Waiting for the models").first).to_be_visible()
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


def test_models_that_cannot_be_loaded(browser: Browser) -> None:
    def load() -> Backend:
        raise ImportError("the models cannot be imported: install torch")

    with serving(load) as client, visiting(browser, client, expected=[503]) as visit:
        expect(visit.alert).to_contain_text("install torch")
        expect(visit.state).to_have_text("Not ready")
        visit.choose()
        expect(visit.alert).to_contain_text("photo.png: the models cannot be loaded")


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
        field.fill("another")
        field.press("Enter")
        expect(visit.page.get_by_text("The server does not accept this key.")).to_be_visible()
        expect(field).to_be_focused()
        field.fill(KEY)
        visit.page.get_by_role("button", name="Use this key").click()
        expect(visit.cards).to_have_count(2)
        expect(field).to_be_hidden()
        expect(visit.page.get_by_label("Choose a photo")).to_be_focused()  # the button that was pressed is gone
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
        name = visit.page.get_by_role("link").get_attribute("download")
        assert name == "00_img_src_x_onerror_alert_1_script_alert_2.png"
        error = {"code": "image-too-large", "message": HOSTILE, "fields": [{"field": "image", "message": HOSTILE}]}
        visit.page.route("**/v1/crops", lambda route: route.fulfill(status=413, json={"error": error}))
        visit.choose()
        expect(visit.alert).to_have_text(f"photo.png: {HOSTILE}")
        written = "#list :is(script, b, img[onerror]), #boxes :is(script, b, img), [role=alert] :is(script, b, img)"
        assert visit.page.locator(written).count() == 0
