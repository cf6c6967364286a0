"""The three messages of the exchange: encode, decode, and what their MACs cover (docs/protocol.md).

A decoder reads a whole payload and nothing else: a message that is longer or shorter than it says is malformed.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2s
from hmac import compare_digest
from typing import Final

from trireme_py import wire
from trireme_py.errors import BadPacket
from trireme_py.model import Address, DropReason
from trireme_py.wire import MessageType

_V4_MAPPED = bytes(10) + b"\xff\xff"
"""RFC 4291, section 2.5.5.2."""


@dataclass(frozen=True, slots=True)
class Syn:
    """The client's first message, on TCP or UDP. It proves nothing; it says who asks to be believed."""

    fixed: bytes
    """The 44 octets that the MACs of the later messages cover."""
    id: bytes
    nonce: bytes
    assertion: bytes
    flags: int = 0


@dataclass(frozen=True, slots=True)
class SynAck:
    """The server's answer: proves the server, and tells the client what addresses the server saw."""

    fixed: bytes
    """The first 96 octets, MAC included."""
    id: bytes
    nonce: bytes
    server: tuple[Address, int]
    client: tuple[Address, int]
    mac: bytes
    assertion: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    """The client's proof."""

    header: bytes
    mac: bytes


def is_message(payload: bytes) -> bool:
    """Tell whether a payload claims to be one of ours."""
    return payload.startswith(wire.MAGIC)


def encode_syn(
    identity: bytes, nonce: bytes, assertion: bytes, *, kind: MessageType = MessageType.SYN, flags: int = 0
) -> bytes:
    """Return the SYN's payload, or a HELLO."""
    header = encode_header(kind, wire.SYN.size + len(assertion), len(assertion), flags)
    return wire.SYN.pack(header, identity, nonce) + assertion


def encode_syn_ack(
    syn_fixed: bytes,
    identity: bytes,
    nonce: bytes,
    server: tuple[Address, int],
    client: tuple[Address, int],
    assertion: bytes,
    key: bytes,
    *,
    kind: MessageType = MessageType.SYN_ACK,
) -> bytes:
    """Return the SYN-ACK's payload, or an ANSWER; ``key`` is the pair key of client and server."""
    header = encode_header(kind, wire.SYN_ACK.size + len(assertion), len(assertion))
    unproven = wire.SYN_ACK.pack(
        header, identity, nonce, to_16(server[0]), to_16(client[0]), server[1], client[1], bytes(wire.MAC_SIZE)
    )[: wire.SYN_ACK_MAC_OFFSET]
    return unproven + syn_ack_mac(key, syn_fixed, unproven) + assertion


def encode_ack(syn_fixed: bytes, syn_ack_fixed: bytes, key: bytes, *, kind: MessageType = MessageType.ACK) -> bytes:
    """Return the proof that goes in front of the client's first octet, or a PROOF."""
    header = encode_header(kind, wire.ACK.size, 0)
    return header + ack_mac(key, syn_fixed, syn_ack_fixed, header)


def decode_syn_untrusted(payload: bytes, kind: MessageType = MessageType.SYN) -> Syn:
    """Read a SYN's payload, or a HELLO. Raises BadPacket(MALFORMED_MESSAGE or VERSION)."""
    size = check_header_untrusted(payload, kind, wire.SYN.size)
    _, identity, nonce = wire.SYN.unpack_from(payload)
    return Syn(payload[: wire.SYN.size], identity, nonce, payload[wire.SYN.size : wire.SYN.size + size], payload[7])


def decode_syn_ack_untrusted(payload: bytes, kind: MessageType = MessageType.SYN_ACK) -> SynAck:
    """Read a SYN-ACK's payload, or an ANSWER. Raises BadPacket(MALFORMED_MESSAGE or VERSION)."""
    size = check_header_untrusted(payload, kind, wire.SYN_ACK.size)
    _, identity, nonce, server, client, server_port, client_port, mac = wire.SYN_ACK.unpack_from(payload)
    return SynAck(
        payload[: wire.SYN_ACK.size],
        identity,
        nonce,
        (from_16(server), server_port),
        (from_16(client), client_port),
        mac,
        payload[wire.SYN_ACK.size : wire.SYN_ACK.size + size],
    )


def decode_ack_untrusted(payload: bytes, kind: MessageType = MessageType.ACK) -> Ack:
    """Read the proof at the start of ``payload``, which may go on with the application's octets.

    Raises BadPacket(MALFORMED_MESSAGE or VERSION).
    """
    check_header_untrusted(payload[: wire.ACK.size], kind, wire.ACK.size)
    header, mac = wire.ACK.unpack_from(payload)
    return Ack(header, mac)


def syn_ack_mac(key: bytes, syn_fixed: bytes, unproven: bytes) -> bytes:
    """MAC over the SYN's 44 and the SYN-ACK's first 80 octets (keyed BLAKE2s, RFC 7693)."""
    return blake2s(syn_fixed + unproven, digest_size=wire.MAC_SIZE, key=key, person=wire.PERSON_SYN_ACK).digest()


def ack_mac(key: bytes, syn_fixed: bytes, syn_ack_fixed: bytes, header: bytes) -> bytes:
    """MAC over the SYN's 44, the SYN-ACK's 96 and the ACK's 12 octets."""
    return blake2s(
        syn_fixed + syn_ack_fixed + header, digest_size=wire.MAC_SIZE, key=key, person=wire.PERSON_ACK
    ).digest()


def check_mac(expected: bytes, received: bytes) -> None:
    """Compare in constant time. Raises BadPacket(BAD_MAC)."""
    if not compare_digest(expected, received):
        raise BadPacket(DropReason.BAD_MAC)


def encode_header(kind: MessageType, length: int, assertion: int, flags: int = 0) -> bytes:
    """Return a message's first 12 octets."""
    return wire.HEADER.pack(wire.MAGIC, wire.VERSION, kind, wire.VERSION, flags, length, assertion)


def check_header_untrusted(payload: bytes, kind: MessageType, fixed: int) -> int:
    """Check a header against its message and return the assertion's length."""
    if len(payload) < fixed:
        raise BadPacket(DropReason.MALFORMED_MESSAGE, "cut short")
    magic, version, received, highest, flags, length, assertion = wire.HEADER.unpack_from(payload)
    if magic != wire.MAGIC or received != kind:
        raise BadPacket(DropReason.MALFORMED_MESSAGE, "header")
    if version != wire.VERSION or highest < version:
        raise BadPacket(DropReason.VERSION, f"version {version}")
    if flags & ~(wire.ASKS_ANSWER if kind is MessageType.HELLO else 0):
        raise BadPacket(DropReason.MALFORMED_MESSAGE, "flags")
    if length != len(payload) or length != fixed + assertion or assertion > wire.MAX_ASSERTION:
        raise BadPacket(DropReason.MALFORMED_MESSAGE, "lengths")
    return int(assertion)


def to_16(address: Address) -> bytes:
    """An address as messages carry it: IPv4 mapped into IPv6."""
    return address if len(address) == 16 else _V4_MAPPED + address


def from_16(field: bytes) -> Address:
    """The reverse of :func:`to_16`."""
    return field[12:] if field.startswith(_V4_MAPPED) else field


AGAIN: Final = encode_header(MessageType.AGAIN, wire.HEADER.size, 0)
"""The message that is a header alone: it asks a UDP client for its HELLO."""
