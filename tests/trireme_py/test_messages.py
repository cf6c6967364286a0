"""The three messages: golden vectors, MACs computed a second way, and what a decoder refuses."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import assertions
from tests.harness.mutations import bit_flips, truncations
from tests.harness.recorded import CLIENT_NONCE, DATA, SERVER_NONCE, exchange, identities
from tests.harness.segments import packed, read
from tests.harness.vectors import read_hex
from trireme_py import messages, wire
from trireme_py.errors import BadPacket
from trireme_py.model import DropReason

VECTORS = Path(__file__).parent / "vectors"
FAMILIES = pytest.mark.parametrize("family", [4, 6])
NAMES = ("syn", "syn_ack", "ack")


def payloads(family: int) -> list[bytes]:
    segments = [read(read_hex(VECTORS / f"{name}_ipv{family}.dump")) for name in NAMES]
    return [segment.payload for segment in segments if segment is not None]


@FAMILIES
@pytest.mark.parametrize("fast", [False, True])
def test_exchange_is_the_recorded_one(family: int, fast: bool) -> None:
    recorded = [read_hex(VECTORS / f"{name}_ipv{family}.dump") for name in NAMES]
    assert list(exchange(family, fast=fast)) == recorded


def prefixed(*fields: bytes) -> bytes:
    return b"".join(len(field).to_bytes(2, "big") + field for field in fields)


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 for 32 octets (RFC 5869, sections 2.2 and 2.3)."""
    extracted = hmac.digest(salt or bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


@FAMILIES
def test_macs_are_what_the_protocol_document_says(family: int) -> None:
    """Computed here from the pre-shared key and the private keys alone, with other code."""
    syn, syn_ack, ack = payloads(family)
    client, server = syn[12:28], syn_ack[12:28]
    private = hashlib.sha256(b"agreement key of the tests").digest()
    public = X25519PrivateKey.from_private_bytes(hashlib.sha256(b"agreement key of the server").digest()).public_key()
    shared = X25519PrivateKey.from_private_bytes(private).exchange(
        X25519PublicKey.from_public_bytes(public.public_bytes_raw())
    )
    domain = assertions.TRUST_DOMAIN.encode()
    salt = hkdf(assertions.PSK, b"", prefixed(b"TRM1 psk pair", domain))
    key = hkdf(shared, salt, prefixed(b"TRM1 pair key", domain, client, server))
    over_syn_ack = hashlib.blake2s(syn[:44] + syn_ack[:80], digest_size=16, key=key, person=b"TRM1sack")
    over_ack = hashlib.blake2s(syn[:44] + syn_ack[:96] + ack[:12], digest_size=16, key=key, person=b"TRM1_ack")
    assert syn_ack[80:96] == over_syn_ack.digest()
    assert ack[12:28] == over_ack.digest()


@FAMILIES
def test_decoders_read_the_recorded_fields(family: int) -> None:
    syn, syn_ack, ack = payloads(family)
    client, server = identities()
    here, there = (
        (packed("10.1.0.2"), packed("10.1.0.3")) if family == 4 else (packed("fd00:1::2"), packed("fd00:1::3"))
    )
    asked = messages.decode_syn_untrusted(syn)
    assert (asked.id, asked.nonce, asked.assertion) == (client.id, CLIENT_NONCE, client.assertion)
    assert asked.fixed == syn[:44]
    answer = messages.decode_syn_ack_untrusted(syn_ack)
    assert (answer.id, answer.nonce, answer.assertion) == (server.id, SERVER_NONCE, server.assertion)
    assert (answer.server, answer.client) == ((there, 8080), (here, 40_000))
    assert (answer.fixed, answer.mac) == (syn_ack[:96], syn_ack[80:96])
    proof = messages.decode_ack_untrusted(ack)
    assert (proof.header, proof.mac) == (ack[:12], ack[12:28])
    assert ack[28:] == DATA


DECODERS = {
    "syn": messages.decode_syn_untrusted,
    "syn_ack": messages.decode_syn_ack_untrusted,
    "ack": messages.decode_ack_untrusted,
}


def whole(name: str) -> bytes:
    payload = payloads(4)[NAMES.index(name)]
    return payload[:28] if name == "ack" else payload


@pytest.mark.parametrize("name", NAMES)
def test_every_proper_prefix_is_malformed(name: str) -> None:
    for short in truncations(whole(name)):
        with pytest.raises(BadPacket) as refusal:
            DECODERS[name](short)
        assert refusal.value.reason is DropReason.MALFORMED_MESSAGE


@pytest.mark.parametrize("name", ["syn", "syn_ack"])
def test_one_octet_too_many_is_malformed(name: str) -> None:
    with pytest.raises(BadPacket):
        DECODERS[name](whole(name) + b"\0")


@pytest.mark.parametrize("name", NAMES)
def test_no_flipped_bit_of_a_header_is_overlooked(name: str) -> None:
    """But for the highest version the sender speaks: raised, it is read, and the MAC over it does not hold."""
    payload = whole(name)
    for number, header in enumerate(bit_flips(payload[:12])):
        raised = number // 8 == 6 and header[6] > wire.VERSION
        if raised:
            DECODERS[name](header + payload[12:])
            continue
        with pytest.raises(BadPacket) as refusal:
            DECODERS[name](header + payload[12:])
        expected = DropReason.VERSION if number // 8 in (4, 6) else DropReason.MALFORMED_MESSAGE
        assert refusal.value.reason is expected


@pytest.mark.parametrize("name", NAMES)
def test_one_message_is_not_another(name: str) -> None:
    for other in set(NAMES) - {name}:
        with pytest.raises(BadPacket):
            DECODERS[name](whole(other))


def test_longest_assertion_fits_and_one_more_octet_is_refused() -> None:
    for size, fits in ((wire.MAX_ASSERTION, True), (wire.MAX_ASSERTION + 1, False)):
        payload = messages.encode_syn(bytes(16), bytes(16), bytes(size))
        if fits:
            assert len(messages.decode_syn_untrusted(payload).assertion) == size
        else:
            with pytest.raises(BadPacket):
                messages.decode_syn_untrusted(payload)
    longest = messages.encode_syn_ack(
        bytes(44), bytes(16), bytes(16), (bytes(16), 1), (bytes(16), 2), bytes(wire.MAX_ASSERTION), bytes(32)
    )
    assert len(longest) + wire.LARGEST_HEADERS == wire.PATH_MTU


ADDRESSES = st.one_of(st.binary(min_size=4, max_size=4), st.just(bytes(15) + b"\1"), st.just(b"\xfd" + bytes(15)))
PORTS = st.integers(0, 65_535)


@given(
    st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16), ADDRESSES, PORTS, ADDRESSES, PORTS,
    st.binary(max_size=300), st.binary(min_size=32, max_size=32),
)  # fmt: skip
def test_syn_ack_comes_back_as_it_went(
    identity: bytes, nonce: bytes, server: bytes, sport: int, client: bytes, cport: int, assertion: bytes, key: bytes
) -> None:
    payload = messages.encode_syn_ack(bytes(44), identity, nonce, (server, sport), (client, cport), assertion, key)
    read_back = messages.decode_syn_ack_untrusted(payload)
    assert (read_back.id, read_back.nonce, read_back.assertion) == (identity, nonce, assertion)
    assert (read_back.server, read_back.client) == ((server, sport), (client, cport))
    messages.check_mac(messages.syn_ack_mac(key, bytes(44), payload[:80]), read_back.mac)


@given(st.binary(max_size=200))
def test_decoders_raise_nothing_but_bad_packet(rest: bytes) -> None:
    for payload in (rest, wire.MAGIC + rest):
        for decode in DECODERS.values():
            with pytest.raises(BadPacket) as refusal:
                decode(payload)
            assert refusal.value.reason in (DropReason.MALFORMED_MESSAGE, DropReason.VERSION)


def test_wrong_mac_raises() -> None:
    messages.check_mac(b"x" * 16, b"x" * 16)
    for wrong in (b"x" * 15 + b"y", b"", b"x" * 15):
        with pytest.raises(BadPacket) as refusal:
            messages.check_mac(b"x" * 16, wrong)
        assert refusal.value.reason is DropReason.BAD_MAC
