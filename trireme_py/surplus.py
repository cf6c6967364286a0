"""Messages in the surplus area of UDP datagrams (RFC 9868): put one on, take it off, seal and open.

A UDP header says how long the datagram is; what the IP packet holds beyond that is the surplus, which receivers ignore.
Two sums decide who sees what. The kernel's socket sums the UDP length; connection tracking sums the whole IP payload.

- An *open* datagram is right by both: any receiver reads its data, and only an agent reads the message.
- A *sealed* datagram has a wrong UDP checksum, for which the surplus makes up in the sum over everything: it crosses
  connection tracking and translation, any socket discards it, and only an agent can put the checksum right again.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import pack_into, unpack_from
from typing import Final

from trireme_py import wire
from trireme_py.errors import BadPacket
from trireme_py.model import DropReason, Protocol
from trireme_py.packet import Packet, internet_checksum, pseudo_header, renew_lengths

UDP_HEADER: Final = 8
OVERHEAD: Final = 1 + 2 + wire.UDP_OPTION.size
"""Octets of surplus beside the message, at most: pad, OCS, option header."""
_SEAL: Final = 0x5A5A
"""What a sealed datagram's checksum is off by."""


@dataclass(frozen=True, slots=True)
class Datagram:
    """A UDP datagram, read."""

    payload: bytes
    message: bytes | None
    """Our message, if the surplus holds one."""
    sealed: bool
    surplus: int
    """Octets of surplus, ours or not."""


def read_datagram_untrusted(packet: Packet) -> Datagram:
    """Read a UDP packet. Raises BadPacket(MALFORMED_PACKET, BAD_CHECKSUM); a truncated one is read without surplus."""
    if packet.truncated:
        return Datagram(b"", None, sealed=False, surplus=0)
    octets = packet.length - packet.transport
    (length,) = unpack_from("!H", packet.data, packet.transport + 4)
    if length < UDP_HEADER or length > octets:
        raise BadPacket(DropReason.MALFORMED_PACKET, "UDP length")
    end = packet.transport + length
    payload = packet.data[packet.transport + UDP_HEADER : end]
    surplus = packet.data[end:]
    message = _find_message(surplus, length)
    if message is None:
        return Datagram(payload, None, sealed=False, surplus=len(surplus))
    if not _sum_is_right(packet, octets):
        raise BadPacket(DropReason.BAD_CHECKSUM)
    return Datagram(payload, message, sealed=not _sum_is_right(packet, length), surplus=len(surplus))


def _find_message(surplus: bytes, length: int) -> bytes | None:
    """Return what our option holds, if it is the first one and fills the rest; padding behind it is zeros."""
    offset = (length & 1) + 2
    if len(surplus) < offset + wire.UDP_OPTION.size + wire.HEADER.size:
        return None
    kind, long, size, experiment = wire.UDP_OPTION.unpack_from(surplus, offset)
    if (kind, long, experiment) != (wire.UDP_OPTION_EXPERIMENT, wire.UDP_OPTION_LONG, wire.EXPERIMENT_ID):
        return None
    body = surplus[offset + wire.UDP_OPTION.size : offset + size]
    return body if size <= len(surplus) - offset and body.startswith(wire.MAGIC) else None


def _sum_is_right(packet: Packet, octets: int) -> bool:
    data = packet.data[packet.transport : packet.transport + octets]
    if unpack_from("!H", data, 6)[0] == 0 and packet.version == 4 and octets != packet.length - packet.transport:
        return True  # IPv4 without a checksum (RFC 768)
    if len(data) & 1:
        data += b"\0"
    pseudo = pseudo_header(packet.source, packet.destination, Protocol.UDP, octets)
    return int.from_bytes(pseudo + data, "big") % 0xFFFF == 0


def room_for(payload: int, transport: int, message: int) -> bool:
    """Tell whether a datagram of so many octets of payload can carry a message within wire.PATH_MTU."""
    return transport + UDP_HEADER + payload + OVERHEAD + message <= wire.PATH_MTU


def with_message(packet: Packet, payload: bytes, message: bytes, *, sealed: bool = False, pad: bool = False) -> bytes:
    """Return ``packet`` with another payload and a message in its surplus; ``pad``: make it as large as may be.

    Padding stands behind the option, as End of List and zeros.
    """
    length = UDP_HEADER + len(payload)
    surplus = bytearray(length & 1)
    ocs = len(surplus)
    surplus += b"\0\0"
    surplus += wire.UDP_OPTION.pack(
        wire.UDP_OPTION_EXPERIMENT, wire.UDP_OPTION_LONG, wire.UDP_OPTION.size + len(message), wire.EXPERIMENT_ID
    )
    surplus += message
    if pad:
        surplus += bytes(max(0, wire.PATH_MTU - packet.transport - length - len(surplus)))
    headers, checksum = _plain(packet, payload)
    slack = 0
    if sealed:
        wrong = (checksum + _SEAL) % 0xFFFF or _SEAL
        pack_into("!H", headers, packet.transport + 6, wrong)
        slack = wrong - checksum
    # Both sums run over words of the whole IP payload, so the pad of an odd datagram pairs with its last octet. They
    # agree if surplus, its length and the seal add up to nothing (RFC 9868, section 9).
    words = bytes(surplus[ocs:]) + b"\0" * (len(surplus) - ocs & 1)
    missing = -(int.from_bytes(words, "big") + len(surplus) + slack) % 0xFFFF
    pack_into("!H", surplus, ocs, missing or 0xFFFF)
    data = payload + bytes(surplus)
    return renew_lengths(headers, packet.version, packet.transport, len(data)) + data


def without_message(packet: Packet, payload: bytes) -> bytes:
    """Return ``packet`` with a payload and no surplus, its checksum right: what the pod's kernel is to see."""
    headers, _ = _plain(packet, payload)
    return renew_lengths(headers, packet.version, packet.transport, len(payload)) + payload


def _plain(packet: Packet, payload: bytes) -> tuple[bytearray, int]:
    """Return the headers up to the payload, with UDP length and checksum as they should be, and that checksum."""
    length = UDP_HEADER + len(payload)
    headers = bytearray(packet.data[: packet.transport + UDP_HEADER])
    pack_into("!HH", headers, packet.transport + 4, length, 0)
    segment = bytes(headers[packet.transport :]) + payload
    checksum = internet_checksum(pseudo_header(packet.source, packet.destination, Protocol.UDP, length) + segment)
    checksum = checksum or 0xFFFF  # zero would say "no checksum" (RFC 768)
    pack_into("!H", headers, packet.transport + 6, checksum)
    return headers, checksum


def towards_sender(packet: Packet) -> Packet:
    """Return the headers of a datagram that goes back where ``packet`` came from, for :func:`with_message`."""
    ports = (packet.destination_port or 0).to_bytes(2, "big") + (packet.source_port or 0).to_bytes(2, "big")
    if packet.version == 4:
        # Don't Fragment, 64 hops; lengths and checksums are filled in later.
        network = b"\x45\0\0\0\0\0\x40\0" + bytes((64, Protocol.UDP, 0, 0)) + packet.destination + packet.source
    else:
        network = b"\x60" + bytes(5) + bytes((Protocol.UDP, 64)) + packet.destination + packet.source
    data = network + ports + bytes(4)
    return Packet(
        data, len(data), packet.version, Protocol.UDP, packet.destination, packet.source, len(network),
        packet.destination_port, packet.source_port,
    )  # fmt: skip
