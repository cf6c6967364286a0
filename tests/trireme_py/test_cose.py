from __future__ import annotations

import hmac
import tomllib
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.assertions import ec_key
from trireme_py import cose
from trireme_py.errors import InvalidToken
from trireme_py.model import DropReason

LIMIT = 1084
VECTORS: dict[str, dict[str, Any]] = tomllib.loads((Path(__file__).parent / "vectors/cose.toml").read_text("utf-8"))
KINDS = {"sign1": cose.Kind.SIGN1, "mac0": cose.Kind.MAC0}


def hexadecimal(text: str) -> bytes:
    return bytes.fromhex("".join(text.split()))


def verify(vector: dict[str, Any]) -> None:
    kind = KINDS[vector["kind"]]
    message = cose.decode_untrusted(hexadecimal(vector["message"]), kind, LIMIT)
    external = hexadecimal(vector["external"])
    if "proved" in vector:
        proved = cose.to_be_proved(kind, message.protected, message.payload, external)
        assert proved == hexadecimal(vector["proved"])
    if kind is cose.Kind.SIGN1:
        x, y = int(vector["x"], 16), int(vector["y"], 16)
        key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        cose.verify_sign1_untrusted(message, key, external)
    else:
        cose.verify_mac0_untrusted(message, hexadecimal(vector["key"]), external)


@pytest.mark.parametrize("name", [name for name, vector in VECTORS.items() if vector.get("valid") is True])
def test_published_messages_verify(name: str) -> None:
    verify(VECTORS[name])


@pytest.mark.parametrize("name", [name for name, vector in VECTORS.items() if vector.get("valid") is False])
def test_published_wrong_messages_do_not(name: str) -> None:
    with pytest.raises(InvalidToken) as caught:
        verify(VECTORS[name])
    assert caught.value.reason is DropReason.BAD_SIGNATURE


def test_the_framing_of_rfc_8392_a_4_is_ours() -> None:
    """Its algorithm and outer tag are not taken, so the MAC is computed here over the structure that we build."""
    vector = VECTORS["rfc8392-a-4"]
    data = hexadecimal(vector["message"])
    protected, _, payload, tag = cbor2.loads(data).value.value
    structure = cose.to_be_proved(cose.Kind.MAC0, protected, payload, b"")
    assert hmac.digest(hexadecimal(vector["key"]), structure, "sha256")[:8] == tag
    for refused in (data, data[2:]):
        with pytest.raises(InvalidToken) as caught:
            cose.decode_untrusted(refused, cose.Kind.MAC0, LIMIT)
        assert caught.value.reason is DropReason.MALFORMED_ASSERTION


def test_our_own_encoding_is_the_published_one() -> None:
    vector = VECTORS["cose-wg-hmac-01"]
    assert cose.mac0(hexadecimal(vector["key"]), {}, b"This is the content.", b"") == hexadecimal(vector["message"])


@given(payload=st.binary(max_size=300), context=st.binary(max_size=20), key_id=st.binary(max_size=8))
@settings(max_examples=50)
def test_round_trip(payload: bytes, context: bytes, key_id: bytes) -> None:
    key = ec_key("signer")
    signed = cose.sign1(key, {cose.HEADER_KEY_ID: key_id}, payload, context)
    message = cose.decode_untrusted(signed, cose.Kind.SIGN1, LIMIT)
    cose.require_one_spelling_untrusted(message)
    cose.verify_sign1_untrusted(message, key.public_key(), context)
    assert (message.payload, message.header[cose.HEADER_KEY_ID]) == (payload, key_id)

    maced = cose.mac0(b"k" * 32, {cose.HEADER_KEY_ID: key_id}, payload, context)
    cose.verify_mac0_untrusted(cose.decode_untrusted(maced, cose.Kind.MAC0, LIMIT), b"k" * 32, context)
    assert len(maced) <= cose.overhead(cose.Kind.MAC0, {cose.HEADER_KEY_ID: key_id}) + len(payload)


