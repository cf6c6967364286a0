"""IPv4, IPv6 and TCP as the data path needs them: look at a packet, take its payload off, put another one on.

Only headers are read; a packet is never copied before it has to change. Layouts: RFC 791, RFC 8200, RFC 9293, RFC 768.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct, pack_into, unpack_from

from trireme_py.errors import BadPacket
from trireme_py.model import Address, DropReason, Protocol
from trireme_py.wire import MAX_IPV6_EXTENSION_HEADERS

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
SEQUENCE_SPACE = 1 << 32

_IPV4 = Struct("!BBHHHBBH4s4s")
_TCP = Struct("!HHIIBBHHH")
_TCP_OPTION_END, _TCP_OPTION_NOP, _TCP_OPTION_FAST_OPEN, _TCP_OPTION_EXPERIMENT = 0, 1, 34, 254
_FAST_OPEN_EXPERIMENT = b"\xf9\x89"
"""RFC 7413, section 4.1.1: Fast Open before it had an option number of its own."""

# IPv6 extension headers whose length field counts 8-octet units beyond the first (RFC 8200, section 4). AH differs.
_EXTENSIONS = frozenset({0, 43, 60})
_FRAGMENT, _AUTHENTICATION = 44, 51


@dataclass(frozen=True, slots=True)
class Packet:
    """One IP packet as it was caught. Offsets are octets from the start of ``data``."""

    data: bytes
    length: int
    """Octets the packet really has (its IP header says so); ``data`` may be cut shorter by the queue's copy range."""
    version: int
    protocol: int
    source: Address
    destination: Address
    transport: int
    """Offset of the transport header."""
    source_port: int | None = None
    destination_port: int | None = None
    # The rest is TCP's alone.
    sequence: int = 0
    acknowledgement: int = 0
    flags: int = 0
    body: int = 0
    """Offset of the TCP payload."""

    @property
    def payload(self) -> bytes:
        """The TCP payload as far as it was copied."""
        return self.data[self.body :]

    @property
    def payload_length(self) -> int:
        """Octets of TCP payload, copied or not."""
        return self.length - self.body

    @property
    def truncated(self) -> bool:
        return len(self.data) < self.length


def only_acknowledges_untrusted(data: bytes) -> bool:
    """Tell whether a packet is a TCP segment that does nothing but acknowledge. Nobody minds if it is overtaken."""
    if len(data) < 40:
        return False
    ipv4 = data[0] >> 4 == 4
    tcp = (data[0] & 15) * 4 if ipv4 else 40
    end = int.from_bytes(data[2:4], "big") if ipv4 else int.from_bytes(data[4:6], "big") + 40
    if data[9 if ipv4 else 6] != Protocol.TCP or len(data) < tcp + 20:
        return False
    return data[tcp + 13] & (FIN | SYN | RST | ACK | URG) == ACK and end == tcp + (data[tcp + 12] >> 4) * 4


def parse_packet_untrusted(data: bytes) -> Packet:
    """Read the headers of one IP packet.

    Raises BadPacket: MALFORMED_PACKET, or FRAGMENT (conntrack reassembles before our hooks, so a fragment there is not
    something an honest path delivers).
    """
    if not data:
        raise BadPacket(DropReason.MALFORMED_PACKET, "empty")
    version = data[0] >> 4
    if version == 4:
        length, protocol, source, destination, transport = _parse_ipv4_untrusted(data)
    elif version == 6:
        length, protocol, source, destination, transport = _parse_ipv6_untrusted(data)
    else:
        raise BadPacket(DropReason.MALFORMED_PACKET, f"IP version {version}")
    if len(data) > length:
        data = data[:length]
    if protocol == Protocol.TCP:
        if len(data) - transport < _TCP.size:
            raise BadPacket(DropReason.MALFORMED_PACKET, "TCP header cut short")
        sport, dport, sequence, acknowledgement, offset, flags, _, _, _ = _TCP.unpack_from(data, transport)
        header = (offset >> 4) * 4
        if header < _TCP.size or len(data) - transport < header:
            raise BadPacket(DropReason.MALFORMED_PACKET, "TCP data offset")
        return Packet(
            data, length, version, protocol, source, destination, transport,
            sport, dport, sequence, acknowledgement, flags, transport + header,
        )  # fmt: skip
    if protocol in (Protocol.UDP, Protocol.SCTP):
        if len(data) - transport < 8:
            raise BadPacket(DropReason.MALFORMED_PACKET, "ports cut short")
        sport, dport = unpack_from("!HH", data, transport)
        return Packet(data, length, version, protocol, source, destination, transport, sport, dport)
    return Packet(data, length, version, protocol, source, destination, transport)


