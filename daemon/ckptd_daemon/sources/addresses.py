"""Addresses of this machine or its network, to which only the daemon's own user may send it."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Any

_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# what Python 3.11 takes for global
_SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's platform, from inside its machines
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata
        "192.88.99.0/24",  # 6to4 relays
    )
)


Info = tuple[Any, Any, int, str, tuple[Any, ...]]
"""An entry of `getaddrinfo`."""


class PrivateAddressError(OSError):
    """What was to be connected to is no public address."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "a private address")


def is_public(address: str) -> bool:
    """Tell whether the IP *address* is the public internet's; embedded IPv4 addresses count."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if parsed in _NAT64:
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if parsed not in _GLOBAL_IPV6:
            return False
    is_special = any(parsed in network for network in _SPECIAL)
    return parsed.is_global and not parsed.is_multicast and not is_special


def is_nowhere(error: BaseException | None) -> bool:
    """Tell whether *error* means that a host is not known, or that nobody listens at its port."""
    return isinstance(error, socket.gaierror | ConnectionRefusedError)


def is_literally_private(host: str) -> bool:
    """Tell whether *host* is an IP address, and not a public one."""
    try:
        return not is_public(host)
    except ValueError:
        return False  # a name: who connects will see


def public_socket(info: tuple[Any, ...]) -> socket.socket:
    """Return a socket for an entry of `getaddrinfo`; raises `PrivateAddressError`."""
    if not is_public(info[4][0]):
        raise PrivateAddressError
    return any_socket(info)


def any_socket(info: tuple[Any, ...]) -> socket.socket:
    """Return a socket for an entry of `getaddrinfo`."""
    return socket.socket(info[0], info[1], info[2])


def resolve(host: str, port: int, *, is_literal: bool = False) -> list[Info]:
    """Return the addresses of *host*; blocks as long as its resolver likes, or is not asked.

    Raises `gaierror`, also for a name where only what *is_literal* is wanted.
    """
    flags = socket.AI_NUMERICHOST if is_literal else 0
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))


def dial(
    addresses: Iterable[Info],
    timeout_s: float,
    *,
    only_public: bool,
    on_socket: Callable[[socket.socket], object],
) -> socket.socket:
    """Connect to the first of *addresses* that answers; blocks up to *timeout_s* for each.

    *on_socket* gets every socket before it connects, so that it may be shut down meanwhile.
    """
    failure = OSError(errno.EADDRNOTAVAIL, "the host has no address")
    for info in addresses:
        try:
            sock = public_socket(info) if only_public else any_socket(info)
        except OSError as error:
            failure = error
            continue
        try:
            on_socket(sock)
            sock.settimeout(timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(info[4])
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure
