from __future__ import annotations

import copy
import pickle
from pathlib import Path

import cbor2
import pytest

from tests.harness.assertions import (
    CLAIMS,
    NOW,
    PSK,
    SALT,
    TRUST_DOMAIN,
    claims,
    pki_authenticator,
    psk_authenticator,
    realistic_labels,
)
from tests.harness.mutations import bit_flips, mutations, truncations
from tests.harness.vectors import read_hex
from trireme_py import cose
from trireme_py.assertion import CLOCK_SKEW_S, CONTEXT, identity_id
from trireme_py.auth import Authenticator
from trireme_py.auth_psk import PskAuthenticator
from trireme_py.errors import ConfigError, CredentialError, InvalidToken
from trireme_py.model import DropReason

VECTOR = Path(__file__).parent / "vectors/assertion_psk.hex"


def refused(authenticator: Authenticator, assertion: bytes, wall_s: float = NOW) -> DropReason:
    with pytest.raises(InvalidToken) as caught:
        authenticator.verify_untrusted(assertion, wall_s)
    return caught.value.reason


def test_the_golden_assertion() -> None:
    assertion = psk_authenticator().issue(CLAIMS, SALT)
    assert assertion == read_hex(VECTOR)
    assert f"Identity id: {identity_id(assertion).hex()}" in VECTOR.read_text(encoding="utf-8")


def test_what_was_issued_is_verified_by_another_holder_of_the_key() -> None:
    verified = psk_authenticator().verify_untrusted(psk_authenticator().issue(CLAIMS, SALT), NOW)
    identity = verified.identity
    assert identity.spiffe_id == "spiffe://cluster.local/ns/shop/sa/frontend"
    assert identity.name == "shop/frontend-7d9f8c6b5-x2x4z"
    assert identity.labels.describe() == CLAIMS.labels.describe()
    assert identity.named_ports == CLAIMS.named_ports
    assert identity.id == identity_id(psk_authenticator().issue(CLAIMS, SALT))
    assert verified.agreement_key == CLAIMS.agreement_key
    assert (verified.not_before, verified.not_after, verified.issuer) == (NOW - 600, NOW + 3000, "psk")


def test_the_pair_salt_is_secret_and_the_trust_domain_s_own() -> None:
    def salt(authenticator: PskAuthenticator) -> bytes:
        assertion = authenticator.issue(claims(trust_domain=authenticator.trust_domain), SALT)
        assert authenticator.pair_salt(assertion) not in assertion
        return authenticator.pair_salt(assertion)

    salts = {
        salt(psk_authenticator()),
        salt(psk_authenticator(psk=PSK[::-1])),
        salt(psk_authenticator(trust_domain="other.example")),
    }
    assert len(salts) == 3
    assert {len(salt) for salt in salts} == {32}
    assert salt(psk_authenticator()) in salts


# -- While the key is changed -----------------------------------------------------------------------------------------

NEW = PSK[::-1]
CHANGE = [
    PskAuthenticator(PSK, "cluster.local"),
    PskAuthenticator(PSK, "cluster.local", NEW),
    PskAuthenticator(NEW, "cluster.local", PSK),
    PskAuthenticator(NEW, "cluster.local"),
]
"""The steps of a change; nodes are at one step or at the next."""


@pytest.mark.parametrize("behind", [0, 1, 2])
def test_nodes_at_two_steps_of_a_change_believe_each_other_and_find_one_salt(behind: int) -> None:
    nodes = CHANGE[behind : behind + 2]
    for node, peer in (nodes, nodes[::-1]):
        assertion = node.issue(CLAIMS, SALT)
        assert peer.verify_untrusted(assertion, NOW).identity.id == identity_id(assertion)
        assert peer.pair_salt(assertion) == node.pair_salt(assertion)


def test_the_first_key_signs() -> None:
    assert CHANGE[1].issue(CLAIMS, SALT) == CHANGE[0].issue(CLAIMS, SALT)
    assert CHANGE[2].issue(CLAIMS, SALT) == CHANGE[3].issue(CLAIMS, SALT)
    assert CHANGE[1].issue(CLAIMS, SALT) != CHANGE[2].issue(CLAIMS, SALT)


