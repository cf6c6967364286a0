"""HELLO, ANSWER, PROOF, RESUME, CONFIRM and AGAIN: recorded, computed with other code, and damaged."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import assertions
from tests.harness.mutations import bit_flips, mutations, truncations
from tests.harness.recorded import ADDRESSES, CLIENT_NONCE, SERVER_NONCE, identities
from tests.harness.recorded_datagrams import (
    ANSWERED,
    ASKED,
    FIRST,
    GOES_ON,
    NAMES,
    PORT,
    SECOND,
    SECOND_NONCE,
    datagrams,
)
from tests.harness.surplus import Read, read_udp
from tests.harness.vectors import read_hex
from trireme_py import messages, wire
from trireme_py.datagram_messages import (
    confirm_mac,
    confirmed_ends,
    decode_confirm_untrusted,
    decode_resume_untrusted,
    encode_confirm,
    encode_resume,
    message_type_untrusted,
    resume_mac,
)
from trireme_py.errors import BadPacket
from trireme_py.model import DropReason
from trireme_py.wire import MessageType

VECTORS = Path(__file__).parent / "vectors"
FAMILIES = pytest.mark.parametrize("family", [4, 6])


def recorded(family: int) -> dict[str, Read]:
    return {name: read_udp(read_hex(VECTORS / f"udp_{name}_ipv{family}.dump")) for name in NAMES}


def pair_key() -> bytes:
    """From the pre-shared key and the private keys alone, with other code (docs/protocol.md, Keys and MACs)."""

    def prefixed(*fields: bytes) -> bytes:
        return b"".join(len(field).to_bytes(2, "big") + field for field in fields)

    def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
        return hmac.digest(hmac.digest(salt or bytes(32), secret, "sha256"), info + b"\x01", "sha256")

    client, server = (
        X25519PrivateKey.from_private_bytes(hashlib.sha256(name).digest())
        for name in (b"agreement key of the tests", b"agreement key of the server")
    )
    domain = assertions.TRUST_DOMAIN.encode()
    salt = hkdf(assertions.PSK, b"", prefixed(b"TRM1 psk pair", domain))
    ids = [identity.id for identity in identities()]
    return hkdf(client.exchange(server.public_key()), salt, prefixed(b"TRM1 pair key", domain, *ids))


@FAMILIES
@pytest.mark.parametrize("fast", [False, True], ids=["python", "c"])
def test_the_flows_are_the_recorded_ones(family: int, fast: bool) -> None:
    assert list(datagrams(family, fast=fast)) == [read_hex(VECTORS / f"udp_{name}_ipv{family}.dump") for name in NAMES]


@FAMILIES
def test_who_reads_which_datagram(family: int) -> None:
    """Every one crosses connection tracking. A socket reads those alone that nobody waits for."""
    seen = recorded(family)
    assert all(one.tracked for one in seen.values())
    assert {name for name, one in seen.items() if one.delivered} == {"proof", "confirm", "proof_of_confirm"}
    payloads = {name: one.payload for name, one in seen.items()}
    assert payloads == {
        "hello": b"", "answer": b"", "proof": ASKED, "resume": ASKED, "confirm": ANSWERED, "proof_of_confirm": GOES_ON,
    }  # fmt: skip
    assert len(read_hex(VECTORS / f"udp_hello_ipv{family}.dump")) == wire.PATH_MTU


def mac_of(person: bytes, *parts: bytes) -> bytes:
    return hashlib.blake2s(b"".join(parts), digest_size=16, key=pair_key(), person=person).digest()


@FAMILIES
def test_macs_are_what_the_document_says(family: int) -> None:
    one = {name: read.message for name, read in recorded(family).items()}
    hello, answer, proof = one["hello"], one["answer"], one["proof"]
    assert answer[80:96] == mac_of(b"TRM1sack", hello[:44], answer[:80])
    assert proof[12:28] == mac_of(b"TRM1_ack", hello[:44], answer[:96], proof[:12])
    resume, confirm, last = one["resume"], one["confirm"], one["proof_of_confirm"]
    here, there = (b"\0" * 10 + b"\xff" * 2 + end if family == 4 else end for end in ADDRESSES[family])
    over = (resume[:36], resume[52:96], there, here, PORT.to_bytes(2, "big"), ASKED)
    assert resume[36:52] == mac_of(b"TRM1resu", *over)
    assert confirm[72:88] == mac_of(b"TRM1conf", resume[:52], resume[52:96], confirm[:72])
    assert last[12:28] == mac_of(b"TRM1_ack", resume[52:96], confirm[:28], confirm[36:72], last[:12])


@FAMILIES
def test_decoders_read_the_recorded_fields(family: int) -> None:
    one = {name: read.message for name, read in recorded(family).items()}
    client, server = identities()
    here, there = ADDRESSES[family]
    hello = messages.decode_syn_untrusted(one["hello"], MessageType.HELLO)
    assert (hello.id, hello.nonce, hello.assertion) == (client.id, CLIENT_NONCE, client.assertion)
    assert hello.flags == wire.ASKS_ANSWER
    answer = messages.decode_syn_ack_untrusted(one["answer"], MessageType.ANSWER)
    assert (answer.id, answer.nonce, answer.assertion) == (server.id, SERVER_NONCE, server.assertion)
    assert (answer.server, answer.client) == ((there, PORT), (here, FIRST))
    resume = decode_resume_untrusted(one["resume"])
    assert (resume.ticket, resume.counter, resume.fixed) == (SERVER_NONCE, 1, one["resume"][:52])
    assert (resume.hello.id, resume.hello.nonce, resume.mac) == (client.id, SECOND_NONCE, one["resume"][36:52])
    confirm = decode_confirm_untrusted(one["confirm"])
    assert (confirm.ticket, confirm.counter) == (SERVER_NONCE, 1)
    assert (confirm.server, confirm.client) == ((there, PORT), (here, SECOND))
    assert confirm.mac == one["confirm"][72:]


DECODERS: dict[str, Callable[[bytes], object]] = {
    "hello": lambda message: messages.decode_syn_untrusted(message, MessageType.HELLO),
    "answer": lambda message: messages.decode_syn_ack_untrusted(message, MessageType.ANSWER),
    "proof": lambda message: messages.decode_ack_untrusted(message, MessageType.PROOF),
    "resume": decode_resume_untrusted,
    "confirm": decode_confirm_untrusted,
}
EACH = pytest.mark.parametrize("name", DECODERS)


def whole(name: str) -> bytes:
    return recorded(4)[name].message


@EACH
def test_every_proper_prefix_is_malformed(name: str) -> None:
    for short in truncations(whole(name)):
        with pytest.raises(BadPacket) as refusal:
            DECODERS[name](short)
        assert refusal.value.reason is DropReason.MALFORMED_MESSAGE


@pytest.mark.parametrize("name", set(DECODERS) - {"proof"})
def test_one_octet_too_many_is_malformed(name: str) -> None:
    with pytest.raises(BadPacket):
        DECODERS[name](whole(name) + b"\0")


@EACH
def test_one_message_is_not_another(name: str) -> None:
    """And none of them is one of TCP's: the type says it, and every MAC covers the type."""
    for other in set(DECODERS) - {name}:
        with pytest.raises(BadPacket):
            DECODERS[name](whole(other))
    for decode in (messages.decode_syn_untrusted, messages.decode_syn_ack_untrusted, messages.decode_ack_untrusted):
        with pytest.raises(BadPacket):
            decode(whole(name))


