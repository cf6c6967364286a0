from __future__ import annotations

import pickle
from pathlib import Path

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.harness.assertions import (
    CLAIMS,
    NOW,
    SALT,
    TRUST_DOMAIN,
    claims,
    ec_key,
    node_certificate,
    pki_authenticator,
    psk_authenticator,
    realistic_labels,
)
from tests.harness.mutations import bit_flips, mutations, truncations
from tests.harness.vectors import read_hex
from trireme_py import auth_pki, cose
from trireme_py.assertion import CLOCK_SKEW_S, CONTEXT, identity_id
from trireme_py.auth import Authenticator
from trireme_py.auth_pki import PkiAuthenticator
from trireme_py.certificate import (
    CONTEXT as CERTIFICATE_CONTEXT,
)
from trireme_py.certificate import (
    MAX_CERTIFICATE,
    NodeCertificate,
    issue_certificate,
    key_id,
    read_certificate_untrusted,
    verify_certificate_untrusted,
)
from trireme_py.errors import ConfigError, CredentialError, InvalidToken
from trireme_py.model import DropReason

VECTOR = Path(__file__).parent / "vectors/assertion_pki.hex"
DAY = 86_400


def refused(authenticator: Authenticator, assertion: bytes, wall_s: float = NOW) -> DropReason:
    with pytest.raises(InvalidToken) as caught:
        authenticator.verify_untrusted(assertion, wall_s)
    return caught.value.reason


def with_certificate(certificate: bytes, signer: str = "worker-1") -> bytes:
    """An assertion of ``signer`` with whatever is given as its certificate."""
    message = cose.decode_untrusted(pki_authenticator().issue(CLAIMS, SALT), cose.Kind.SIGN1, 1084)
    return cose.sign1(ec_key(signer), {cose.HEADER_KCWT: cbor2.loads(certificate)}, message.payload, CONTEXT)


def test_the_golden_assertion() -> None:
    assertion = pki_authenticator().issue(CLAIMS, SALT)
    assert assertion == read_hex(VECTOR)
    assert f"Identity id: {identity_id(assertion).hex()}" in VECTOR.read_text(encoding="utf-8")


def test_another_node_s_assertion_is_verified() -> None:
    assertion = pki_authenticator("worker-1").issue(CLAIMS, SALT)
    verified = pki_authenticator("worker-2").verify_untrusted(assertion, NOW)
    assert verified.identity.spiffe_id == "spiffe://cluster.local/ns/shop/sa/frontend"
    assert verified.identity.labels.describe() == CLAIMS.labels.describe()
    assert verified.issuer == "node"
    assert pki_authenticator().pair_salt(assertion) == b""
    assert pki_authenticator().mode == "pki"


# -- Every reason -----------------------------------------------------------------------------------------------------


def test_an_assertion_of_another_trust_domain() -> None:
    other = pki_authenticator(trust_domain="other.example").issue(claims(trust_domain="other.example"), SALT)
    assert refused(pki_authenticator("worker-2"), other) is DropReason.TRUST_DOMAIN


def test_a_node_of_another_trust_domain_that_claims_ours() -> None:
    """Even one whose authority we trust, as one authority may serve two trust domains."""
    certificate = issue_certificate(ec_key("authority"), node_certificate(trust_domain="other.example"))
    assert refused(pki_authenticator("worker-2"), with_certificate(certificate)) is DropReason.TRUST_DOMAIN


def test_an_assertion_that_ran_out_or_has_not_begun() -> None:
    authenticator = pki_authenticator()
    assertion = authenticator.issue(CLAIMS, SALT)
    assert refused(authenticator, assertion, CLAIMS.not_after + CLOCK_SKEW_S) is DropReason.EXPIRED
    assert refused(authenticator, assertion, CLAIMS.not_before - CLOCK_SKEW_S - 1) is DropReason.NOT_YET_VALID


@pytest.mark.parametrize("seen_before", [False, True])
def test_a_certificate_that_ran_out_or_has_not_begun(seen_before: bool) -> None:
    """Validity is judged each time, also of a certificate whose signature was verified before."""
    verifier = pki_authenticator("worker-2")
    expired = with_certificate(issue_certificate(ec_key("authority"), node_certificate(not_after=NOW - 120)))
    future = with_certificate(issue_certificate(ec_key("authority"), node_certificate(not_before=NOW + 120)))
    if seen_before:
        verifier.verify_untrusted(expired, NOW - 120)
        verifier.verify_untrusted(future, NOW + 120)
    assert refused(verifier, expired) is DropReason.EXPIRED
    assert refused(verifier, future) is DropReason.NOT_YET_VALID


