"""What the Hub, or what takes its place, cannot do to a program that pins: lead it elsewhere, or hold it up."""

from __future__ import annotations

import base64
import json
import logging
import socket
import sys
import threading
from ipaddress import ip_network
from typing import Any

import pytest

from hub import Answer, Hub
from raw_server import raw_server
from weightcache import DownloadError
from weightcache._pinning import hub_requests
from weightcache._pinning.hub_client import snapshot
from weightcache._pinning.unpinned_entries import HubUrl
from weightcache._transfer import refused_addresses

TOKEN = "hf_SeCrEtSeCrEtSeCrEt"
FILES = {"a.json": b"{}", "b.json": b"[]", "c.json": b"1"}
MODEL = HubUrl("acme/bert")


@pytest.fixture
def pages(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A repository whose listing has three pages, with a token that the user has."""
    hub.page = 1
    hub.push("acme/bert", "main", FILES)
    hub.grant(TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def change(hub: Hub, monkeypatch: pytest.MonkeyPatch, path: str, **headers: str) -> None:
    """Let the Hub answer with these headers where the path of a request contains ``path``."""
    route = hub._route

    def changed(target: str, *words: Any) -> Any:
        answer = route(target, *words)
        if path in target:
            answer.headers.update(headers)
            answer.status = 302 if "Location" in headers else answer.status
        return answer

    monkeypatch.setattr(hub, "_route", changed)


def refusal() -> str:
    with pytest.raises(DownloadError) as caught:
        snapshot(MODEL, None, "bert")
    assert TOKEN not in str(caught.value)
    return str(caught.value)


def elsewhere(hub: Hub) -> list[Any]:
    return [each for each in hub.seen if each.host != "hub"]


def test_the_pages_of_a_listing(pages: Hub) -> None:
    assert [file.path for file in snapshot(MODEL, None, "bert").files] == sorted(FILES)
    assert {each.authorization for each in pages.seen} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("path", ["/revision/", "/tree/"])
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("http://169.254.169.254/latest/meta-data/", "its host is 169.254.169.254"),
        ("http://2852039166/", "its host is 2852039166"),
        ("file:///etc/passwd", "only http and https are followed"),
        ("http://[", "only http and https are followed"),
    ],
)
def test_where_no_redirect_leads(
    path: str, target: str, said: str, pages: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(pages, monkeypatch, path, Location=target)
    assert said in refusal()


def test_a_redirect_to_a_name_of_a_service_for_this_machine(pages: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of the connection is checked: a name may lead there, too."""
    monkeypatch.setattr(refused_addresses, "REFUSED", [ip_network("127.0.0.2/32")])
    found, port = socket.getaddrinfo, pages.cdn.url("/").split(":")[2].rstrip("/")

    def resolved(host: str, *words: Any, **options: Any) -> Any:
        return found("127.0.0.2" if host == "metadata" else host, *words, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    change(pages, monkeypatch, "/tree/", Location=f"http://metadata:{port}/latest")
    assert "its host is 127.0.0.2" in refusal()
    assert elsewhere(pages) == []


def test_redirects_without_end(pages: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    change(pages, monkeypatch, "/tree/", Location=f"{pages.url}/api/models/acme/bert/tree/main")
    assert "more than 10 redirects" in refusal()


def test_no_redirect_takes_the_token_to_another_host(pages: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pages.cdn.put("/list", b"[]")
    change(pages, monkeypatch, "/tree/", Location=pages.cdn.url("/list"))
    snapshot(MODEL, None, "bert")
    assert [each.authorization for each in elsewhere(pages)] == [None]


@pytest.mark.parametrize("scheme", ["http", "https", "ftp"])
def test_a_listing_that_goes_on_elsewhere(scheme: str, pages: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    target = f"{scheme}{pages.cdn.url('/list?token=SeCrEt').removeprefix('http')}"
    change(pages, monkeypatch, "/tree/", Link=f'<{target}>; rel="next"')
    assert "another host; no request was sent there" in refusal()
    assert elsewhere(pages) == []


def test_a_listing_that_goes_on_at_another_port(pages: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    change(pages, monkeypatch, "/tree/", Link='<http://127.0.0.1:9/list>; rel="next"')
    assert "127.0.0.1:9/list, another host" in refusal()


def test_a_mirror_that_copies_the_answers_of_the_hub(pages: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    route = pages._route

    def copied(*words: Any) -> Answer:
        answer = route(*words)
        if "Link" in answer.headers:
            answer.headers["Link"] = str(answer.headers["Link"]).replace(pages.url, "https://huggingface.co")
        return answer

    monkeypatch.setattr(pages, "_route", copied)
    assert len(snapshot(MODEL, None, "bert").files) == len(FILES)


def test_a_name_and_a_password_in_the_address_of_the_hub(
    pages: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """They go with each request, and no log of a failure has them."""
    monkeypatch.delenv("HF_TOKEN")
    caplog.set_level(logging.DEBUG)
    sent = f"Basic {base64.b64encode(b'user:SeCrEt').decode()}"
    pages.tokens.add(sent)
    monkeypatch.setenv("HF_ENDPOINT", pages.url.replace("://", "://user:SeCrEt@"))
    assert len(snapshot(MODEL, None, "bert").files) == len(FILES)
    assert {each.authorization for each in pages.seen} == {sent}
    pages.fail(2, path="/tree/", wait=0)
    snapshot(MODEL, None, "bert")
    pages.fail(3, status=503, path="/tree/")
    said = refusal()
    assert "SeCrEt" not in said + caplog.text + "".join(capfd.readouterr())
    assert "/tree/" in caplog.text  # that of urllib3


def test_empty_pages_without_end(pages: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    route = pages._route

    def empty(target: str, *words: Any) -> Answer:
        answer = route(target, *words)
        if "/tree/" in target:
            answer.body = b"[]"
            answer.headers["Link"] = f'<{target}>; rel="next"'
        return answer

    monkeypatch.setattr(pages, "_route", empty)
    monkeypatch.setattr(hub_requests, "MAX_PAGES", 50)  # else a test of it without the bound would never end
    assert "an empty page and said that the listing goes on" in refusal()


@pytest.mark.parametrize(
    ("bound", "value", "said"),
    [
        ("MAX_PAGES", 2, "more than 2 pages"),
        ("MAX_ANSWER", 40, "more than 40 bytes"),
        ("MAX_BYTES", 500, "the most that is read of it"),
        ("MAX_SECONDS", 0.0, "took longer than 0 s"),
    ],
)
def test_bounds(bound: str, value: float, said: str, pages: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_requests, bound, value)
    assert said in refusal()


@pytest.mark.parametrize("wait", [10**9, 121])
def test_a_wait_that_is_too_long_is_not_waited_for(wait: int, pages: Hub) -> None:
    pages.fail(1, path="/tree/", wait=wait)
    assert f"try again in {wait} seconds" in refusal()


@pytest.mark.parametrize("head", [b"Content-Length: 100000\r\n", b"Transfer-Encoding: chunked\r\n"], ids=["", "chunks"])
def test_an_answer_that_trickles(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte would start the timeout of a socket again."""
    monkeypatch.setattr(hub_requests, "_ANSWER_SECONDS", 0.1)

    def trickle(connection: socket.socket, stopping: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")
        for _ in range(500):  # ten seconds
            connection.sendall(b"1\r\n \r\n" if b"chunked" in head else b" ")
            if stopping.wait(0.02):
                return
        connection.sendall(b"0\r\n\r\n")

    with raw_server(trickle) as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        assert f"http://127.0.0.1:{port}: its answer took longer than 0.1 s" in refusal()


def test_an_answer_that_is_cut_off_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(connection: socket.socket, _: threading.Event) -> None:
        asked.append("")
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + json.dumps({"sha": "0"}).encode())

    with raw_server(answer) as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        assert "its answer broke off" in refusal()
    assert len(asked) == 3


@pytest.mark.parametrize("name", ["../../api", "acme/..", "acme/bert/more", "acme/bert?x", "a b"])
def test_what_is_no_name_of_a_repository_is_not_asked_for(name: str, pages: Hub) -> None:
    with pytest.raises(ValueError, match=r"is not the name of a repository|want|hold"):
        snapshot(HubUrl(name), None, "bert")
    assert pages.seen == []


def test_it_needs_no_package_of_the_hub(pages: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert len(snapshot(MODEL, None, "bert").files) == len(FILES)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_nothing_is_asked_where_the_user_forbids_it(variable: str, pages: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    assert "was not asked: HF_HUB_OFFLINE is set" in refusal()
    assert pages.seen == []
