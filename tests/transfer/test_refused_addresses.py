"""Addresses that no request is sent to, by whatever name and redirect they are reached."""

from __future__ import annotations

import errno
from ipaddress import ip_network
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import urllib3.connection

from origin import Origin, redirect
from support import blob, one, quiet
from weightcache import DownloadError
from weightcache._transfer import refused_addresses

DATA = blob(1000)


@pytest.mark.parametrize(
    ("host", "refused"),
    [
        ("169.254.169.254", True),  # metadata of AWS, Azure, Google and Oracle
        ("169.254.170.2", True),  # credentials of a task in ECS
        ("::ffff:169.254.169.254", True),
        ("fe80::a9fe:a9fe%eth0", True),
        ("fd00:ec2::254", True),
        ("100.100.100.200", True),
        ("168.63.129.16", True),
        ("64:ff9b::a9fe:a9fe", True),  # through a NAT64 gateway
        ("fd20:ce::254", True),
        ("fd00:c1::a9fe:a9fe", True),
        ("2852039166", True),  # 169.254.169.254, as the operating system accepts it too
        ("0xa9fea9fe", True),
        ("169.254.43518", True),
        ("169.254.171.5", False),  # a service of VPC Lattice
        ("fd00:ec2:80::1", False),
        ("134744072", False),
        ("metadata", False),  # a name: its address is checked once there is a connection
        ("", False),
        ("127.0.0.1", False),
        ("10.1.2.3", False),  # a mirror of one's own network is a good mirror
        ("192.168.1.1", False),
        ("fd12::1", False),
        ("8.8.8.8", False),
        ("/run/socket", False),
    ],
)
def test_which_addresses(host: str, refused: bool) -> None:
    assert refused_addresses.is_refused(host) is refused


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the address of `localhost` be one of those: nobody can listen at a real one here."""
    monkeypatch.setattr(refused_addresses, "REFUSED", [ip_network("127.0.0.1/32")])
    return "localhost"


def test_nothing_is_sent_there(metadata: str, origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    with pytest.raises(
        DownloadError, match=r"127\.0\.0\.1, where only services for this machine are; no request was"
    ) as e:
        quiet(one(DATA, f"http://{metadata}:{origin.port}/a"), root)
    assert (origin.requests, e.value.attempts[0].tries) == ([], 1)


@pytest.mark.parametrize("by", ["name", "address"])
def test_no_redirect_leads_there(by: str, metadata: str, root: Path) -> None:
    with Origin(host="127.0.0.2") as mirror, Origin() as origin:
        origin.put("/a", DATA)
        target = origin.url("/a") if by == "address" else f"http://{metadata}:{origin.port}/a"
        mirror.put("/a", DATA, always=redirect(target))
        with pytest.raises(DownloadError, match="only services for this machine"):
            quiet(one(DATA, mirror.url("/a")), root)
        assert (mirror.gets(), origin.requests) == (1, [])


def test_a_proxy_may_be_there(metadata: str, origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user sets it, and no manifest can."""
    monkeypatch.setenv("http_proxy", origin.url(""))
    origin.put("http://weights.example/a", DATA)
    assert quiet(one(DATA, "http://weights.example/a"), root)["sam2"].read_bytes() == DATA


def test_no_proxy_is_asked_for_such_an_address(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy on this machine would ask its metadata service."""
    monkeypatch.setenv("http_proxy", origin.url(""))
    for host in ("169.254.169.254", "[fd00:ec2::254]", "0xa9fea9fe"):
        with pytest.raises(DownloadError, match="only services for this machine"):
            quiet(one(DATA, f"http://{host}/a"), root)
    assert origin.requests == []


def test_threads_that_share_a_pool_never_connect_unchecked(origin: Origin) -> None:
    """Each thread sets the class of the connections of a pool. It must never be one that does not check."""
    from weightcache._transfer import http_session

    class Pool:
        def __init__(self) -> None:
            object.__setattr__(self, "ConnectionCls", urllib3.connection.HTTPConnection)
            object.__setattr__(self, "seen", [])

        def __setattr__(self, name: str, value: type) -> None:
            self.seen.append(value)  # type: ignore[attr-defined]
            object.__setattr__(self, name, value)

    pool, adapter = Pool(), http_session._Adapter(1)
    with patch.object(http_session.VerbatimAdapter, "get_connection_with_tls_context", return_value=pool):
        adapter.get_connection_with_tls_context(Mock(), True)
    assert [issubclass(each, refused_addresses._CheckedConnection) for each in pool.seen] == [True]  # type: ignore[attr-defined]


def test_a_connection_that_broke_off_already_is_left_to_fail_as_any_other() -> None:
    sock = Mock(getpeername=Mock(side_effect=OSError(errno.ENOTCONN, "not connected")))
    connection = type("Connection", (), {"proxy": None, "_new_conn": lambda self: sock})
    assert refused_addresses.checked(connection)()._new_conn() is sock
    sock.close.assert_not_called()
