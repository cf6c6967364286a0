"""Packets for the virtual-time world: made, read and described without the code under test.

Checksums are summed word by word as RFC 1071 says, so that they are an oracle for trireme_py.packet's.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from ipaddress import ip_address
from struct import pack, unpack_from
from sys import byteorder
from typing import Final

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
TCP, UDP = 6, 17
SPACE: Final = 1 << 32
MAGIC: Final = b"\xf7TRM"
NAMES: Final = {1: "syn token", 2: "syn-ack token", 3: "proof"}


def packed(text: str) -> bytes:
    return ip_address(text).packed


def checksum(data: bytes) -> int:
    words = array("H", data + b"\0" if len(data) & 1 else data)
    if byteorder == "little":
        words.byteswap()
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True, slots=True)
class Segment:
    """One TCP segment, read."""

    source: bytes
    sport: int
    destination: bytes
    dport: int
    sequence: int
    acknowledgement: int
    flags: int
    payload: bytes
    options: bytes = b""

    @property
    def length(self) -> int:
        """Octets of sequence space."""
        return len(self.payload) + (self.flags & SYN > 0) + (self.flags & FIN > 0)

    def build(self) -> bytes:
        return tcp(
            (self.source, self.sport), (self.destination, self.dport), self.sequence, self.acknowledgement,
            self.flags, self.payload, self.options,
        )  # fmt: skip


def ip(source: bytes, destination: bytes, protocol: int, body: bytes) -> bytes:
    if len(source) == 4:
        header = pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, protocol, 0) + source + destination
        return header[:10] + pack("!H", checksum(header)) + header[12:] + body
    return b"\x60\0\0\0" + pack("!HBB", len(body), protocol, 64) + source + destination + body


def _summed(source: bytes, destination: bytes, protocol: int, body: bytes, at: int) -> bytes:
    pseudo = source + destination + pack("!II", len(body), protocol)
    return body[:at] + pack("!H", checksum(pseudo + body)) + body[at + 2 :]


def tcp(
    source: tuple[bytes, int],
    destination: tuple[bytes, int],
    sequence: int,
    acknowledgement: int,
    flags: int,
    payload: bytes = b"",
    options: bytes = b"",
) -> bytes:
    """One whole IP packet; ``options`` is a multiple of four octets."""
    offset = (20 + len(options)) << 2
    header = pack(
        "!HHIIBBHHH",
        source[1], destination[1], sequence % SPACE, acknowledgement % SPACE, offset, flags, 65535, 0, 0,
    )  # fmt: skip
    body = _summed(source[0], destination[0], TCP, header + options + payload, 16)
    return ip(source[0], destination[0], TCP, body)


def udp(source: tuple[bytes, int], destination: tuple[bytes, int], payload: bytes = b"") -> bytes:
    body = pack("!HHHH", source[1], destination[1], 8 + len(payload), 0) + payload
    return ip(source[0], destination[0], UDP, _summed(source[0], destination[0], UDP, body, 6))


def icmp(
    source: bytes, destination: bytes, kind: int, code: int = 0, rest: bytes = b"\0\0\0\0", body: bytes = b""
) -> bytes:
    """An ICMP message of the addresses' family; ``body`` of an error is what it quotes."""
    message = pack("!BBH", kind, code, 0) + rest + body
    if len(source) == 4:
        return ip(source, destination, 1, message[:2] + pack("!H", checksum(message)) + message[4:])
    return ip(source, destination, 58, _summed(source, destination, 58, message, 2))


def read(data: bytes) -> Segment | None:
    """Read a TCP packet as a host does; None for what a host throws away (wrong checksum) or what is not TCP."""
    if data[0] >> 4 == 4:
        start, protocol, source, destination = (data[0] & 15) * 4, data[9], data[12:16], data[16:20]
        if start < 20 or len(data) < start or checksum(data[:start]):
            return None
        end = unpack_from("!H", data, 2)[0]
    elif data[0] >> 4 == 6 and len(data) >= 40:
        start, protocol, source, destination = 40, data[6], data[8:24], data[24:40]
        end = 40 + unpack_from("!H", data, 4)[0]
    else:
        return None
    if protocol != TCP or end > len(data) or end - start < 20:
        return None
    body = data[start:end]
    if checksum(source + destination + pack("!II", len(body), TCP) + body):
        return None
    sport, dport, sequence, acknowledgement, offset, flags = unpack_from("!HHIIBB", body)
    header = (offset >> 4) * 4
    if not 20 <= header <= len(body):
        return None
    return Segment(
        source, sport, destination, dport, sequence, acknowledgement, flags, body[header:], body[20:header]
    )  # fmt: skip


def describe_flags(flags: int) -> str:
    names = [(SYN, "SYN"), (FIN, "FIN"), (RST, "RST"), (ACK, "ACK")]
    return "|".join(name for bit, name in names if flags & bit) or "-"


def describe(segment: Segment) -> str:
    """Flags, our message if it carries one, and how many octets of the application's."""
    words = [describe_flags(segment.flags)]
    payload = segment.payload
    if payload.startswith(MAGIC) and len(payload) >= 12:
        words.append("+ " + NAMES.get(payload[5], "?"))
        length = unpack_from("!H", payload, 8)[0]
        payload = payload[length:]
    if payload:
        words.append(f"+ {len(payload)} octets")
    return " ".join(words)


def repaired(data: bytes) -> bytes:
    """Put the checksums right again, where there is still something to sum."""
    if len(data) < 40 or data[0] >> 4 not in (4, 6):
        return data
    start, protocol = ((data[0] & 15) * 4, data[9]) if data[0] >> 4 == 4 else (40, data[6])
    if protocol != 6 or not 20 <= start <= len(data) - 20:
        return data
    addresses = data[12:20] if data[0] >> 4 == 4 else data[8:40]
    head, body = bytearray(data[:start]), bytearray(data[start:])
    if data[0] >> 4 == 4:
        head[2:4] = pack("!H", len(data))
        head[10:12] = bytes(2)
        head[10:12] = pack("!H", checksum(bytes(head)))
    else:
        head[4:6] = pack("!H", len(body))
    body[16:18] = bytes(2)
    body[16:18] = pack("!H", checksum(addresses + pack("!II", len(body), 6) + body))
    return bytes(head + body)