def _parse_ipv4_untrusted(data: bytes) -> tuple[int, int, Address, Address, int]:
    if len(data) < _IPV4.size:
        raise BadPacket(DropReason.MALFORMED_PACKET, "IPv4 header cut short")
    first, _, length, _, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(data)
    header = (first & 0x0F) * 4
    if header < _IPV4.size or len(data) < header or length < header:
        raise BadPacket(DropReason.MALFORMED_PACKET, "IPv4 lengths")
    if fragment & 0x3FFF:
        raise BadPacket(DropReason.FRAGMENT)
    return length, protocol, source, destination, header


def _parse_ipv6_untrusted(data: bytes) -> tuple[int, int, Address, Address, int]:
    if len(data) < 40:
        raise BadPacket(DropReason.MALFORMED_PACKET, "IPv6 header cut short")
    payload, following = unpack_from("!HB", data, 4)
    length = 40 + payload
    offset = 40
    end = min(len(data), length)
    for _ in range(MAX_IPV6_EXTENSION_HEADERS + 1):
        if following in _EXTENSIONS:
            unit, base = 8, 8
        elif following == _AUTHENTICATION:
            unit, base = 4, 8
        elif following == _FRAGMENT:
            unit, base = 0, 8
            if end - offset >= 8 and unpack_from("!H", data, offset + 2)[0] & 0xFFF9:
                raise BadPacket(DropReason.FRAGMENT)
        else:
            return length, following, data[8:24], data[24:40], offset
        if end - offset < 8:
            raise BadPacket(DropReason.MALFORMED_PACKET, "IPv6 extension header cut short")
        following, extent = data[offset], data[offset + 1]
        offset += base + unit * extent
        if offset > end:
            raise BadPacket(DropReason.MALFORMED_PACKET, "IPv6 extension header length")
    raise BadPacket(DropReason.MALFORMED_PACKET, "too many IPv6 extension headers")


def icmp_error_subject_untrusted(packet: Packet) -> Packet | None:
    """Return the packet that an ICMP error quotes, or None when this is no error or quotes too little.

    The quotation need only hold the first 8 octets beyond the IP header (RFC 792), so only addresses and ports of the
    result mean anything.
    """
    error_types = (3, 4, 5, 11, 12) if packet.protocol == Protocol.ICMP else (1, 2, 3, 4)
    if len(packet.data) - packet.transport < 8 or packet.data[packet.transport] not in error_types:
        return None
    quoted = packet.data[packet.transport + 8 :]
    try:
        if not quoted:
            return None
        if quoted[0] >> 4 == 4:
            length, protocol, source, destination, offset = _parse_ipv4_untrusted(quoted)
        else:
            length, protocol, source, destination, offset = _parse_ipv6_untrusted(quoted)
    except BadPacket:
        return None
    if len(quoted) - offset < 4:
        return None
    sport, dport = unpack_from("!HH", quoted, offset)
    return Packet(quoted, length, quoted[0] >> 4, protocol, source, destination, offset, sport, dport)


def internet_checksum(data: bytes) -> int:
    """Return the checksum of RFC 1071 over ``data`` (its own field zero).

    The one's complement sum of 16-bit words is the number modulo 65,535, which Python computes in one step.
    """
    if len(data) & 1:
        data += b"\0"
    remainder = int.from_bytes(data, "big") % 0xFFFF
    return 0xFFFF - remainder if remainder else 0


def pseudo_header(source: Address, destination: Address, protocol: int, length: int) -> bytes:
    """Return what transport checksums cover beside the segment (RFC 768, RFC 8200 section 8.1)."""
    return source + destination + length.to_bytes(4, "big") + protocol.to_bytes(4, "big")


def tcp_checksum_is_right(packet: Packet) -> bool:
    """Tell whether a TCP packet arrived as its sender summed it; False for a truncated one, which cannot be told.

    A packet must be checked before it is rewritten: a fresh checksum would bless what the link corrupted.
    """
    if packet.truncated:
        return False
    segment = packet.data[packet.transport :]
    if len(segment) & 1:
        segment += b"\0"
    pseudo = pseudo_header(packet.source, packet.destination, Protocol.TCP, packet.length - packet.transport)
    return int.from_bytes(pseudo + segment, "big") % 0xFFFF == 0