def test_a_key_that_went_is_believed_no_longer() -> None:
    old = CHANGE[0].issue(CLAIMS, SALT)
    assert refused(CHANGE[3], old) is DropReason.UNKNOWN_SIGNER
    with pytest.raises(InvalidToken) as caught:
        CHANGE[3].pair_salt(old)
    assert caught.value.reason is DropReason.UNKNOWN_SIGNER


def test_one_key_s_id_on_the_other_key_s_assertion() -> None:
    """The id only chooses the key; it vouches for nothing."""
    forged = bytearray(CHANGE[0].issue(CLAIMS, SALT))
    old, new = (CHANGE[step]._header[cose.HEADER_KEY_ID] for step in (0, 3))
    place = bytes(forged).index(old)
    forged[place : place + len(old)] = new
    assert refused(CHANGE[1], bytes(forged)) is DropReason.BAD_SIGNATURE


def test_the_other_key_must_be_one_too() -> None:
    with pytest.raises(CredentialError, match="has 31 bytes"):
        PskAuthenticator(PSK, "cluster.local", PSK[:31])


# -- Every reason -----------------------------------------------------------------------------------------------------


def test_an_assertion_of_another_trust_domain() -> None:
    other = psk_authenticator(trust_domain="other.example").issue(claims(trust_domain="other.example"), SALT)
    assert refused(psk_authenticator(), other) is DropReason.TRUST_DOMAIN


def test_an_assertion_that_ran_out_or_has_not_begun() -> None:
    authenticator = psk_authenticator()
    assertion = authenticator.issue(CLAIMS, SALT)
    assert refused(authenticator, assertion, CLAIMS.not_after + CLOCK_SKEW_S) is DropReason.EXPIRED
    assert refused(authenticator, assertion, CLAIMS.not_before - CLOCK_SKEW_S - 1) is DropReason.NOT_YET_VALID


def test_an_assertion_of_a_stranger() -> None:
    assertion = psk_authenticator(psk=bytes(31) + b"\x01").issue(CLAIMS, SALT)
    assert refused(psk_authenticator(), assertion) is DropReason.UNKNOWN_SIGNER


def test_a_stranger_who_names_our_key() -> None:
    ours = psk_authenticator().issue(CLAIMS, SALT)
    stranger = psk_authenticator(psk=bytes(31) + b"\x01").issue(CLAIMS, SALT)
    assert refused(psk_authenticator(), ours[:-32] + stranger[-32:]) is DropReason.BAD_SIGNATURE


def test_one_claim_changed() -> None:
    assertion = psk_authenticator().issue(CLAIMS, SALT)
    promoted = assertion.replace(b"\x63web", b"\x63app")
    assert promoted != assertion
    assert refused(psk_authenticator(), promoted) is DropReason.BAD_SIGNATURE


def test_an_assertion_of_the_other_mode() -> None:
    assert refused(psk_authenticator(), pki_authenticator().issue(CLAIMS, SALT)) is DropReason.MALFORMED_ASSERTION


def test_claims_of_a_node_under_the_pre_shared_key() -> None:
    """The kind of issuer is under the proof, so one kind cannot pass for the other."""
    authenticator = psk_authenticator()
    message = cose.decode_untrusted(authenticator.issue(CLAIMS, SALT), cose.Kind.MAC0, 1084)
    payload = cose.dumps(dict(cbor2.loads(message.payload)) | {1: "node"})
    key_id = {cose.HEADER_KEY_ID: message.header[cose.HEADER_KEY_ID]}
    forged = cose.mac0(authenticator._signs.assertion_key, key_id, payload, CONTEXT)
    assert refused(authenticator, forged) is DropReason.MALFORMED_ASSERTION


def test_a_header_outside_the_proof_is_refused() -> None:
    """It could be changed at will: one captured assertion would fill every cache under ever new ids."""
    assertion = psk_authenticator().issue(CLAIMS, SALT)
    tagged = cbor2.loads(assertion)
    protected, _, payload, proof = tagged.value
    padded = cose.dumps(cbor2.CBORTag(17, [protected, {99: b"pad"}, payload, proof]))
    assert refused(psk_authenticator(), padded) is DropReason.MALFORMED_ASSERTION


