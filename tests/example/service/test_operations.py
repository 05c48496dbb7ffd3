"""What an operator sees: HEAD for monitors, request ids, and the metrics."""

from __future__ import annotations

import logging
import re
import threading
from typing import Any

import anyio
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fakes import FakeDetector, Gate, fake_backend
from fashion_crop.web.backend import Backend
from fashion_crop.web.service import create_app
from service_requests import KEY, Broken, UntilCancelled, begun, crops, error, image
from serving import Client, photo, serving
from support import until


def samples(client: Client) -> dict[tuple[str, ...], float]:
    """Every sample of /metrics: its name and the values of its labels."""
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = list(text_string_to_metric_families(response.text))
    assert all(family.documentation for family in families)
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def requests(client: Client, route: str, status: int) -> float:
    return samples(client).get(("fashion_crop_requests_total", route, str(status)), 0)


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_monitor_may_ask_with_head(client: Client, path: str) -> None:
    response = client.head(path)
    assert (response.status_code, response.content) == (200, b"")
    refused = client.post(path)
    assert refused.status_code == 405
    assert set(refused.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_head_says_that_the_models_are_not_there() -> None:
    go_on = threading.Event()

    def load() -> Any:
        assert go_on.wait(60)
        return fake_backend()

    with serving(load) as client:
        assert client.head("/healthz").status_code == 200
        response = client.head("/readyz")
        assert (response.status_code, response.content) == (503, b"")
        assert response.headers["retry-after"]
        go_on.set()
        until(lambda: client.head("/readyz").status_code == 200)


# Request ids.


@pytest.mark.parametrize("sent", ["a", "A-b_c.9", "x" * 64])
def test_an_id_of_the_client_is_kept(client: Client, sent: str) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": sent}).headers.get_list("x-request-id") == [sent]


@pytest.mark.parametrize("sent", ["", "x" * 65, "a b", "a\tb", "a,b", "é", "<script>", 'a"b', "a\\nb"])
def test_another_id_is_replaced(client: Client, sent: str) -> None:
    made = client.get("/healthz", headers={"X-Request-ID": sent.encode()}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)


def test_two_ids_are_none(client: Client) -> None:
    response = client.get("/healthz", headers=[("X-Request-ID", "a"), ("X-Request-ID", "b")])
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


def test_every_request_gets_its_own_id(client: Client) -> None:
    made = {client.get(path).headers["x-request-id"] for path in ("/healthz", "/", "/v1/info", "/metrics", "/nothing")}
    assert len(made) == 5


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("/v1/crops", {"files": image()}, 401),
        ("/v1/crops", {"content": b"", "headers": {"X-API-Key": KEY.encode()}}, 415),
        ("/v1/crops", {"files": image(b"text"), "headers": {"X-API-Key": KEY.encode()}}, 415),
        ("/v1/crops", {"files": image(), "data": {"padding": "2"}, "headers": {"X-API-Key": KEY.encode()}}, 422),
        ("/nothing", {}, 404),
        ("/healthz", {}, 405),
    ],
)
def test_every_error_names_its_request(keyed: Client, path: str, options: dict[str, Any], status: int) -> None:
    response = keyed.post(path, **options)
    assert response.status_code == status
    assert error(response)["request_id"] == response.headers["x-request-id"]


