"""Messages behind the end of UDP datagrams: who reads what, and what survives the way."""

from __future__ import annotations

import random
from struct import pack_into, unpack_from

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.mutations import mutations, truncations
from tests.harness.segments import packed, udp
from tests.harness.surplus import OPTION, Read, read_udp, translated, with_surplus
from trireme_py import wire
from trireme_py.errors import BadPacket
from trireme_py.model import DropReason
from trireme_py.packet import Packet, parse_packet_untrusted
from trireme_py.surplus import (
    OVERHEAD,
    read_datagram_untrusted,
    room_for,
    towards_sender,
    with_message,
    without_message,
)

ENDS = {
    4: ((packed("10.1.0.2"), 40_000), (packed("10.1.0.3"), 53)),
    6: ((packed("fd00:1::2"), 40_000), (packed("fd00:1::3"), 53)),
}
ELSEWHERE = {4: (packed("192.0.2.77"), 5353), 6: (packed("fd00:96::77"), 5353)}
FAMILIES = pytest.mark.parametrize("family", [4, 6])
SEALED = pytest.mark.parametrize("sealed", [False, True])
MESSAGE = wire.MAGIC + bytes((1, 9, 1, 0, 0, 12, 0, 0))


def datagram(family: int, payload: bytes = b"question") -> Packet:
    return parse_packet_untrusted(udp(*ENDS[family], payload))


def message_of(size: int) -> bytes:
    return wire.MAGIC + bytes(index * 7 % 256 for index in range(size - 4))


@FAMILIES
@SEALED
@pytest.mark.parametrize("octets", [0, 1, 2, 7, 8, 511, 512])
@pytest.mark.parametrize("message", [12, 13, 188, 501])
def test_a_message_comes_back_as_it_went(family: int, sealed: bool, octets: int, message: int) -> None:
    packet, payload, ours = datagram(family), bytes(range(256)) * 2, message_of(message)
    payload = payload[:octets]
    data = with_message(packet, payload, ours, sealed=sealed)
    seen = read_udp(data)
    assert (seen.payload, seen.message) == (payload, ours)
    assert (seen.delivered, seen.tracked) == (not sealed, True)
    assert len(data) <= packet.transport + 8 + octets + OVERHEAD + message
    read = read_datagram_untrusted(parse_packet_untrusted(data))
    assert (read.payload, read.message, read.sealed, read.surplus) == (payload, ours, sealed, len(seen.surplus))
    plain = without_message(parse_packet_untrusted(data), read.payload)
    assert plain == udp(*ENDS[family], payload)


@FAMILIES
@SEALED
@given(payload=st.binary(max_size=300), tail=st.binary(min_size=8, max_size=300))
def test_any_octets_come_back(family: int, sealed: bool, payload: bytes, tail: bytes) -> None:
    data = with_message(datagram(family), payload, wire.MAGIC + tail, sealed=sealed)
    seen = read_udp(data)
    assert (seen.delivered, seen.tracked, seen.payload) == (not sealed, True, payload)
    read = read_datagram_untrusted(parse_packet_untrusted(data))
    assert (read.payload, read.message, read.sealed) == (payload, wire.MAGIC + tail, sealed)


@FAMILIES
@SEALED
@given(
    port=st.integers(0, 65_535), other=st.integers(0, 65_535), host=st.integers(0, 255), payload=st.binary(max_size=40)
)
def test_both_sums_survive_translation(
    family: int, sealed: bool, port: int, other: int, host: int, payload: bytes
) -> None:
    """The kernel's NAT adds the difference to the checksum, whatever that checksum is of."""
    address = ELSEWHERE[family][0][:-1] + bytes((host,))
    data = with_message(datagram(family), payload, MESSAGE, sealed=sealed)
    for there in (
        translated(data, destination=(address, port)),
        translated(data, source=(address, other)),
        translated(data, source=(address, other), destination=(address, port)),
    ):
        seen = read_udp(there)
        assert (seen.delivered, seen.tracked) == (not sealed, True)
        read = read_datagram_untrusted(parse_packet_untrusted(there))
        assert (read.payload, read.message, read.sealed) == (payload, MESSAGE, sealed)
        assert read_udp(without_message(parse_packet_untrusted(there), payload)) == Read(
            seen.source, seen.sport, seen.destination, seen.dport, payload, b"", delivered=True, tracked=True
        )