@EACH
def test_no_flipped_bit_of_a_header_is_overlooked(name: str) -> None:
    """But for the highest version the sender speaks, and HELLO's flag."""
    message = whole(name)
    overlooked = []
    for number, header in enumerate(bit_flips(message[:12])):
        try:
            DECODERS[name](header + message[12:])
        except BadPacket:
            continue
        overlooked.append((number // 8, header[number // 8]))
    flags = [(7, 0)] if name == "hello" else []
    assert [one for one in overlooked if one[0] != 6] == flags
    assert all(highest > wire.VERSION for octet, highest in overlooked if octet == 6)


@EACH
def test_mutations_raise_nothing_but_bad_packet(name: str) -> None:
    for mutated in mutations(whole(name), 2_000, seed=5):
        try:
            DECODERS[name](mutated)
            message_type_untrusted(mutated)
        except BadPacket as bad:
            reason = bad.reason
        else:
            continue
        assert reason in (DropReason.MALFORMED_MESSAGE, DropReason.VERSION)


def test_types_that_are_none() -> None:
    for kind in MessageType:
        assert message_type_untrusted(bytes(5) + bytes((kind,))) is kind
    for message in (b"", bytes(5), bytes(6), bytes(5) + b"\x0a", bytes(5) + b"\xff"):
        with pytest.raises(BadPacket):
            message_type_untrusted(message)


ADDRESS = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16).filter(lambda a: a[0] != 0))
KEY = st.binary(min_size=32, max_size=32)
SIXTEEN = st.binary(min_size=16, max_size=16)