def test_a_proof_holds_in_one_context_only() -> None:
    key = ec_key("signer")
    signed = cose.decode_untrusted(cose.sign1(key, {}, b"payload", b"here"), cose.Kind.SIGN1, LIMIT)
    maced = cose.decode_untrusted(cose.mac0(b"k" * 32, {}, b"payload", b"here"), cose.Kind.MAC0, LIMIT)
    with pytest.raises(InvalidToken) as caught:
        cose.verify_sign1_untrusted(signed, key.public_key(), b"there")
    assert caught.value.reason is DropReason.BAD_SIGNATURE
    with pytest.raises(InvalidToken) as caught:
        cose.verify_mac0_untrusted(maced, b"k" * 32, b"there")
    assert caught.value.reason is DropReason.BAD_SIGNATURE


def test_signatures_are_deterministic_and_low() -> None:
    key = ec_key("signer")
    for number in range(64):
        payload = bytes([number])
        signed = cose.sign1(key, {}, payload, b"")
        assert signed == cose.sign1(key, {}, payload, b"")
        assert int.from_bytes(signed[-32:], "big") <= cose.P256_ORDER // 2


def test_the_other_signature_of_the_pair_is_refused() -> None:
    """ECDSA holds s and n - s valid: taken both, an assertion would have two ids."""
    key = ec_key("signer")
    signed = cose.sign1(key, {}, b"payload", b"")
    s = int.from_bytes(signed[-32:], "big")
    other = cose.decode_untrusted(signed[:-32] + (cose.P256_ORDER - s).to_bytes(32, "big"), cose.Kind.SIGN1, LIMIT)
    cose.verify_sign1_untrusted(other, key.public_key(), b"")
    with pytest.raises(InvalidToken):
        cose.require_one_spelling_untrusted(other)


def test_an_unprotected_header_is_refused_where_bytes_must_be_unique() -> None:
    message = cose.decode_untrusted(hexadecimal(VECTORS["rfc9052-c-2-1"]["message"]), cose.Kind.SIGN1, LIMIT)
    with pytest.raises(InvalidToken):
        cose.require_one_spelling_untrusted(message)


# -- Strictness -------------------------------------------------------------------------------------------------------

BROKEN_CBOR = {
    "nothing": "",
    "trailing octet": "0000",
    "indefinite byte string": "5f4100ff",
    "indefinite array": "9f00ff",
    "indefinite map": "bf0000ff",
    "break alone": "ff",
    "reserved head": "1c",
    "one in two octets": "1801",
    "length in a longer form": "580100",
    "array length in a longer form": "980100",
    "keys out of order": "a202000100",
    "key twice": "a201000101",
    "map without its last value": "a101",
    "string longer than the input": "5a7fffffff",
    "array longer than the input": "9b7fffffffffffffff",
    "map longer than the input": "bb7fffffffffffffff",
    "not UTF-8": "61ff",
    "overlong UTF-8": "62c080",
    "float": "f90000",
    "null": "f6",
    "undefined": "f7",
    "simple value": "e0",
    "date tag": "c100",
    "big number tag": "c24100",
    "shared reference tag": "d81c80",
    "string reference tag": "d9010080",
    "regular expression tag": "d8236161",
    "too deep": "81" * 8 + "00",
    "array as key": "a18000",
    "map as key": "a1a000",
    "byte string as key": "a14000",
    "boolean as key": "a1f500",
}


@pytest.mark.parametrize("text", BROKEN_CBOR.values(), ids=BROKEN_CBOR.keys())
def test_cbor_that_is_not_taken(text: str) -> None:
    with pytest.raises(InvalidToken) as caught:
        cose.loads_untrusted(bytes.fromhex(text), LIMIT)
    assert caught.value.reason is DropReason.MALFORMED_ASSERTION