def with_tcp(
    packet: Packet,
    payload: bytes,
    *,
    sequence: int | None = None,
    acknowledgement: int | None = None,
    flags: int | None = None,
    without_fast_open: bool = False,
) -> bytes:
    """Return ``packet`` with another TCP payload, and other numbers where given; lengths and checksums are renewed."""
    headers = bytearray(packet.data[: packet.body])
    if sequence is not None:
        pack_into("!I", headers, packet.transport + 4, sequence % SEQUENCE_SPACE)
    if acknowledgement is not None:
        pack_into("!I", headers, packet.transport + 8, acknowledgement % SEQUENCE_SPACE)
    if flags is not None:
        headers[packet.transport + 13] = flags
    if without_fast_open:
        _blank_fast_open(headers, packet.transport + _TCP.size)
    return _finish(headers, packet.version, packet.transport, packet.source, packet.destination, payload)


def reset_for(packet: Packet, *, towards_sender: bool) -> bytes:
    """Return the RST that ends the connection of ``packet`` at its sender or at its receiver.

    Towards the receiver it takes the packet's own place in sequence; towards the sender it stands where the sender
    expects the receiver's next octet (RFC 9293, section 3.10.7.4). A SYN's payload is never counted: it is ours, and a
    half-open connection believes no reset that acknowledges anything but the SYN.
    """
    source, destination = packet.source, packet.destination
    sport, dport = packet.source_port or 0, packet.destination_port or 0
    if towards_sender:
        source, destination, sport, dport = destination, source, dport, sport
        octets = 1 if packet.flags & SYN else packet.payload_length + (packet.flags & FIN)
        sequence, acknowledgement = packet.acknowledgement, packet.sequence + octets
    else:
        sequence, acknowledgement = packet.sequence, packet.acknowledgement
    tcp = _TCP.pack(
        sport, dport, sequence % SEQUENCE_SPACE, acknowledgement % SEQUENCE_SPACE, 5 << 4, RST | ACK, 0, 0, 0
    )
    if packet.version == 4:
        headers = bytearray(_IPV4.pack(0x45, 0, 0, 0, 0x4000, 64, Protocol.TCP, 0, source, destination)) + tcp
        return _finish(headers, 4, 20, source, destination, b"")
    headers = bytearray(b"\x60\0\0\0\0\0" + bytes((Protocol.TCP, 64)) + source + destination) + tcp
    return _finish(headers, 6, 40, source, destination, b"")


def has_fast_open(packet: Packet) -> bool:
    """Tell whether a TCP packet carries a Fast Open option (RFC 7413), of either numbering."""
    headers = bytearray(packet.data[: packet.body])
    return _blank_fast_open(headers, packet.transport + _TCP.size)


def _blank_fast_open(headers: bytearray, offset: int) -> bool:
    """Overwrite Fast Open options between ``offset`` and the end with NOPs; tell whether there was one."""
    found = False
    end = len(headers)
    while offset < end:
        kind = headers[offset]
        if kind == _TCP_OPTION_END:
            break
        if kind == _TCP_OPTION_NOP:
            offset += 1
            continue
        if end - offset < 2 or not 2 <= headers[offset + 1] <= end - offset:
            break  # the receiving stack stops reading options here, too
        size = headers[offset + 1]
        experiment = kind == _TCP_OPTION_EXPERIMENT and headers[offset + 2 : offset + 4] == _FAST_OPEN_EXPERIMENT
        if kind == _TCP_OPTION_FAST_OPEN or experiment:
            headers[offset : offset + size] = bytes((_TCP_OPTION_NOP,)) * size
            found = True
        offset += size
    return found


def renew_lengths(headers: bytearray, version: int, transport: int, payload: int) -> bytes:
    """Return headers whose IP length counts ``payload`` octets behind them, IPv4 checksum included."""
    length = len(headers) + payload
    if version == 4:
        pack_into("!H", headers, 2, length)
        pack_into("!H", headers, 10, 0)
        pack_into("!H", headers, 10, internet_checksum(bytes(headers[:transport])))
    else:
        pack_into("!H", headers, 4, length - 40)
    return bytes(headers)


def _finish(
    headers: bytearray, version: int, transport: int, source: Address, destination: Address, payload: bytes
) -> bytes:
    pack_into("!H", headers, transport + 16, 0)
    segment = bytes(headers[transport:]) + payload
    pseudo = pseudo_header(source, destination, Protocol.TCP, len(segment))
    pack_into("!H", headers, transport + 16, internet_checksum(pseudo + segment))
    return renew_lengths(headers, version, transport, len(payload)) + payload
