"""The files of the page, as the service sends them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from browsing import Visit
from fakes import fake_backend
from fashion_crop.web import pages
from serving import serving

FILES = sorted(path.name for path in pages.FOLDER.iterdir())


def test_the_page_may_run_its_own_files_and_nothing_else(client: httpx.Client) -> None:
    response = client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.content == (pages.FOLDER / "page.html").read_bytes()
    policy = dict(each.split(" ", 1) for each in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in response.headers["content-security-policy"]
    # Nothing of it is within the HTML, where the policy would let nothing of an attacker be, either.
    assert "<style" not in response.text
    assert " style=" not in response.text
    assert "<script>" not in response.text


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_there_with_its_type(client: httpx.Client, name: str) -> None:
    response = client.get(f"/page/{name}")
    assert response.status_code == 200
    assert response.content == (pages.FOLDER / name).read_bytes()
    wanted = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".jpg": "image/jpeg"}
    assert response.headers["content-type"].partition(";")[0] == wanted[Path(name).suffix]
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_file_is_sent_once_while_it_stays_as_it_is(client: httpx.Client) -> None:
    first = client.get("/page/page.js")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/page/page.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/page/page.js", headers={"If-None-Match": '"another"'}).status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "..%2fservice.py", "%2e%2e%2fpages.py", "page.js%00", "__init__.py"])
def test_nothing_else_is_there(client: httpx.Client, name: str) -> None:
    response = client.get(f"/page/{name}")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not-found")


def test_a_page_that_is_lost_is_an_error_like_any_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pages, "FOLDER", Path("/nowhere"))
    with serving(fake_backend()) as client:
        response = client.get("/")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")
    assert "nowhere" not in response.text
    assert "/nowhere/page.html" in caplog.text


def test_the_sample_is_small() -> None:
    assert (pages.FOLDER / "sample.jpg").stat().st_size <= 60_000


def test_every_file_is_used(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Try a photo").click()
    visit.cards.first.wait_for()
    loaded = visit.page.evaluate("performance.getEntriesByType('resource').map((each) => each.name.split('/').pop())")
    assert {name for name in FILES if name != "page.html"} <= set(loaded)


def test_no_script_of_another_runs(visit: Visit) -> None:
    stopped = visit.page.evaluate(
        """() => {
            try { document.body.innerHTML = "<b>x</b>"; return ""; } catch (error) { return String(error); }
        }"""
    )
    assert "TrustedHTML" in stopped
    visit.wrong.clear()  # the browser reports it, too
