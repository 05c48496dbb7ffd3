"""Addresses that no request is sent to: those of services for the machine itself, above all cloud metadata.

Such a service answers each process of a machine without a password, and its answers may be credentials. A manifest of a
stranger, or a mirror that redirects, must not choose it. The address of each connection is checked, because anybody can
let a name point to it. An address that stands in a URL is checked as well, because a proxy would be asked for it.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from .mirror_stream import SourceError

REFUSED = [
    ip_network("169.254.0.0/16"),  # link-local: metadata of AWS, Azure, Google and Oracle, credentials of ECS and EKS
    ip_network("fe80::/10"),  # link-local
    ip_network("fd00:ec2::/32"),  # AWS in IPv6
    ip_network("fd20:ce::254/128"),  # Google in IPv6
    ip_network("fd00:c1::a9fe:a9fe/128"),  # Oracle in IPv6
    ip_network("100.100.100.200/32"),  # Alibaba
    ip_network("168.63.129.16/32"),  # Azure
]
# VPC Lattice of AWS gives these to services of its customers, which may be mirrors.
ALLOWED = [ip_network("169.254.171.0/24"), ip_network("fd00:ec2:80::/64")]
_NAT64 = ip_network("64:ff9b::/96")  # an IPv4 address in its last 32 bits (RFC 6052)


def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that ``host`` is; ``None`` for a name or the path of a Unix socket.

    Also one that is written as a number, such as 2852039166 or 0xa9fea9fe, which the operating system accepts.
    """
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        try:
            return IPv4Address(socket.inet_aton(host))
        except (OSError, UnicodeError, ValueError):
            return None
    if isinstance(address, IPv6Address):
        inner = IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address.ipv4_mapped
        return inner or address
    return address


def is_refused(host: str) -> bool:
    """Whether ``host`` is an address that no request is sent to."""
    address = address_of(host)
    if address is None or any(address in network for network in ALLOWED):
        return False
    return any(address in network for network in REFUSED)


def check_host(host: str) -> None:
    """Refuse an address that no request is sent to.

    Raises:
        SourceError: ``host`` is one.
    """
    if is_refused(host):
        raise SourceError(f"its host is {host}, where only services for this machine are; no request was sent")


class _CheckedConnection:
    """A connection of urllib3 that checks where it leads before anything is sent. Mixed into the classes of urllib3."""

    proxy: Any

    def _new_conn(self) -> Any:
        sock, host = super()._new_conn(), ""  # type: ignore[misc]
        with suppress(OSError):  # it broke off already, so nothing can be sent either
            host = sock.getpeername()[0]
        if self.proxy is None:  # the user chooses the proxy
            try:
                check_host(host)
            except SourceError:
                sock.close()
                raise
        return sock


@cache
def checked(connection: type[Any]) -> type[Any]:
    """Return a connection class of urllib3 that never sends a request to a refused address."""
    if issubclass(connection, _CheckedConnection):
        return connection
    return type(connection.__name__, (_CheckedConnection, connection), {})