def test_a_node_of_another_authority() -> None:
    stranger = pki_authenticator("worker-1", authority="stranger").issue(CLAIMS, SALT)
    assert refused(pki_authenticator("worker-2"), stranger) is DropReason.UNKNOWN_SIGNER


def test_a_stranger_who_names_our_authority() -> None:
    forged = cose.sign1(
        ec_key("stranger"),
        {cose.HEADER_KEY_ID: key_id(ec_key("authority").public_key())},
        read_certificate_untrusted(
            cose.loads_untrusted(issue_certificate(ec_key("authority"), node_certificate()), MAX_CERTIFICATE)
        )[0].payload,
        CERTIFICATE_CONTEXT,
    )
    assert refused(pki_authenticator("worker-2"), with_certificate(forged)) is DropReason.BAD_SIGNATURE


def test_a_stranger_with_somebody_else_s_certificate() -> None:
    certificate = issue_certificate(ec_key("authority"), node_certificate())
    assert refused(pki_authenticator("worker-2"), with_certificate(certificate, "stranger")) is DropReason.BAD_SIGNATURE


def test_a_node_that_signs_a_certificate() -> None:
    """A node's key makes assertions, not nodes: what it signs is not taken for the authority's."""
    certificate = issue_certificate(ec_key("worker-1"), node_certificate(public_key=ec_key("stranger").public_key()))
    assert (
        refused(pki_authenticator("worker-2"), with_certificate(certificate, "stranger")) is DropReason.UNKNOWN_SIGNER
    )


def test_an_authority_s_signature_over_something_else_is_no_certificate() -> None:
    certificate = cbor2.loads(issue_certificate(ec_key("authority"), node_certificate()))
    payload = certificate.value[2]
    other = cose.sign1(
        ec_key("authority"), {cose.HEADER_KEY_ID: key_id(ec_key("authority").public_key())}, payload, CONTEXT
    )
    assert refused(pki_authenticator("worker-2"), with_certificate(other)) is DropReason.BAD_SIGNATURE


def test_one_claim_changed() -> None:
    assertion = pki_authenticator().issue(CLAIMS, SALT)
    promoted = assertion.replace(b"\x63web", b"\x63app")
    assert promoted != assertion
    assert refused(pki_authenticator("worker-2"), promoted) is DropReason.BAD_SIGNATURE


def test_an_assertion_of_the_other_mode() -> None:
    assert refused(pki_authenticator(), psk_authenticator().issue(CLAIMS, SALT)) is DropReason.MALFORMED_ASSERTION


def test_the_other_signature_of_the_pair_is_refused() -> None:
    assertion = pki_authenticator().issue(CLAIMS, SALT)
    s = cose.P256_ORDER - int.from_bytes(assertion[-32:], "big")
    twin = assertion[:-32] + s.to_bytes(32, "big")
    assert refused(pki_authenticator("worker-2"), twin) is DropReason.MALFORMED_ASSERTION


def point_beside_the_curve() -> bytes:
    for x in range(2, 100):
        try:
            ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x02" + x.to_bytes(32, "big"))
        except ValueError:
            return x.to_bytes(32, "big")
    raise AssertionError("half of all numbers are no x of a point")


X = b"x" * 32
BROKEN_CERTIFICATE_CLAIMS: dict[str, dict[int, object]] = {
    "no trust domain": {1: None},
    "trust domain is bytes": {1: b"cluster.local"},
    "trust domain is no name": {1: "Cluster"},
    "node name upper-case": {2: "Worker"},
    "node name with a slash": {2: "a/b"},
    "node name too long": {2: "a" * 65},
    "no expiry": {4: None},
    "expiry is a boolean": {4: True},
    "ends before it begins": {4: 1, 5: 2},
    "no key": {8: None},
    "key of another type": {8: {1: {1: 1, -1: 1, -2: X, -3: True}}},
    "key of another curve": {8: {1: {1: 2, -1: 2, -2: X, -3: True}}},
    "uncompressed key": {8: {1: {1: 2, -1: 1, -2: X, -3: X}}},
    "key too short": {8: {1: {1: 2, -1: 1, -2: X[1:], -3: True}}},
    "key with a private part": {8: {1: {1: 2, -1: 1, -2: X, -3: True, -4: X}}},
    "point beside the curve": {8: {1: {1: 2, -1: 1, -2: point_beside_the_curve(), -3: True}}},
}