def test_an_assertion_that_is_too_large() -> None:
    authenticator = psk_authenticator()
    message = cose.decode_untrusted(authenticator.issue(CLAIMS, SALT), cose.Kind.MAC0, 1084)
    payload = cose.dumps(dict(cbor2.loads(message.payload)) | {99: bytes(1000)})
    key_id = {cose.HEADER_KEY_ID: message.header[cose.HEADER_KEY_ID]}
    large = cose.mac0(authenticator._signs.assertion_key, key_id, payload, CONTEXT)
    assert refused(authenticator, large) is DropReason.MALFORMED_ASSERTION


# -- Damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [CLAIMS.labels, realistic_labels(60)], ids=["in clear", "hashed"])
def test_every_flipped_bit_is_noticed(labels: object) -> None:
    authenticator = psk_authenticator()
    for flipped in bit_flips(authenticator.issue(claims(labels=labels), SALT)):
        refused(authenticator, flipped)


def test_every_truncation_is_noticed() -> None:
    authenticator = psk_authenticator()
    assertion = authenticator.issue(CLAIMS, SALT)
    for shorter in truncations(assertion):
        assert refused(authenticator, shorter) is DropReason.MALFORMED_ASSERTION
    assert refused(authenticator, assertion + b"\0") is DropReason.MALFORMED_ASSERTION


@pytest.mark.parametrize("labels", [CLAIMS.labels, realistic_labels(30)], ids=["in clear", "hashed"])
def test_25_000_mutations_are_refused_and_raise_nothing_else(labels: object) -> None:
    authenticator = psk_authenticator()
    seen = {
        refused(authenticator, mutated)
        for mutated in mutations(authenticator.issue(claims(labels=labels), SALT), 12_500, seed=1)
    }
    assert {DropReason.MALFORMED_ASSERTION, DropReason.BAD_SIGNATURE} <= seen


def test_25_000_mutated_claims_under_a_valid_proof_raise_nothing_else() -> None:
    """Whoever holds the key can sign anything: what lies behind the proof must be as strict as what lies before it."""
    authenticator = psk_authenticator()
    message = cose.decode_untrusted(authenticator.issue(CLAIMS, SALT), cose.Kind.MAC0, 1084)
    key_id = {cose.HEADER_KEY_ID: message.header[cose.HEADER_KEY_ID]}
    taken = 0
    for payload in mutations(message.payload, 25_000, seed=2):
        try:
            verified = authenticator.verify_untrusted(
                cose.mac0(authenticator._signs.assertion_key, key_id, payload, CONTEXT), NOW
            )
        except InvalidToken:
            continue
        taken += 1
        assert verified.identity.trust_domain == TRUST_DOMAIN
    assert taken > 0  # another letter in a name is a valid claim; or the test would only see the first check


# -- Issuing and loading ----------------------------------------------------------------------------------------------


def test_claims_of_another_trust_domain_are_not_issued() -> None:
    with pytest.raises(ConfigError, match=r"no assertion for other\.example"):
        psk_authenticator().issue(claims(trust_domain="other.example"), SALT)


def test_a_short_key_or_a_trust_domain_that_is_no_name() -> None:
    with pytest.raises(CredentialError, match="31 bytes, at least 32"):
        PskAuthenticator(bytes(31), TRUST_DOMAIN)
    with pytest.raises(CredentialError, match="trust domain"):
        PskAuthenticator(PSK, "Cluster Local")


def test_the_key_is_never_shown() -> None:
    authenticator = psk_authenticator()
    for shown in (repr(authenticator), str(authenticator)):
        assert PSK.hex() not in shown
        assert authenticator._signs.assertion_key.hex() not in shown
    with pytest.raises(TypeError):
        pickle.dumps(authenticator)
    with pytest.raises(TypeError):
        copy.deepcopy(authenticator)
