"""UDP datagrams with something behind their end, made and read without the code under test (RFC 768, RFC 9868)."""

from __future__ import annotations

from dataclasses import dataclass
from struct import pack, unpack_from

from tests.harness.segments import UDP, checksum, ip

OPTION = b"\x7f\xff"
"""Kind 127 in its long form; two octets of length and two of ExID follow."""


@dataclass(frozen=True, slots=True)
class Read:
    """A UDP packet as its receivers see it."""

    source: bytes
    sport: int
    destination: bytes
    dport: int
    payload: bytes
    surplus: bytes
    delivered: bool
    """Whether a socket takes it: the sum over the UDP length is right, or IPv4 has none."""
    tracked: bool
    """Whether connection tracking takes it: the sum over the whole IP payload is right, or IPv4 has none."""

    @property
    def message(self) -> bytes:
        """What the option of ours holds; empty without one."""
        start = (len(self.payload) & 1) + 2
        if self.surplus[start : start + 2] != OPTION:
            return b""
        return self.surplus[start + 6 : start + unpack_from("!H", self.surplus, start + 2)[0]]


def _right(source: bytes, destination: bytes, body: bytes) -> bool:
    return checksum(source + destination + pack("!II", len(body), UDP) + body) == 0


def read_udp(data: bytes) -> Read:
    """Read a packet that is known to be whole UDP without IP options."""
    if data[0] >> 4 == 4:
        assert checksum(data[:20]) == 0
        source, destination, body = data[12:16], data[16:20], data[20 : unpack_from("!H", data, 2)[0]]
    else:
        source, destination, body = data[8:24], data[24:40], data[40 : 40 + unpack_from("!H", data, 4)[0]]
    sport, dport, length, summed = unpack_from("!HHHH", body)
    none = len(source) == 4 and summed == 0
    return Read(
        source, sport, destination, dport, body[8:length], body[length:],
        delivered=none or _right(source, destination, body[:length]),
        tracked=none or _right(source, destination, body),
    )  # fmt: skip


def is_udp(data: bytes) -> bool:
    """Tell UDP without IP options or extension headers, whatever its lengths and sums."""
    if data[:1] == b"\x45":
        return len(data) >= 28 and data[9] == UDP
    return len(data) >= 48 and data[0] >> 4 == 6 and data[6] == UDP


def translated(
    data: bytes,
    source: tuple[bytes, int] | None = None,
    destination: tuple[bytes, int] | None = None,
) -> bytes:
    """Change addresses and ports as the kernel's NAT does: sums are updated by the difference, never summed anew
    (RFC 1624; net/netfilter/nf_nat_proto.c)."""
    size, at, start = (4, 12, 20) if data[0] >> 4 == 4 else (16, 8, 40)
    changed = bytearray(data)
    for end, offset, port in ((source, at, start), (destination, at + size, start + 2)):
        if end is not None:
            changed[offset : offset + size] = end[0]
            changed[port : port + 2] = end[1].to_bytes(2, "big")
    before, after = (bytes(one[at : at + 2 * size] + one[start : start + 4]) for one in (data, changed))
    old = unpack_from("!H", data, start + 6)[0]
    if not (size == 4 and old == 0):
        total = (~old & 0xFFFF) + (checksum(before)) + (~checksum(after) & 0xFFFF)
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        changed[start + 6 : start + 8] = ((~total & 0xFFFF) or 0xFFFF).to_bytes(2, "big")
    if size == 4:
        changed[10:12] = b"\0\0"
        changed[10:12] = checksum(bytes(changed[:20])).to_bytes(2, "big")
    return bytes(changed)


def with_surplus(data: bytes, surplus: bytes, *, option: bool = True) -> bytes:
    """Put octets behind a UDP packet made by :func:`tests.harness.segments.udp`.

    ``option``: they are options of somebody else's, so an OCS stands in front (RFC 9868, section 9).
    """
    size, start = (4, 20) if data[0] >> 4 == 4 else (16, 40)
    body = data[start:]
    if option:
        odd = len(body) & 1
        area = bytes(odd) + b"\0\0" + surplus
        total = (~checksum(area[odd:]) & 0xFFFF) + len(area)
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        surplus = area[:odd] + ((~total & 0xFFFF) or 0xFFFF).to_bytes(2, "big") + area[odd + 2 :]
    at = 12 if size == 4 else 8
    return ip(data[at : at + size], data[at + size : at + 2 * size], UDP, body + surplus)


NAMES = {4: "HELLO", 5: "ANSWER", 6: "PROOF", 7: "RESUME", 8: "CONFIRM", 9: "AGAIN"}


def has_surplus(data: bytes) -> bool:
    """What the rules ask: whether the UDP header counts fewer octets than the IP packet has."""
    start, length = (
        (20, unpack_from("!H", data, 2)[0]) if data[0] >> 4 == 4 else (40, 40 + unpack_from("!H", data, 4)[0])
    )
    return len(data) >= start + 6 and length - start > int(unpack_from("!H", data, start + 4)[0])


def is_whole(data: bytes) -> bool:
    """Whether lengths agree and the IPv4 header's sum is right."""
    start = 20 if data[0] >> 4 == 4 else 40
    total = int(unpack_from("!H", data, 2)[0] if start == 20 else 40 + unpack_from("!H", data, 4)[0])
    if len(data) < start + 8 or total > len(data) or (start == 20 and checksum(data[:20])):
        return False
    return 8 <= int(unpack_from("!H", data, start + 4)[0]) <= total - start


def is_valid(data: bytes) -> bool:
    """What connection tracking with checksum validation asks (net/netfilter/nf_conntrack_proto_udp.c)."""
    return is_whole(data) and read_udp(data).tracked


def kind_of_datagram(data: bytes) -> str:
    """The name of the message in it; empty without one."""
    message = read_udp(data).message if is_udp(data) and is_valid(data) else b""
    return NAMES.get(message[5], "?") if len(message) > 5 else ""


def describe_datagram(data: bytes) -> str:
    """The payload if there is any, the message, and whether a socket would take it."""
    if not is_valid(data):
        return "damaged datagram"
    one = read_udp(data)
    words = [f"{len(one.payload)} octets"] if one.payload or not one.message else []
    words += [kind_of_datagram(data)] if one.message else []
    return ("" if one.delivered else "sealed ") + " + ".join(words)