@pytest.mark.parametrize("changes", BROKEN_CERTIFICATE_CLAIMS.values(), ids=BROKEN_CERTIFICATE_CLAIMS.keys())
def test_a_certificate_out_of_bounds_is_refused(changes: dict[int, object]) -> None:
    good = cbor2.loads(issue_certificate(ec_key("authority"), node_certificate()))
    payload = {key: value for key, value in (dict(cbor2.loads(good.value[2])) | changes).items() if value is not None}
    broken = cose.sign1(
        ec_key("authority"),
        {cose.HEADER_KEY_ID: key_id(ec_key("authority").public_key())},
        cose.dumps(payload),
        CERTIFICATE_CONTEXT,
    )
    assert refused(pki_authenticator("worker-2"), with_certificate(broken)) is DropReason.MALFORMED_ASSERTION


@pytest.mark.parametrize("item", [None, 0, b"", "kcwt", [], {}, cbor2.CBORTag(17, [b"", {}, b"", b""])], ids=repr)
def test_something_else_in_place_of_a_certificate(item: object) -> None:
    message = cose.decode_untrusted(pki_authenticator().issue(CLAIMS, SALT), cose.Kind.SIGN1, 1084)
    header = {} if item is None else {cose.HEADER_KCWT: item}
    assertion = cose.sign1(ec_key("worker-1"), header, message.payload, CONTEXT)
    assert refused(pki_authenticator("worker-2"), assertion) is DropReason.MALFORMED_ASSERTION


# -- Validity and rotation --------------------------------------------------------------------------------------------


def test_an_assertion_holds_no_longer_than_the_certificate() -> None:
    assertion = with_certificate(issue_certificate(ec_key("authority"), node_certificate(not_after=NOW + 100)))
    assert pki_authenticator("worker-2").verify_untrusted(assertion, NOW).not_after == NOW + 100
    issued = pki_authenticator(not_after=NOW + 100).issue(CLAIMS, SALT)
    assert b"\x1a" + (NOW + 100).to_bytes(4, "big") in cbor2.loads(issued).value[2]


def test_a_node_whose_certificate_ran_out_issues_nothing() -> None:
    with pytest.raises(CredentialError, match="trireme node request"):
        pki_authenticator(not_after=CLAIMS.not_before).issue(CLAIMS, SALT)


def test_two_authorities_are_trusted_during_a_rotation() -> None:
    old = pki_authenticator("worker-1", authority="old").issue(CLAIMS, SALT)
    new = pki_authenticator("worker-1", authority="new").issue(CLAIMS, SALT)
    between = pki_authenticator("worker-2", authority="new", trusted=("old",))
    assert between.verify_untrusted(old, NOW).identity.namespace == "shop"
    assert between.verify_untrusted(new, NOW).identity.namespace == "shop"
    after = pki_authenticator("worker-2", authority="new")
    assert refused(after, old) is DropReason.UNKNOWN_SIGNER


# -- The cache of certificates ----------------------------------------------------------------------------------------


def test_a_certificate_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[bytes] = []

    def count(message: cose.Message, authorities: tuple[ec.EllipticCurvePublicKey, ...]) -> None:
        verified.append(message.payload)
        verify_certificate_untrusted(message, authorities)

    monkeypatch.setattr(auth_pki, "verify_certificate_untrusted", count)
    verifier = pki_authenticator("worker-2")
    verified.clear()
    signer = pki_authenticator("worker-1")
    verified.clear()
    for pod in ("a", "b", "c"):
        verifier.verify_untrusted(signer.issue(claims(pod=pod), SALT), NOW)
    assert len(verified) == 1


def test_only_what_an_authority_signed_is_remembered_and_no_more_than_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auth_pki, "MAX_KNOWN_CERTIFICATES", 3)
    verifier = pki_authenticator("worker-0")
    stranger = pki_authenticator("worker-1", authority="stranger").issue(CLAIMS, SALT)
    refused(verifier, stranger)
    assert len(verifier._known) == 0
    for number in range(1, 6):
        verifier.verify_untrusted(pki_authenticator(f"worker-{number}").issue(CLAIMS, SALT), NOW)
        assert len(verifier._known) <= 3
    assert [certificate.node for certificate in verifier._known.values()] == ["worker-3", "worker-4", "worker-5"]


