"""Addresses, blocks and selectors by themselves."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.addresses import Network, format_address, parse_address, parse_network
from policy.blocks import BlockTable
from policy.files import load_text
from policy.objects import LabelRequirement, LabelSelector, Operator
from policy.selector import compile_selector

ADDRESS = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))
NEAR = st.sampled_from(
    [b"\n\0\0\0", b"\n\0\0\1", b"\n\0\0\xff", b"\n\xff\xff\xff", b"\xff" * 4, b"\xfd" + bytes(15), b"\xff" * 16]
)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    address = draw(NEAR | ADDRESS)
    return parse_network(f"{format_address(address)}/{draw(st.integers(0, len(address) * 8))}")


@pytest.mark.parametrize("text", ["255.255.255.255", "0.0.0.0", "10.0.0.255", "::", "2001:db8::ff", "::ffff:10.0.0.1"])
def test_addresses_are_read_and_written(text: str) -> None:
    assert parse_address(text) == ipaddress.ip_address(text).packed
    assert ipaddress.ip_address(format_address(parse_address(text))) == ipaddress.ip_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0",
        "10.0.0.256",
        "10.0.0.1.1",
        "10.0.0.-1",
        "10.0.0.x",
        "10.0.0.٣",
        "10..0.1",
        "fe80::1%eth0",
        ":",
        "1::2::3",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_address(text)


@pytest.mark.parametrize(
    "text", ["10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "10.0.0.0/255.0.0.0", "/8"]
)
def test_what_is_no_block(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_network(text)


@given(networks(), NEAR | ADDRESS)
def test_containing_is_that_of_the_standard_library(network: Network, address: bytes) -> None:
    theirs, host = ipaddress.ip_network(str(network)), ipaddress.ip_address(address)
    assert network.contains(address) == (theirs.version == host.version and host in theirs)


@given(networks(), networks())
def test_lying_within_is_that_of_the_standard_library(one: Network, two: Network) -> None:
    inner, outer = ipaddress.ip_network(str(one)), ipaddress.ip_network(str(two))
    assert one.within(two) == (inner.version == outer.version and inner.subnet_of(outer))  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(networks(), st.lists(networks(), max_size=2)), max_size=8), st.lists(NEAR | ADDRESS, min_size=1)
)
def test_the_table_finds_what_a_walk_over_all_blocks_finds(
    blocks: list[tuple[Network, list[Network]]], addresses: list[bytes]
) -> None:
    entries = [(network, tuple(parts), (number // 2, number % 2)) for number, (network, parts) in enumerate(blocks)]
    table = BlockTable(entries)
    for address in addresses * 2:
        walked: dict[int, int] = {}
        for network, parts, (ordinal, peer) in entries:
            if network.contains(address) and not any(part.contains(address) for part in parts):
                walked.setdefault(ordinal, peer)
        assert table.lookup(address) == tuple(sorted(walked.items()))
    assert table.lookup(b"") == ()


@pytest.mark.parametrize("inside", ["fd00::/64", "10.0.0.0/7", "11.0.0.0/9", "10.0.0.0/8", "0.0.0.0/0"])
def test_an_exception_must_lie_inside_its_block(inside: str) -> None:
    peer = f'{{ipBlock: {{cidr: 10.0.0.0/8, except: ["{inside}"]}}}}'
    loaded = load_text(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n"
        f"spec: {{podSelector: {{}}, ingress: [{{from: [{peer}]}}]}}"
    )
    assert [each.field for each in loaded.problems] == ["spec.ingress[0].from[0].ipBlock.except[0]"]


def test_selectors_in_words() -> None:
    selector = LabelSelector(
        match_labels={"app": "web"},
        match_expressions=tuple(
            LabelRequirement(key, operator, values)
            for key, operator, values in (
                ("a", Operator.IN, ("y", "x")),
                ("b", Operator.NOT_IN, ("x",)),
                ("c", Operator.NOT_IN, ("x", "y")),
                ("d", Operator.EXISTS, ()),
                ("e", Operator.DOES_NOT_EXIST, ()),
            )
        ),
    )
    assert str(compile_selector(selector)) == "a in (x, y), app=web, b!=x, c not in (x, y), d present, e absent"
    assert str(compile_selector(LabelSelector())) == "everything"