@FAMILIES
def test_every_value_of_the_checksum(family: int) -> None:
    """Among 65,536 payloads of two octets every checksum occurs, the two that need care included."""
    packet = datagram(family)
    for value in range(1 << 16):
        data = with_message(packet, value.to_bytes(2, "big"), MESSAGE, sealed=bool(value & 1))
        summed = unpack_from("!H", data, packet.transport + 6)[0]
        assert summed != 0  # that would say "no checksum"
        if value % 257 < 4 or summed in (0xFFFF, 1, 0x5A5A, 0xA5A5):
            seen = read_udp(data)
            assert (seen.delivered, seen.tracked) == (not value & 1, True)


@FAMILIES
@pytest.mark.parametrize("octets", [0, 1, 400])
def test_padding_fills_the_smallest_mtu_and_not_more(family: int, octets: int) -> None:
    data = with_message(datagram(family), bytes(octets), MESSAGE, sealed=True, pad=True)
    assert len(data) == wire.PATH_MTU
    seen = read_udp(data)
    assert (seen.message, seen.delivered, seen.tracked) == (MESSAGE, False, True)
    assert not seen.surplus[len(seen.surplus) - 500 :].strip(b"\0")  # End of List, and zeros behind it
    assert read_datagram_untrusted(parse_packet_untrusted(data)).message == MESSAGE


@FAMILIES
def test_there_is_room_for_exactly_what_fits(family: int) -> None:
    packet = datagram(family)
    most = wire.PATH_MTU - packet.transport - 8 - OVERHEAD - len(MESSAGE)
    assert room_for(most, packet.transport, len(MESSAGE))
    assert not room_for(most + 1, packet.transport, len(MESSAGE))
    assert wire.PATH_MTU - 1 <= len(with_message(packet, bytes(most), MESSAGE)) <= wire.PATH_MTU


def test_ipv4_without_a_checksum() -> None:
    """RFC 768: zero says that the sender did not sum. A message brings a sum along, for both readers."""
    data = bytearray(udp(*ENDS[4], b"question"))
    pack_into("!H", data, 26, 0)
    packet = parse_packet_untrusted(bytes(data))
    read = read_datagram_untrusted(packet)
    assert (read.payload, read.message, read.surplus) == (b"question", None, 0)
    seen = read_udp(with_message(packet, b"question", MESSAGE))
    assert (seen.delivered, seen.tracked) == (True, True)
    assert unpack_from("!H", without_message(packet, b"question"), 26)[0] != 0


def test_a_message_behind_a_datagram_without_a_checksum_must_be_summed_itself() -> None:
    data = bytearray(with_message(datagram(4), b"question", MESSAGE))
    pack_into("!H", data, 26, 0)
    with pytest.raises(BadPacket) as refusal:
        read_datagram_untrusted(parse_packet_untrusted(bytes(data)))
    assert refusal.value.reason is DropReason.BAD_CHECKSUM


FOREIGN = (
    b"\x01\x01\x01\x00",
    b"\x05\x06\x05\xdc" + bytes(4),
    b"\x7f\x08\x12\x34abcd",
    OPTION + b"\x00\x12\x12\x34" + wire.MAGIC + bytes(8),
    OPTION + b"\x00\x12\xf7\x54" + b"NOPE" + bytes(8),
    bytes(40),
    b"\xff" * 41,
)


@FAMILIES
@pytest.mark.parametrize("surplus", FOREIGN)
@pytest.mark.parametrize("payload", [b"even", b"odd"])
@pytest.mark.parametrize("option", [True, False])
def test_somebody_elses_surplus_is_none_of_ours(family: int, surplus: bytes, payload: bytes, option: bool) -> None:
    """Whatever it is, summed or not: the datagram is read, and nothing is said about its surplus but its size."""
    data = with_surplus(udp(*ENDS[family], payload), surplus, option=option)
    if option:
        assert read_udp(data).tracked
    read = read_datagram_untrusted(parse_packet_untrusted(data))
    assert (read.payload, read.message, read.sealed) == (payload, None, False)
    assert read.surplus == len(data) - len(udp(*ENDS[family], payload))