# -- Damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [CLAIMS.labels, realistic_labels(30)], ids=["in clear", "hashed"])
def test_every_flipped_bit_is_noticed(labels: object) -> None:
    verifier = pki_authenticator("worker-2")
    for flipped in bit_flips(pki_authenticator().issue(claims(labels=labels), SALT)):
        refused(verifier, flipped)


def test_every_truncation_is_noticed() -> None:
    verifier = pki_authenticator("worker-2")
    assertion = pki_authenticator().issue(CLAIMS, SALT)
    for shorter in truncations(assertion):
        assert refused(verifier, shorter) is DropReason.MALFORMED_ASSERTION
    assert refused(verifier, assertion + b"\0") is DropReason.MALFORMED_ASSERTION


@pytest.mark.parametrize("labels", [CLAIMS.labels, realistic_labels(30)], ids=["in clear", "hashed"])
def test_25_000_mutations_are_refused_and_raise_nothing_else(labels: object) -> None:
    verifier = pki_authenticator("worker-2")
    seen = {
        refused(verifier, mutated)
        for mutated in mutations(pki_authenticator().issue(claims(labels=labels), SALT), 12_500, seed=3)
    }
    assert {DropReason.MALFORMED_ASSERTION, DropReason.BAD_SIGNATURE} <= seen


# -- The certificate and its holder -----------------------------------------------------------------------------------


def test_a_certificate_has_at_most_200_octets_or_is_not_made() -> None:
    """A name of the length that clouds give their nodes still fits; what does not says by how much."""
    node, trust_domain = "ip-10-0-12-34.eu-central-1.compute.internal", "k8s.example"
    certificate = issue_certificate(ec_key("authority"), node_certificate(node=node, trust_domain=trust_domain))
    assert len(certificate) <= MAX_CERTIFICATE
    with pytest.raises(ValueError, match=r"2\d\d octets, 200 are allowed: .* characters shorter"):
        issue_certificate(ec_key("authority"), node_certificate(node=node, trust_domain=trust_domain * 2))
    with pytest.raises(ValueError, match="node name"):
        issue_certificate(ec_key("authority"), node_certificate(node="Worker"))


def test_a_certificate_says_what_was_put_in() -> None:
    given = node_certificate()
    message, read = read_certificate_untrusted(
        cose.loads_untrusted(issue_certificate(ec_key("authority"), given), MAX_CERTIFICATE)
    )
    assert read == NodeCertificate(given.trust_domain, given.node, given.not_before, given.not_after, read.public_key)
    assert read.public_key.public_numbers() == given.public_key.public_numbers()
    assert message.header[cose.HEADER_KEY_ID] == key_id(ec_key("authority").public_key())


def test_credentials_that_do_not_belong_together() -> None:
    key, authority = ec_key("worker-1"), ec_key("authority").public_key()
    certificate = issue_certificate(ec_key("authority"), node_certificate())
    PkiAuthenticator(key, certificate, [authority], TRUST_DOMAIN)
    with pytest.raises(CredentialError, match="not the one in its certificate"):
        PkiAuthenticator(ec_key("worker-2"), certificate, [authority], TRUST_DOMAIN)
    with pytest.raises(CredentialError, match="unknown_signer"):
        PkiAuthenticator(key, certificate, [ec_key("stranger").public_key()], TRUST_DOMAIN)
    with pytest.raises(CredentialError, match=r"for trust domain cluster\.local, not other\.example"):
        PkiAuthenticator(key, certificate, [authority], "other.example")
    with pytest.raises(CredentialError, match="malformed_assertion"):
        PkiAuthenticator(key, certificate[:-1], [authority], TRUST_DOMAIN)


def test_claims_of_another_trust_domain_are_not_issued() -> None:
    with pytest.raises(ConfigError, match=r"no assertion for other\.example"):
        pki_authenticator().issue(claims(trust_domain="other.example"), SALT)


def test_the_key_is_never_shown() -> None:
    authenticator = pki_authenticator()
    private = ec_key("worker-1").private_numbers().private_value
    assert f"{private:x}" not in repr(authenticator)
    assert str(private) not in repr(authenticator)
    with pytest.raises(TypeError, match="does not leave"):
        pickle.dumps(authenticator)
