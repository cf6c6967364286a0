from __future__ import annotations

import copy
import hmac
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trireme_py.errors import InvalidToken
from trireme_py.model import DropReason
from trireme_py.pairing import AgreementKey, length_prefixed

CLIENT, SERVER = bytes(range(16)), bytes(range(16, 32))

# RFC 7748, section 6.1.
ALICE = AgreementKey(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
BOB = AgreementKey(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")

P = 2**255 - 19
SMALL_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    P - 1,
    P,
    P + 1,
]
"""Every u below 2**255 whose multiple by a clamped scalar is zero (orders 1, 2, 4 and 8; the last two not reduced)."""


def test_public_keys_are_those_of_rfc_7748() -> None:
    assert ALICE.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert BOB.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"


@pytest.mark.parametrize("salt", [b"", b"s" * 32])
def test_the_pair_key_is_hkdf_over_the_shared_secret_of_rfc_7748(salt: bytes) -> None:
    """Written out from RFC 5869, section 2, so that it can be compared with an implementation in another language."""
    info = (
        b"\x00\x0dTRM1 pair key"
        b"\x00\x0dcluster.local"
        b"\x00\x10" + CLIENT + b"\x00\x10" + SERVER
    )  # fmt: skip
    extracted = hmac.digest(salt or bytes(32), SHARED, "sha256")
    expected = hmac.digest(extracted, info + b"\x01", "sha256")
    assert ALICE.pair_key(BOB.public, CLIENT, SERVER, "cluster.local", salt) == expected
    assert BOB.pair_key(ALICE.public, CLIENT, SERVER, "cluster.local", salt) == expected


def test_known_answer() -> None:
    assert ALICE.pair_key(BOB.public, CLIENT, SERVER, "cluster.local").hex() == (
        "da48f7dc1c1bec526d9d4c8142eb8c78eac7cb35355eade18268c73a207a129f"
    )


def test_everything_that_goes_in_changes_the_key() -> None:
    carol = AgreementKey(bytes(range(32)))
    keys = [
        ALICE.pair_key(BOB.public, CLIENT, SERVER, "cluster.local", b""),
        ALICE.pair_key(BOB.public, SERVER, CLIENT, "cluster.local", b""),  # the roles exchanged
        ALICE.pair_key(BOB.public, CLIENT, CLIENT, "cluster.local", b""),
        ALICE.pair_key(BOB.public, CLIENT, SERVER, "cluster.locam", b""),
        ALICE.pair_key(BOB.public, CLIENT, SERVER, "cluster.local", b"s" * 32),
        ALICE.pair_key(carol.public, CLIENT, SERVER, "cluster.local", b""),
        carol.pair_key(BOB.public, CLIENT, SERVER, "cluster.local", b""),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {32}


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_both_ends_derive_the_same_key(seed: bytes, other: bytes) -> None:
    one, two = AgreementKey(seed), AgreementKey(other)
    assert one.pair_key(two.public, CLIENT, SERVER, "td", b"salt") == two.pair_key(
        one.public, CLIENT, SERVER, "td", b"salt"
    )


@pytest.mark.parametrize("high_bit", [0, 1])
@pytest.mark.parametrize("point", SMALL_ORDER)
def test_a_public_key_that_anybody_could_agree_with_is_refused(point: int, high_bit: int) -> None:
    with pytest.raises(InvalidToken) as caught:
        ALICE.pair_key((point | high_bit << 255).to_bytes(32, "little"), CLIENT, SERVER, "td")
    assert caught.value.reason is DropReason.MALFORMED_ASSERTION


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_public_key_of_the_wrong_length_is_refused(length: int) -> None:
    with pytest.raises(InvalidToken) as caught:
        ALICE.pair_key(b"k" * length, CLIENT, SERVER, "td")
    assert caught.value.reason is DropReason.MALFORMED_ASSERTION


def test_generate_draws_once() -> None:
    drawn: list[int] = []

    def entropy(size: int) -> bytes:
        drawn.append(size)
        return bytes(range(size))

    assert AgreementKey.generate(entropy).public == AgreementKey(bytes(range(32))).public
    assert drawn == [32]
    with pytest.raises(ValueError, match="32 random bytes"):
        AgreementKey(bytes(31))


def test_the_key_does_not_leave_the_object() -> None:
    seed = bytes(range(32))
    key = AgreementKey(seed)
    assert seed.hex() not in repr(key)
    assert key.public.hex() in repr(key)
    with pytest.raises(TypeError, match="does not leave"):
        pickle.dumps(key)
    with pytest.raises(TypeError, match="does not leave"):
        copy.copy(key)


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_length_prefixes_keep_fields_apart(fields: list[bytes], others: list[bytes]) -> None:
    assert (length_prefixed(*fields) == length_prefixed(*others)) == (fields == others)
