"""Addresses that no request is sent to: those of services for the machine itself, above all cloud metadata.

Such a service answers each process of a machine without a password, and its answers may be credentials. A manifest of a
stranger, or a mirror that redirects, must not choose it. The address is checked and not the name, which anybody can
let point to it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from ipaddress import ip_address, ip_network
from typing import Any

from .mirror_stream import SourceError

REFUSED = [
    ip_network("169.254.0.0/16"),  # link-local: metadata of AWS, Azure, Google and Oracle, credentials of ECS and EKS
    ip_network("fe80::/10"),  # link-local
    ip_network("fd00:ec2::/32"),  # AWS in IPv6
    ip_network("100.100.100.200/32"),  # Alibaba
    ip_network("168.63.129.16/32"),  # Azure
]


def is_refused(host: str) -> bool:
    """Whether ``host`` is an address, as the operating system writes it, that no request is sent to."""
    try:
        address: Any = ip_address(host.partition("%")[0])
    except ValueError:  # a Unix socket, or a name
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in network for network in REFUSED)


class _CheckedConnection:
    """A connection of urllib3 that checks where it leads before anything is sent. Mixed into the classes of urllib3."""

    proxy: Any

    def _new_conn(self) -> Any:
        sock, host = super()._new_conn(), ""  # type: ignore[misc]
        with suppress(OSError):  # it broke off already, so nothing can be sent either
            host = sock.getpeername()[0]
        if self.proxy is None and is_refused(host):  # the user chooses the proxy
            sock.close()
            raise SourceError(f"its host is {host}, where only services for this machine are; nothing was requested")
        return sock


@cache
def checked(connection: type[Any]) -> type[Any]:
    """Return a connection class of urllib3 that never sends a request to a refused address."""
    if issubclass(connection, _CheckedConnection):
        return connection
    return type(connection.__name__, (_CheckedConnection, connection), {})
