"""`NO_PROXY`: who is asked directly, although there is a proxy."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_WITH_PORT = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::(\d{1,5}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry: a network for whoever is asked for by address, a name for all others."""

    name: str
    network: Network | None
    port: int | None = None

    def covers(self, host: str, address: Address | None, port: int) -> bool:
        """Whether *host*, which is this *address* if it is any, is meant, and this *port*."""
        if self.port not in {None, port}:
            return False
        if self.name == "*":
            return True
        if address is not None:  # no suffix of it means anything
            return self.network is not None and address in self.network
        return self.network is None and f".{host}".endswith(f".{self.name}")


class Exempt:
    """The hosts that a `NO_PROXY` lists, by commas or spaces; no name is resolved for it."""

    def __init__(self, text: str) -> None:
        self._rules = [rule for entry in re.split(r"[\s,]+", text) if (rule := _rule(entry))]

    def __repr__(self) -> str:
        return f"<Exempt [{len(self._rules)} rules]>"

    def has(self, host: str, port: int) -> bool:
        """Whether *host* is to be asked directly at *port*."""
        plain = _plain(host)
        address = _address(plain)
        return any(rule.covers(plain, address, port) for rule in self._rules)


def _rule(entry: str) -> Rule | None:
    """Return what *entry* means; None if it is nothing."""
    found = _WITH_PORT.fullmatch(entry)
    bare, port = (found[1], found[2]) if found else (entry, None)  # IPv6 has colons of its own
    name = _plain(bare.strip("[]"))
    name = name if name == "*" else name.removeprefix("*").lstrip(".")
    return Rule(name, _network(name), int(port) if port else None) if name else None


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _address(host: str) -> Address | None:
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