@FAMILIES
@SEALED
def test_one_flipped_bit_of_a_datagram_with_a_message_is_noticed(family: int, sealed: bool) -> None:
    """But where the message is no message any more: then its datagram is like any with a surplus of its own, and a
    socket discards it or not as it ever did."""
    data = with_message(datagram(family), b"question", MESSAGE, sealed=sealed)
    start = len(data) - len(data[40 if family == 6 else 20 :])
    noticed = 0
    for position in range(start * 8, len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        try:
            read = read_datagram_untrusted(parse_packet_untrusted(bytes(flipped)))
        except BadPacket:
            noticed += 1
        else:
            assert read.message is None
    assert noticed >= (8 + len(b"question") + 2 + len(MESSAGE) - 4 - 3) * 8


@FAMILIES
def test_lengths_that_cannot_be(family: int) -> None:
    data = bytearray(udp(*ENDS[family], b"question"))
    at = (20 if family == 4 else 40) + 4
    for length in (0, 7, 17, 0xFFFF):
        pack_into("!H", data, at, length)
        with pytest.raises(BadPacket) as refusal:
            read_datagram_untrusted(parse_packet_untrusted(bytes(data)))
        assert refusal.value.reason is DropReason.MALFORMED_PACKET


@FAMILIES
def test_a_truncated_copy_is_read_without_surplus(family: int) -> None:
    data = with_message(datagram(family), bytes(500), MESSAGE)
    for short in (data[:-1], data[:100]):
        read = read_datagram_untrusted(parse_packet_untrusted(short))
        assert (read.message, read.surplus) == (None, 0)


@FAMILIES
def test_an_answer_goes_back_where_the_question_came_from(family: int) -> None:
    packet = datagram(family)
    back = read_udp(with_message(towards_sender(packet), b"", MESSAGE, sealed=True))
    assert ((back.source, back.sport), (back.destination, back.dport)) == ENDS[family][::-1]
    assert (back.payload, back.message, back.tracked, back.delivered) == (b"", MESSAGE, True, False)


@FAMILIES
def test_layout_octet_by_octet(family: int) -> None:
    """An odd datagram: pad, OCS, option header, message; the OCS computed here as RFC 9868, section 9, has it."""
    payload = b"odd"
    data = with_message(datagram(family), payload, MESSAGE)
    surplus = data[-(1 + 2 + 6 + 12) :]
    assert surplus[0] == 0
    assert surplus[3:9] == OPTION + (6 + 12).to_bytes(2, "big") + b"\xf7\x54"
    assert surplus[9:] == MESSAGE
    total = len(surplus) + sum(unpack_from("!10H", surplus, 1))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF
    assert data[: -len(surplus)][-(8 + 3) :] == udp(*ENDS[family], payload)[-(8 + 3) :]


@pytest.mark.parametrize("family", [4, 6])
def test_a_hundred_thousand_malformed_surplus_areas(family: int) -> None:
    """Whatever stands there, reading ends with a datagram or with BadPacket."""
    rng = random.Random(9868)
    packet = datagram(family)
    whole = with_message(packet, b"question", message_of(120))
    seen = {"message": 0, "plain": 0, "bad": 0}

    def read(data: bytes) -> None:
        try:
            found = read_datagram_untrusted(parse_packet_untrusted(data))
        except BadPacket:
            seen["bad"] += 1
            return
        seen["plain" if found.message is None else "message"] += 1
        if found.message is not None:
            assert found.message.startswith(wire.MAGIC)
            assert read_udp(data).tracked

    end = packet.transport + 16
    plain = udp(*ENDS[family], b"question")
    for index, area in enumerate(mutations(whole[end:], 49_000, seed=family)):
        summed = index % 2 == 1  # the OCS is made right again, as whoever means harm would
        read(with_surplus(plain, area[2:] if summed else area, option=summed))
    for data in truncations(whole):
        read(data)
    for _ in range(1_000):
        payload, message = rng.randbytes(rng.randrange(9)), wire.MAGIC + rng.randbytes(rng.randrange(30))
        size = rng.choice((6 + len(message), rng.randrange(1 << 16), rng.randrange(40)))
        area = OPTION + size.to_bytes(2, "big") + b"\xf7\x54" + message
        read(with_surplus(udp(*ENDS[family], payload), area))
    assert min(seen.values()) > 1_000, seen
