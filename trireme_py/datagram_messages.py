"""RESUME and CONFIRM: going on with datagrams of a new flow where an older one has proved who is who.

HELLO, ANSWER and PROOF are SYN, SYN-ACK and ACK by another name, in :mod:`trireme_py.messages`.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2s

from trireme_py import wire
from trireme_py.errors import BadPacket
from trireme_py.messages import Syn, check_header_untrusted, decode_syn_untrusted, encode_header, from_16, to_16
from trireme_py.model import Address, DropReason
from trireme_py.wire import MessageType

End = tuple[Address, int]


@dataclass(frozen=True, slots=True)
class Resume:
    """A datagram's own proof, and a HELLO for a server that remembers nothing."""

    fixed: bytes
    """The first 52 octets, MAC included."""
    ticket: bytes
    counter: int
    mac: bytes
    hello: Syn


@dataclass(frozen=True, slots=True)
class Confirm:
    """The server's answer to one RESUME."""

    fixed: bytes
    ticket: bytes
    counter: int
    server: End
    client: End
    mac: bytes


def encode_resume(
    ticket: bytes, counter: int, hello: bytes, key: bytes, server: End, client: Address, payload: bytes
) -> bytes:
    """Return a RESUME for one datagram; ``server`` and ``client`` as the server saw them when it gave the ticket."""
    length = wire.RESUME.size + len(hello)
    header = encode_header(MessageType.RESUME, length, len(hello) - wire.SYN.size)
    unproven = wire.RESUME.pack(header, ticket, counter, bytes(wire.MAC_SIZE))[: wire.RESUME_MAC_OFFSET]
    return unproven + resume_mac(key, unproven, hello[: wire.SYN.size], server, client, payload) + hello


def resume_mac(key: bytes, unproven: bytes, hello_fixed: bytes, server: End, client: Address, payload: bytes) -> bytes:
    """MAC over the RESUME's 36 and the HELLO's 44 octets, both addresses, the server's port, and the payload.

    The client's port is not in it: translation chooses one that the client does not know. The payload is, so that
    whoever relays the datagram can deliver that one and no other.
    """
    ends = to_16(server[0]) + to_16(client) + server[1].to_bytes(2, "big")
    return blake2s(
        unproven + hello_fixed + ends + payload, digest_size=wire.MAC_SIZE, key=key, person=wire.PERSON_RESUME
    ).digest()


def decode_resume_untrusted(message: bytes) -> Resume:
    """Read a RESUME. Raises BadPacket(MALFORMED_MESSAGE or VERSION)."""
    if len(message) < wire.RESUME.size + wire.SYN.size:
        raise BadPacket(DropReason.MALFORMED_MESSAGE, "cut short")
    check_header_untrusted(message, MessageType.RESUME, wire.RESUME.size + wire.SYN.size)
    _, ticket, counter, mac = wire.RESUME.unpack_from(message)
    hello = decode_syn_untrusted(message[wire.RESUME.size :], MessageType.HELLO)
    return Resume(message[: wire.RESUME.size], ticket, counter, mac, hello)


def encode_confirm(resume: Resume, server: End, client: End, key: bytes) -> bytes:
    """Return the CONFIRM of a RESUME; ``server`` and ``client`` as the server sees them on this very flow."""
    header = encode_header(MessageType.CONFIRM, wire.CONFIRM.size, 0)
    unproven = wire.CONFIRM.pack(
        header, resume.ticket, resume.counter, to_16(server[0]), to_16(client[0]), server[1], client[1],
        bytes(wire.MAC_SIZE),
    )[: wire.CONFIRM_MAC_OFFSET]  # fmt: skip
    return unproven + confirm_mac(key, resume.fixed, resume.hello.fixed, unproven)


def confirm_mac(key: bytes, resume_fixed: bytes, hello_fixed: bytes, unproven: bytes) -> bytes:
    """MAC over the RESUME's 52, the HELLO's 44 and the CONFIRM's first 72 octets."""
    return blake2s(
        resume_fixed + hello_fixed + unproven, digest_size=wire.MAC_SIZE, key=key, person=wire.PERSON_CONFIRM
    ).digest()


def confirmed_ends(confirm_fixed: bytes) -> bytes:
    """Return what a PROOF that answers a CONFIRM is for: all of it but counter and MAC.

    Datagrams of one flow may be confirmed in any order, and one proof must do for whichever arrives first.
    """
    return (
        confirm_fixed[: wire.CONFIRM_COUNTER_OFFSET] + confirm_fixed[wire.CONFIRM_ENDS_OFFSET : wire.CONFIRM_MAC_OFFSET]
    )


def decode_confirm_untrusted(message: bytes) -> Confirm:
    """Read a CONFIRM. Raises BadPacket(MALFORMED_MESSAGE or VERSION)."""
    check_header_untrusted(message, MessageType.CONFIRM, wire.CONFIRM.size)
    _, ticket, counter, server, client, server_port, client_port, mac = wire.CONFIRM.unpack_from(message)
    return Confirm(message, ticket, counter, (from_16(server), server_port), (from_16(client), client_port), mac)


def message_type_untrusted(message: bytes) -> MessageType:
    """Tell what a message says it is. Raises BadPacket(MALFORMED_MESSAGE)."""
    try:
        return MessageType(message[5])
    except (IndexError, ValueError):
        raise BadPacket(DropReason.MALFORMED_MESSAGE, "unknown type") from None
