"""Who is asked directly, by the entries of `NO_PROXY`."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.sources.exempt import Exempt
from ckptd_daemon.sources.proxies import Proxies

ADDRESSES = st.ip_addresses()


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("corp.example", "corp.example"),
        ("corp.example", "a.b.corp.example"),
        (".corp.example", "a.corp.example"),
        (".corp.example", "corp.example"),
        ("..corp.example", "corp.example"),
        ("*.corp.example", "a.b.corp.example"),
        ("*.corp.example", "corp.example"),
        ("CORP.example.", "a.corp.EXAMPLE."),
        ("corp.example:80", "a.corp.example"),
        ("*.corp.example:80", "a.corp.example"),
        ("*", "anything"),
        ("*", "10.1.2.3"),
        ("*", "::1"),
        ("other, *", "anything"),
        ("*:80", "anything"),
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.2.3:80", "10.1.2.3"),
        ("10.0.0.0/8", "10.1.2.3"),
        ("10.9.9.9/8", "10.1.2.3"),
        ("10.0.0.0/8", "::ffff:10.1.2.3"),
        ("fd00::/8", "fdab::1"),
        ("::1", "0:0:0:0:0:0:0:1"),
        ("[::1]", "::1"),
        ("[::1]:80", "::1"),
        ("other,  10.0.0.0/8 ,third", "10.1.2.3"),
        ("other 10.0.0.0/8\tthird", "10.1.2.3"),
    ],
)
def test_what_an_entry_excepts(text: str, host: str) -> None:
    assert Exempt(text).has(host, 80)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("", "corp.example"),
        (" , ,", "corp.example"),
        ("corp.example", "notcorp.example"),
        ("corp.example", "corp.example.org"),
        ("*.corp.example", "notcorp.example"),
        ("corp.example:8080", "corp.example"),
        ("*:8080", "corp.example"),
        ("10.1.2.3:8080", "10.1.2.3"),
        ("[::1]:8080", "::1"),
        ("10.0.0.0/8", "11.1.2.3"),
        ("10.0.0.0/8", "ten.example"),
        ("10.0.0.0/8", "fd00::1"),
        ("fd00::/8", "10.1.2.3"),
        ("10.0.0.0/33", "10.0.0.0"),
        ("2.3", "10.1.2.3"),
        (".", "corp.example"),
    ],
)
def test_what_an_entry_leaves_to_the_proxy(text: str, host: str) -> None:
    assert not Exempt(text).has(host, 80)


@given(ADDRESSES, ADDRESSES, st.integers(0, 128))
def test_a_network_excepts_the_addresses_that_begin_with_its_bits(
    base: IPv4Address | IPv6Address, asked: IPv4Address | IPv6Address, length: int
) -> None:
    length = min(length, base.max_prefixlen)
    network = ipaddress.ip_network((base, length), strict=False)
    meant = getattr(asked, "ipv4_mapped", None) or asked
    shift = base.max_prefixlen - length
    is_inside = base.version == meant.version and int(meant) >> shift == int(base) >> shift
    assert Exempt(f"other, {network}").has(str(asked), 443) == is_inside


@given(st.text(max_size=30), st.text(max_size=20))
def test_no_entry_breaks_it(text: str, host: str) -> None:
    Exempt(text).has(host, 80)


def test_the_port_of_a_url_is_that_of_its_scheme_unless_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "one:443, two:80, [::1]:8080")
    proxies = Proxies("http://proxy:3128")
    for direct in ("https://one/a", "http://one:443/a", "http://two/a", "http://[::1]:8080/a"):
        assert proxies.of(direct) is None
    for over in ("http://one/a", "https://two/a", "http://[::1]/a"):
        assert str(proxies.of(over)) == "proxy:3128"
