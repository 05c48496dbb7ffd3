"""A small part of the network campaign, the same for the same seed; and each of its judgements, seen to fail."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

import network_answers
import network_campaign
import network_script
from network_answers import GOOD, Move, Policy, Served
from network_campaign import Network, Outcome, network, rows
from network_script import Plan, Script
from origin import Origin
from weightcache._runtime.tuning_constants import Settings
from weightcache._transfer.download import DownloadRun
from weightcache._transfer.file_transfer import FileTransfer
from weightcache._transfer.http_session import Session, _Adapter
from weightcache._transfer.mirror_stream import TransientError

RUNS = 25


def test_a_sample_of_the_campaign(tmp_path: Path) -> None:
    [row], failed = rows(0, float("inf"), most=RUNS, folder=tmp_path)
    assert failed == []
    assert row[:4] == ("network", "servers", RUNS, 0)
    assert "DownloadError" in row.note
    assert "right" in row.note


def test_a_run_that_takes_too_long_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, runs = Network.run, list[int]()

    def slow(self: Network, plan: Plan, number: int) -> Outcome:
        runs.append(number)
        return replace(run(self, plan, number), seconds=1e6 if runs.count(number) == 1 or number == 2 else 0.0)

    monkeypatch.setattr(Network, "run", slow)
    [row], failed = rows(0, float("inf"), most=3, folder=tmp_path)
    assert (row.tried, failed, runs) == (3, [], [0, 0, 1, 1, 2, 2])
    assert row.note.endswith("; 3 exceeded the limit of time, 1 of them again at once")


def test_a_plan_is_the_same_for_the_same_seed() -> None:
    plans = [str(Plan.draw(1, number)) for number in range(30)]
    assert plans == [str(Plan.draw(1, number)) for number in range(30)]
    assert len({*plans}) == 30
    drawn = [Plan.draw(2, number) for number in range(300)]
    assert {each.delivers for each in drawn} == {True, False}
    assert all(each.best <= each.budget(0) for each in drawn)


def test_a_server_that_serves_one_at_a_time_forgets_a_client_that_has_gone() -> None:
    slow = Policy(rate=1.0, bursts=True, most=1)  # no answer of it ends within the test
    served = Served(bytes(1000), [], None, slow)
    with Origin() as origin:
        origin.put("/w", served.data, always=served)

        def status_of(connection: http.client.HTTPConnection) -> int:
            connection.request("GET", "/w")
            return connection.getresponse().status

        host = origin.url("").removeprefix("http://")
        first, second, third = (http.client.HTTPConnection(host, timeout=60) for _ in range(3))
        try:
            assert status_of(first) == 200
            assert status_of(second) == 503
            first.sock.shutdown(socket.SHUT_RDWR)
            assert status_of(third) == 200
        finally:
            served.over.set()
            for each in (first, second, third):
                each.close()


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Network]:
    with network(tmp_path) as found:
        yield found


def plan(*moves: Move, tail: Move | None = None, policy: Policy = GOOD, size: int = 30_000, **more: Any) -> Plan:
    """One file at one mirror, with a size that is declared and one connection."""
    found = Plan({"w": Random(0).randbytes(size)}, True, ({"w": Script(moves, tail, policy)},), 1, 0.0, False)
    return found._replace(**more)


def test_the_best_possible_time_and_the_budget() -> None:
    wait = Move("busy", lambda exchange, served: None, cost=0.1, is_passing=True)
    slow = plan(wait, wait, policy=Policy(rate=1e5, delay=0.01))
    assert slow.best == pytest.approx(0.2 + 3 * 0.01 + 0.3)
    assert slow.budget(4) == pytest.approx(network_script.OWN + 3 * 0.3 + 0.2 + 4 * (network_script.BACKOFF + 0.01))
    assert slow._replace(mirrors=(*slow.mirrors, {"w": Script((), None, GOOD)})).best == 0.0


WRONG = network_answers.wrong_bytes(Random(0))
AWAY = Move("a redirect (elsewhere)", lambda exchange, served: network_answers.redirect(served.elsewhere)(exchange))


def problems(net: Network, plan: Plan) -> str:
    return "; ".join(net.run(plan).problems)


def test_wrong_bytes_are_found(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def believed(self: FileTransfer) -> None:
        if not self.is_incomplete(busy=bool(self.tasks)):
            self.length, self.segments, self.verified = self.hashed, [], True

    assert problems(net, plan(tail=WRONG)) == ""
    monkeypatch.setattr(FileTransfer, "verify", believed)
    assert "wrong bytes in w" in problems(net, plan(tail=WRONG))


def test_a_size_that_is_not_obeyed_is_found(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """The declared size is kept from the library, so that nothing bounds what a server sends."""
    longer = Move("longer", lambda exchange, served: exchange.chunked(served.data * 5, {}))
    assert problems(net, plan(tail=longer)) == ""
    real = network_campaign._manifest
    monkeypatch.setattr(network_campaign, "_manifest", lambda plan, urls: real(plan._replace(declared=False), urls))
    found = problems(net, plan(tail=longer))
    assert "150000 bytes were written of a file of 30000" in found
    assert "150000 bytes were received, and at most 30001 were expected" in found


@pytest.mark.parametrize("kind", ["head", "body", "refusal"])
def test_an_answer_without_an_end(kind: str, net: Network) -> None:
    outcome = net.run(plan(network_answers.dripping(Random(0), kind)))
    assert (outcome.problems, outcome.kind, outcome.requests in (2, 3)) == ([], "right", True)
    assert outcome.seconds >= network_answers.STALL


def test_what_is_left_open_is_found(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = list[Any]()
    monkeypatch.setattr(network_campaign, "ENDS", 0.2)
    monkeypatch.setattr(_Adapter, "close", lambda self: kept.extend(self.poolmanager.pools._container.values()))
    assert "left behind: ['" in problems(net, plan())
    for pool in kept:
        pool.close()


def test_a_thread_that_stays_is_found(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = list[DownloadRun]()
    monkeypatch.setattr(network_campaign, "ENDS", 0.2)
    end = DownloadRun.end
    monkeypatch.setattr(DownloadRun, "end", lambda self: ends.append(self) or None)
    found = problems(net, plan(tail=network_answers.refused(Random(0))))
    for each in ends:
        end(each)
    assert "left behind: ['weightcache-" in found


def test_a_mirror_that_is_never_given_up_is_found(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def settings(plan: Plan) -> Settings:
        return replace(real(plan), tries=150, backoff=0.0, backoff_max=0.0)

    real, busy = network_campaign.settings_for, Move("busy", lambda exchange, _: network_answers.status(503)(exchange))
    monkeypatch.setattr(network_campaign, "settings_for", settings)
    assert "150 requests, and at most 10" in problems(net, plan(tail=busy))


def test_a_mirror_that_is_given_up_too_soon_is_found(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    real = network_campaign.settings_for
    monkeypatch.setattr(network_campaign, "settings_for", lambda plan: replace(real(plan), tries=1))
    broken = Move("an end", lambda exchange, _: exchange.hang_up(), is_passing=True)
    assert "a mirror delivers, and it failed" in problems(net, plan(broken))


def test_an_error_of_another_class_is_found(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(TransientError, "__init__", broken)
    assert "RuntimeError is not the error of a download" in problems(net, plan(tail=network_answers.busy(Random(0))))


def test_a_token_that_follows_a_redirect_is_found(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(net, plan(AWAY, auth=True)) == ""
    monkeypatch.setattr(Session, "should_strip_auth", lambda *arguments: False)
    assert "server 1 got the token" in problems(net, plan(AWAY, auth=True))