@given(
    SIXTEEN, st.integers(0, (1 << 64) - 1), SIXTEEN, st.binary(max_size=300), KEY, ADDRESS, st.integers(0, 65_535),
    ADDRESS, st.integers(0, 65_535), st.binary(max_size=200),
)  # fmt: skip
def test_resume_and_confirm_come_back_as_they_went(
    ticket: bytes, counter: int, nonce: bytes, assertion: bytes, key: bytes, server: bytes, sport: int, client: bytes,
    cport: int, payload: bytes,
) -> None:  # fmt: skip
    hello = messages.encode_syn(bytes(16), nonce, assertion, kind=MessageType.HELLO)
    resume = decode_resume_untrusted(encode_resume(ticket, counter, hello, key, (server, sport), client, payload))
    assert (resume.ticket, resume.counter, resume.hello.nonce) == (ticket, counter, nonce)
    assert resume.hello.assertion == assertion
    assert resume.mac == resume_mac(key, resume.fixed[:36], hello[:44], (server, sport), client, payload)
    confirm = decode_confirm_untrusted(encode_confirm(resume, (server, sport), (client, cport), key))
    assert (confirm.ticket, confirm.counter) == (ticket, counter)
    assert (confirm.server, confirm.client) == ((server, sport), (client, cport))
    assert confirm.mac == confirm_mac(key, resume.fixed, hello[:44], confirm.fixed[:72])


def test_a_resume_is_for_one_payload_at_one_place() -> None:
    """Everything that the MAC covers changes it."""
    key, server, client = bytes(32), (bytes(4), 53), bytes(3) + b"\1"
    macs = {
        resume_mac(key, bytes(36), bytes(44), server, client, b"a"),
        resume_mac(key, bytes(36), bytes(44), server, client, b"b"),
        resume_mac(key, bytes(36), bytes(44), server, client, b"a\0"),
        resume_mac(key, bytes(36), bytes(44), server, client, b""),
        resume_mac(key, bytes(36), bytes(44), (bytes(4), 54), client, b"a"),
        resume_mac(key, bytes(36), bytes(44), (client, 53), client, b"a"),
        resume_mac(key, bytes(36), bytes(44), server, bytes(4), b"a"),
        resume_mac(key, b"\1" + bytes(35), bytes(44), server, client, b"a"),
        resume_mac(key, bytes(36), b"\1" + bytes(43), server, client, b"a"),
        resume_mac(bytes(31) + b"\1", bytes(36), bytes(44), server, client, b"a"),
    }
    assert len(macs) == 10


def test_confirmations_of_one_flow_differ_in_counter_and_mac_alone() -> None:
    """So that one proof does for whichever arrives first, and for no other flow."""
    hello = messages.encode_syn(bytes(16), bytes(16), b"", kind=MessageType.HELLO)
    ends = ((bytes(4), 53), (bytes(3) + b"\1", 4000))

    def confirm(counter: int, payload: bytes, client: tuple[bytes, int] = ends[1]) -> bytes:
        resume = encode_resume(bytes(16), counter, hello, bytes(32), ends[0], client[0], payload)
        return encode_confirm(decode_resume_untrusted(resume), ends[0], client, bytes(32))

    first, second = confirm(1, b"A"), confirm(2, b"AAAA")
    assert first != second
    assert confirmed_ends(first) == confirmed_ends(second)
    assert confirmed_ends(first) != confirmed_ends(confirm(1, b"A", (ends[1][0], 4001)))
    assert confirmed_ends(first) != confirmed_ends(confirm(1, b"A", (bytes(4), 4000)))