def test_the_log_names_the_request_whose_work_failed(caplog: pytest.LogCaptureFixture) -> None:
    with serving(fake_backend(Broken(RuntimeError("broken")))) as client:
        response = client.post("/v1/crops", files=image(), headers={"X-Request-ID": "mine-1"})
    assert (response.status_code, error(response)["request_id"]) == (500, "mine-1")
    (told,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert "mine-1" in told.getMessage()
    assert told.exc_info


def test_a_crash_outside_of_the_work_has_an_id_too(caplog: pytest.LogCaptureFixture) -> None:
    backend = fake_backend()
    backend.versions = 7  # of which there is no dict
    with serving(backend) as client:
        response = client.get("/v1/info", headers={"X-Request-ID": "mine-2"})
        assert (response.status_code, error(response)["request_id"]) == (500, "mine-2")
        assert requests(client, "/v1/info", 500) == 1
    (told,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert "mine-2" in told.getMessage()
    assert "TypeError" in caplog.text


# Metrics.


def test_requests_are_counted_by_route_and_status(keyed: Client) -> None:
    def counted() -> list[float]:
        asked = [("/v1/crops", 200), ("/v1/crops", 401), ("/v1/crops", 422), ("/v1/detect", 200), ("/healthz", 200)]
        return [requests(keyed, *each) for each in asked]

    before = counted()
    key = {"X-API-Key": KEY.encode()}
    keyed.post("/v1/crops", files=image(), headers=key)
    keyed.post("/v1/crops", files=image())
    keyed.post("/v1/crops", files=image(), data={"padding": "2"}, headers=key)
    keyed.post("/v1/detect", files=image(), headers=key)
    keyed.get("/healthz")
    keyed.head("/healthz")
    assert [after - each for after, each in zip(counted(), before, strict=True)] == [1, 1, 1, 1, 2]


def test_paths_that_do_not_exist_are_one_route(client: Client) -> None:
    before = requests(client, "other", 404)
    for path in ("/a", "/b", "/v1/crops/", '/v1/"x"', "/%0Afashion_crop_ready"):
        assert client.get(path).status_code == 404
    assert requests(client, "other", 404) == before + 5
    routes = {labels[0] for name, *labels in samples(client) if name == "fashion_crop_requests_total"}
    assert routes <= {"other", "/", "/healthz", "/readyz", "/v1/info", "/metrics", "/v1/crops", "/v1/detect"}


def test_a_route_of_a_mounted_app_has_the_same_name() -> None:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            for path in ("/v1/detect", "/v1/crops", "/nothing"):
                await client.post(path, files=image())
            return await client.get("/metrics")

    inner = create_app(fake_backend())
    app = below("/fashion", inner)
    text = anyio.run(ask).text
    for route, status in (("/v1/detect", 200), ("/v1/crops", 200), ("other", 404)):
        assert f'fashion_crop_requests_total{{route="{route}",status="{status}"}} 1.0' in text


def below(path: str, inner: Any) -> Any:
    """An app that answers as if it were mounted below that path."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await inner({**scope, "path": path + scope["path"], "root_path": path}, receive, send)

    return app


def test_a_photo_whose_client_hangs_up_is_counted() -> None:
    endless = UntilCancelled()
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n%b\r\n--b--' % photo()
    with serving(Backend(endless)) as client:
        with begun(client, f"Content-Length: {len(body)}") as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        until(lambda: requests(client, "/v1/crops", 499) == 1)  # while it sent
        with begun(client, f"Content-Length: {len(body)}") as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
            connection.sendall(body)
            assert endless.began.wait(60)
        until(lambda: requests(client, "/v1/crops", 499) == 2)  # while it was worked on
        assert requests(client, "/v1/crops", 200) == requests(client, "/v1/crops", 400) == 0


def test_a_crash_and_a_full_queue_are_counted() -> None:
    with serving(fake_backend(Broken(RuntimeError("broken")))) as client:
        assert crops(client).status_code == 500
        assert requests(client, "/v1/crops", 500) == 1
    held = FakeDetector(gate=Gate())
    with serving(fake_backend(held), max_queue=0) as client:
        waiting = threading.Thread(target=crops, args=(client,))
        waiting.start()
        try:
            assert held.gate.entered.acquire(timeout=60)
            assert crops(client).status_code == 503
            assert requests(client, "/v1/crops", 503) == 1
        finally:
            held.gate.opened.set()
            waiting.join()


def test_photos_that_wait_and_that_are_worked_on_are_shown() -> None:
    def shown() -> tuple[float, float]:
        told = samples(client)
        return told["fashion_crop_photos_waiting",], told["fashion_crop_photos_running",]

    held = FakeDetector(gate=Gate())
    with serving(fake_backend(held), workers=1, max_queue=2) as client:
        assert shown() == (0, 0)
        threads = [threading.Thread(target=crops, args=(client,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: shown() == (2, 1))
        finally:
            held.gate.opened.set()
            for thread in threads:
                thread.join()
        assert shown() == (0, 0)


def test_the_phases_of_the_start_are_shown_once_it_is_over() -> None:
    go_on = threading.Event()

    def load() -> Any:
        assert go_on.wait(60)
        backend = fake_backend()
        backend.phases = {"to device": 1.5, "ready": 6.25}
        return backend

    with serving(load) as client:
        told = samples(client)
        assert told["fashion_crop_ready",] == 0
        assert not [name for name, *_ in told if name == "fashion_crop_start_seconds"]
        go_on.set()
        until(lambda: samples(client)["fashion_crop_ready",] == 1)
        told = samples(client)
        assert told["fashion_crop_start_seconds", "to device"] == 1.5
        assert told["fashion_crop_start_seconds", "ready"] == 6.25


def test_two_apps_of_a_process_count_apart() -> None:
    with serving(fake_backend()) as one, serving(fake_backend()) as other:
        one.get("/readyz")
        assert (requests(one, "/readyz", 200), requests(other, "/readyz", 200)) == (1, 0)


def test_the_metrics_need_no_key_and_have_nothing_of_a_photo(keyed: Client) -> None:
    keyed.post("/v1/crops", files=image(), data={"prompts": "secret-prompt"}, headers={"X-API-Key": KEY.encode()})
    text = keyed.get("/metrics").text
    assert "fashion_crop_requests_total" in text
    assert "secret-prompt" not in text
