from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.segments import packed
from trireme_py.networks import NetworkSet


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("10.1.0.0", True),
        ("10.1.255.255", True),
        ("10.2.0.0", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("fd00::1", True),
        ("fe00::1", False),
        ("::10.1.0.1", False),
        ("::ffff:10.1.0.1", False),
    ],
)
def test_membership(address: str, inside: bool) -> None:
    networks = NetworkSet(["10.1.0.0/16", "192.0.2.7", "fd00::/8"])
    assert (packed(address) in networks) is inside


def test_host_bits_are_ignored_and_text_that_is_no_network_is_refused() -> None:
    assert packed("10.1.0.1") in NetworkSet(["10.1.2.3/16"])
    with pytest.raises(ValueError, match="no network"):
        NetworkSet(["no network"])


def test_everything_and_nothing() -> None:
    both = NetworkSet(["0.0.0.0/0", "::/0"])
    assert packed("203.0.113.1") in both
    assert packed("2001:db8::1") in both
    assert packed("2001:db8::1") not in NetworkSet(["0.0.0.0/0"])
    assert not NetworkSet([])
    assert both
    assert packed("10.0.0.1") not in NetworkSet([])
    assert repr(NetworkSet(["10.1.2.3/16"])) == "NetworkSet(['10.1.0.0/16'])"


@given(st.ip_addresses(), st.integers(0, 128), st.ip_addresses())
def test_agrees_with_the_standard_library(base: object, prefix: int, address: object) -> None:
    one = ip_address(str(base))
    network = ip_network(f"{one}/{min(prefix, one.max_prefixlen)}", strict=False)
    other = ip_address(str(address))
    assert (other.packed in NetworkSet([str(network)])) == (other in network)
