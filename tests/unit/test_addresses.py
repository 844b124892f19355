"""Which addresses are the public internet's, in whatever form they are written."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.sources.addresses import is_literally_private, is_public

PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "2a00:1450:4001::200e"]
PRIVATE = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",  # carriers', and some clouds' inner networks
    "127.0.0.1",
    "127.1.2.3",
    "168.63.129.16",  # Azure's platform
    "169.254.169.254",  # metadata nearly everywhere
    "172.16.0.1",
    "192.0.0.192",  # Oracle's metadata
    "192.168.1.1",
    "192.88.99.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "64:ff9b:1::a00:1",
    "fc00::1",
    "fd00:ec2::254",  # Amazon's metadata
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "5f00::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_the_public_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_of_this_machine_its_network_or_its_cloud_is_not(address: str) -> None:
    assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_inside_an_ipv6_one_is_as_public_as_by_itself(
    inner: ipaddress.IPv4Address,
) -> None:
    for prefix in ("::ffff:0:0", "64:ff9b::"):
        outer = ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | int(inner))
        assert is_public(str(outer)) == is_public(str(inner))
    sixtofour = ipaddress.IPv6Address(int(ipaddress.IPv6Address("2002::")) | int(inner) << 80)
    assert is_public(str(sixtofour)) == is_public(str(inner))


@given(st.ip_addresses())
def test_what_python_takes_for_private_never_is_public(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if address.is_private or address.is_multicast or address.is_link_local:
        assert not is_public(str(address)) or getattr(address, "ipv4_mapped", None)


@pytest.mark.parametrize("address", PRIVATE)
def test_a_host_that_is_a_private_address_needs_no_try_to_connect(address: str) -> None:
    assert is_literally_private(address)


@pytest.mark.parametrize("host", [*PUBLIC, "localhost", "models.example", ""])
def test_a_name_and_a_public_address_are_tried(host: str) -> None:
    assert not is_literally_private(host)