def test_cbor_that_is_taken() -> None:
    for value in (0, 23, 24, 2**64 - 1, -1, -(2**64), b"", b"x" * 300, "grün", [], [[[1]]], {1: [2], -1: {}}, True):
        assert cose.dumps(cose.loads_untrusted(cbor2.dumps(value), LIMIT)) == cbor2.dumps(value)


@given(st.binary(max_size=64))
@settings(max_examples=2000)
def test_what_is_taken_has_one_encoding(data: bytes) -> None:
    try:
        value = cose.loads_untrusted(data, LIMIT)
    except InvalidToken:
        return
    assert cose.dumps(value) == data


def message(**changes: object) -> bytes:
    """A COSE_Mac0 that is well formed but for what is changed."""
    parts: dict[str, object] = {
        "tag": 17, "protected": {1: 5}, "unprotected": {}, "payload": b"", "proof": bytes(32),
    }  # fmt: skip
    parts.update(changes)
    protected = parts["protected"]
    if not isinstance(protected, bytes):
        protected = cose.dumps(protected)
    items = parts.get("items", [protected, parts["unprotected"], parts["payload"], parts["proof"]])
    tag = parts["tag"]
    return cose.dumps(cbor2.CBORTag(tag, items) if isinstance(tag, int) else items)


BROKEN_MESSAGES: dict[str, dict[str, object]] = {
    "no tag": {"tag": None},
    "tag of the other kind": {"tag": 18},
    "three items": {"items": [b"\xa1\x01\x05", {}, b""]},
    "five items": {"items": [b"\xa1\x01\x05", {}, b"", bytes(32), 0]},
    "a map in place of the array": {"items": {0: 0}},
    "protected header is no byte string": {"items": [{1: 5}, {}, b"", bytes(32)]},
    "payload is a text": {"payload": "text"},
    "proof is a text": {"proof": "text"},
    "unprotected header is a list": {"unprotected": []},
    "protected header is empty": {"protected": b""},
    "protected header is no map": {"protected": [1, 5]},
    "protected header is not deterministic": {"protected": bytes.fromhex("a1011805")},
    "no algorithm": {"protected": {4: b""}},
    "algorithm as text": {"protected": {1: "HS256"}},
    "algorithm of the other kind": {"protected": {1: -7}},
    "truncated HMAC": {"protected": {1: 4}},
    "algorithm not protected": {"protected": {}, "unprotected": {1: 5}},
    "algorithm twice": {"unprotected": {1: 5}},
    "label is a text": {"protected": {1: 5, "x": 0}},
    "unknown critical parameter": {"protected": {1: 5, 2: [99], 99: 0}},
    "critical parameter that is not there": {"protected": {1: 5, 2: [4]}},
    "empty crit": {"protected": {1: 5, 2: []}},
    "crit is no list": {"protected": {1: 5, 2: 1}},
    "crit not protected": {"unprotected": {2: [1]}},
    "proof too short": {"proof": bytes(31)},
    "proof too long": {"proof": bytes(33)},
}


def test_the_message_these_cases_start_from_is_taken() -> None:
    cose.decode_untrusted(message(), cose.Kind.MAC0, LIMIT)
    cose.decode_untrusted(message(protected={1: 5, 2: [1]}), cose.Kind.MAC0, LIMIT)
    cose.decode_untrusted(message(protected={1: 5, 99: 0}), cose.Kind.MAC0, LIMIT)  # unknown, but not critical


@pytest.mark.parametrize("changes", BROKEN_MESSAGES.values(), ids=BROKEN_MESSAGES.keys())
def test_messages_that_are_not_taken(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidToken) as caught:
        cose.decode_untrusted(message(**changes), cose.Kind.MAC0, LIMIT)
    assert caught.value.reason is DropReason.MALFORMED_ASSERTION


def test_a_message_over_its_limit_is_not_read() -> None:
    data = message(payload=b"x" * 100)
    cose.decode_untrusted(data, cose.Kind.MAC0, len(data))
    with pytest.raises(InvalidToken):
        cose.decode_untrusted(data, cose.Kind.MAC0, len(data) - 1)
