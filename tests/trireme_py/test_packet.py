"""Packets read and rewritten, held against scapy and against checksums summed word by word."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.mutations import mutations, truncations
from tests.harness.segments import checksum, icmp, ip, packed, read, tcp, udp
from trireme_py.errors import BadPacket
from trireme_py.model import DropReason
from trireme_py.packet import (
    ACK,
    FIN,
    PSH,
    RST,
    SYN,
    Packet,
    has_fast_open,
    icmp_error_subject_untrusted,
    internet_checksum,
    parse_packet_untrusted,
    reset_for,
    tcp_checksum_is_right,
    with_tcp,
)

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers import inet, inet6  # noqa: E402 - it warns while it is imported

FAMILIES = pytest.mark.parametrize("family", [4, 6])
ENDS = {
    4: ((packed("10.1.0.2"), 40_000), (packed("10.1.0.3"), 80)),
    6: ((packed("fd00:1::2"), 40_000), (packed("fd00:1::3"), 80)),
}


def refused(data: bytes) -> DropReason:
    with pytest.raises(BadPacket) as refusal:
        parse_packet_untrusted(data)
    return refusal.value.reason


def valid(data: bytes) -> bool:
    """Whether scapy, too, finds every length and checksum right."""
    layer = inet.IP if data[0] >> 4 == 4 else inet6.IPv6
    again = layer(data)
    for one in (again, again[inet.TCP]):
        for name in ("chksum", "len", "plen"):
            if name in one.fields:
                del one.fields[name]
    return bytes(again) == data


# -- reading ----------------------------------------------------------------------------------------------------------


@FAMILIES
def test_tcp_is_read(family: int) -> None:
    source, destination = ENDS[family]
    packet = parse_packet_untrusted(tcp(source, destination, 7, 9, ACK | PSH, b"payload", b"\1" * 40))
    assert (packet.version, packet.protocol) == (family, 6)
    assert (packet.source, packet.source_port, packet.destination, packet.destination_port) == (*source, *destination)
    assert (packet.sequence, packet.acknowledgement, packet.flags) == (7, 9, ACK | PSH)
    assert (packet.payload, packet.payload_length, packet.truncated) == (b"payload", 7, False)
    assert tcp_checksum_is_right(packet)


@FAMILIES
def test_ports_of_udp_are_read_and_those_of_others_are_not(family: int) -> None:
    (one, _), (other, _) = ENDS[family]
    packet = parse_packet_untrusted(udp((one, 53), (other, 5353), b"x"))
    assert (packet.protocol, packet.source_port, packet.destination_port) == (17, 53, 5353)
    packet = parse_packet_untrusted(ip(one, other, 47, b"\0\1\2\3\4\5\6\7"))
    assert (packet.protocol, packet.source_port, packet.destination_port) == (47, None, None)


@FAMILIES
def test_copy_that_was_cut_short_keeps_the_true_length(family: int) -> None:
    whole = tcp(*ENDS[family], 1, 1, ACK, bytes(3000))
    packet = parse_packet_untrusted(whole[:1000])
    assert packet.truncated
    assert packet.length == len(whole)
    assert packet.payload_length == 3000
    assert len(packet.payload) == 1000 - packet.body
    assert not tcp_checksum_is_right(packet)


@FAMILIES
def test_padding_of_the_link_is_no_payload(family: int) -> None:
    packet = parse_packet_untrusted(tcp(*ENDS[family], 1, 1, ACK) + bytes(6))
    assert (packet.payload, packet.payload_length) == (b"", 0)


@FAMILIES
def test_every_prefix_within_the_headers_is_malformed(family: int) -> None:
    whole = tcp(*ENDS[family], 1, 1, SYN, options=b"\1" * 20)
    for short in truncations(whole):
        assert refused(short) is DropReason.MALFORMED_PACKET


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"\x35" + data[1:],
        lambda data: b"\x44" + data[1:],
        lambda data: b"\x4f" + data[1:],
        lambda data: data[:2] + b"\0\x13" + data[4:],
        lambda data: data[:2] + b"\0\x14" + data[4:],
        lambda data: data[:32] + b"\x40" + data[33:],
        lambda data: data[:32] + b"\xf0" + data[33:],
    ],
    ids=["version", "header too short", "header too long", "length below header", "no room", "offset 4", "offset 15"],
)
def test_lengths_that_contradict_each_other_are_malformed(change: Callable[[bytes], bytes]) -> None:
    assert refused(change(tcp(*ENDS[4], 1, 1, SYN))) is DropReason.MALFORMED_PACKET


@pytest.mark.parametrize(("field", "fragment"), [(0x2000, True), (0x0001, True), (0x1FFF, True), (0x4000, False)])
def test_ipv4_fragments(field: int, fragment: bool) -> None:
    data = tcp(*ENDS[4], 1, 1, SYN)
    data = data[:6] + field.to_bytes(2, "big") + data[8:]
    if fragment:
        assert refused(data) is DropReason.FRAGMENT
    else:
        assert parse_packet_untrusted(data).flags == SYN


def chained(headers: list[tuple[int, bytes]], last: int = 6) -> bytes:
    """An IPv6 SYN behind extension headers; each is (its own number, all of it but its first octet)."""
    data = tcp(*ENDS[6], 5, 0, SYN, b"x")
    following = [*(number for number, _ in headers), last][1:]
    body = b"".join(bytes([after]) + rest for after, (_, rest) in zip(following, headers, strict=True))
    first = headers[0][0] if headers else last
    return data[:4] + (len(data) - 40 + len(body)).to_bytes(2, "big") + bytes([first]) + data[7:40] + body + data[40:]


HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(HOP, bytes(7))],
        [(HOP, b"\1" + bytes(14)), (DESTINATION, bytes(7))],
        [(ROUTING, bytes(7)), (DESTINATION, bytes(7))],
        [(FRAGMENT, bytes(7))],
        [(AUTHENTICATION, b"\4" + bytes(22))],
        [(DESTINATION, bytes(7))] * 8,
    ],
)
def test_ipv6_extension_headers_are_passed_over_and_kept(headers: list[tuple[int, bytes]]) -> None:
    data = chained(headers)
    packet = parse_packet_untrusted(data)
    assert (packet.flags, packet.sequence, packet.payload) == (SYN, 5, b"x")
    assert tcp_checksum_is_right(packet)
    longer = with_tcp(packet, b"another payload")
    assert longer[6 : packet.transport] == data[6 : packet.transport]
    assert parse_packet_untrusted(longer).payload == b"another payload"
    assert tcp_checksum_is_right(parse_packet_untrusted(longer))


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([(DESTINATION, bytes(7))] * 9, DropReason.MALFORMED_PACKET),
        ([(HOP, b"\xff" + bytes(6))], DropReason.MALFORMED_PACKET),
        ([(AUTHENTICATION, b"\xff" + bytes(6))], DropReason.MALFORMED_PACKET),
        ([(FRAGMENT, b"\0\0\1" + bytes(4))], DropReason.FRAGMENT),
        ([(FRAGMENT, b"\0\0\x08" + bytes(4))], DropReason.FRAGMENT),
    ],
)
def test_ipv6_extension_headers_that_lead_nowhere(headers: list[tuple[int, bytes]], reason: DropReason) -> None:
    assert refused(chained(headers)) is reason


def test_ipv6_header_chain_cut_short() -> None:
    for short in truncations(chained([(HOP, bytes(7)), (FRAGMENT, bytes(7))])[:-1]):
        assert refused(short) is DropReason.MALFORMED_PACKET


@given(st.binary(max_size=120))
def test_reader_raises_nothing_but_bad_packet(rest: bytes) -> None:
    for data in (rest, b"\x45" + rest, b"\x60" + rest):
        try:
            packet = parse_packet_untrusted(data)
        except BadPacket:
            continue
        assert packet.transport <= packet.length
        assert packet.body <= len(packet.data) <= packet.length
        icmp_error_subject_untrusted(packet)


@FAMILIES
def test_mutated_packets_are_read_or_refused_and_can_be_rewritten(family: int) -> None:
    whole = tcp(*ENDS[family], 7, 9, SYN, b"payload", b"\x02\x04\x05\xb4\x22\x02\x01\x01")
    for data in mutations(whole, 5_000, seed=family):
        try:
            packet = parse_packet_untrusted(data)
        except BadPacket:
            continue
        if packet.protocol == 6:
            has_fast_open(packet)
            again = parse_packet_untrusted(with_tcp(packet, b"new", without_fast_open=True))
            assert again.payload == b"new"
            assert parse_packet_untrusted(reset_for(packet, towards_sender=True)).flags == RST | ACK


# -- checksums --------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_checksum_is_that_of_rfc_1071(data: bytes) -> None:
    ours, theirs = internet_checksum(data), checksum(data)
    assert ours == theirs or {ours, theirs} == {0, 0xFFFF}  # the two zeros of one's complement


@FAMILIES
def test_checksum_finds_every_flipped_bit(family: int) -> None:
    data = tcp(*ENDS[family], 1, 1, ACK, b"odd")
    packet = parse_packet_untrusted(data)
    for bit in range(packet.transport * 8, len(data) * 8):
        if (packet.transport + 12) * 8 <= bit < (packet.transport + 13) * 8:
            continue  # the data offset: another packet altogether
        hurt = bytearray(data)
        hurt[bit // 8] ^= 1 << bit % 8
        assert not tcp_checksum_is_right(parse_packet_untrusted(bytes(hurt)))


# -- rewriting --------------------------------------------------------------------------------------------------------


@FAMILIES
@given(payload=st.binary(max_size=64), sequence=st.integers(0, 1 << 33), flags=st.sampled_from([None, ACK, SYN | ACK]))
@settings(deadline=None)
def test_rewritten_packet_is_right_and_different_in_nothing_else(
    family: int, payload: bytes, sequence: int, flags: int | None
) -> None:
    options = b"\x02\x04\x05\xb4\x01\x01\x01\x01"
    packet = parse_packet_untrusted(tcp(*ENDS[family], 1, 2, SYN, b"before", options))
    data = with_tcp(packet, payload, sequence=sequence, acknowledgement=None, flags=flags)
    assert valid(data)
    after = read(data)
    assert after is not None
    assert (after.payload, after.sequence, after.acknowledgement) == (payload, sequence % (1 << 32), 2)
    assert after.flags == (SYN if flags is None else flags)
    assert after.options == options
    same = range(1, 20) if family == 4 else range(40)
    renewed = {2, 3, 10, 11} if family == 4 else {4, 5}
    assert all(data[at] == packet.data[at] for at in same if at not in renewed)


def test_ipv4_options_survive() -> None:
    data = tcp(*ENDS[4], 1, 1, SYN, b"x")
    stuffed = b"\x46" + data[1:2] + (len(data) + 4).to_bytes(2, "big") + data[4:20] + b"\x94\x04\0\0" + data[20:]
    packet = parse_packet_untrusted(stuffed)
    assert packet.transport == 24
    after = with_tcp(packet, b"token")
    assert after[20:24] == b"\x94\x04\0\0"
    assert read(after) is not None


FAST_OPEN = [
    (b"\x22\x02", True),
    (b"\x22\x0a12345678", True),
    (b"\xfe\x04\xf9\x89", True),
    (b"\xfe\x0c\xf9\x8912345678", True),
    (b"\xfe\x04\x00\x00", False),
    (b"\x02\x04\x05\xb4\x22\x02", True),
    (b"\x00\x00\x22\x02", False),
    (b"\x22\x00", False),
    (b"\x22\x01", False),
    (b"\x22", False),
    (b"\x02\x28\x22\x02", False),
    (b"", False),
]


@pytest.mark.parametrize(("options", "found"), FAST_OPEN)
def test_fast_open_is_found_and_blanked(options: bytes, found: bool) -> None:
    options += b"\1" * (-len(options) % 4)
    packet = parse_packet_untrusted(tcp(*ENDS[4], 1, 0, SYN, b"early", options))
    assert has_fast_open(packet) is found
    after = parse_packet_untrusted(with_tcp(packet, b"", without_fast_open=True))
    assert not has_fast_open(after)
    assert after.body == packet.body
    if not found:
        assert after.data[40 : after.body] == options


# -- resets -----------------------------------------------------------------------------------------------------------


def parsed_reset(packet: Packet, *, towards_sender: bool) -> Packet:
    data = reset_for(packet, towards_sender=towards_sender)
    assert valid(data)
    reset = parse_packet_untrusted(data)
    assert (reset.flags, reset.payload) == (RST | ACK, b"")
    return reset


@FAMILIES
@pytest.mark.parametrize(
    ("flags", "payload", "octets"),
    [(ACK, b"data", 4), (ACK, b"", 0), (ACK | FIN, b"data", 5), (SYN | ACK, b"", 1), (SYN | ACK, b"our token", 1)],
)
def test_reset_stands_where_each_end_expects_it(flags: int, payload: bytes, octets: int, family: int) -> None:
    """RFC 9293, section 3.10.7.4. The payload of a SYN is our own and is not counted by its sender."""
    source, destination = ENDS[family]
    packet = parse_packet_untrusted(tcp(source, destination, (1 << 32) - 2, 900, flags, payload))
    back = parsed_reset(packet, towards_sender=True)
    assert ((back.source, back.source_port), (back.destination, back.destination_port)) == (destination, source)
    assert (back.sequence, back.acknowledgement) == (900, ((1 << 32) - 2 + octets) % (1 << 32))
    ahead = parsed_reset(packet, towards_sender=False)
    assert ((ahead.source, ahead.source_port), (ahead.destination, ahead.destination_port)) == (source, destination)
    assert (ahead.sequence, ahead.acknowledgement) == ((1 << 32) - 2, 900)


# -- ICMP -------------------------------------------------------------------------------------------------------------


@FAMILIES
def test_icmp_error_names_what_it_is_about(family: int) -> None:
    (client, _), (server, _) = ENDS[family]
    about = tcp(*ENDS[family], 1, 1, SYN, bytes(100))
    error = icmp(server, client, 3 if family == 4 else 1, body=about[: 28 if family == 4 else 48])
    subject = icmp_error_subject_untrusted(parse_packet_untrusted(error))
    assert subject is not None
    assert (subject.source, subject.source_port) == ENDS[family][0]
    assert (subject.destination, subject.destination_port) == ENDS[family][1]
    assert subject.protocol == 6
    quoted = 20 if family == 4 else 40
    for length in range(quoted + 4):
        short = icmp(server, client, 3 if family == 4 else 1, body=about[:length])
        assert icmp_error_subject_untrusted(parse_packet_untrusted(short)) is None
    echo = icmp(server, client, 8 if family == 4 else 128, body=about)
    assert icmp_error_subject_untrusted(parse_packet_untrusted(echo)) is None
