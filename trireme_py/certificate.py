"""A node's compact certificate: a CWT (RFC 8392) of at most 200 octets that the trust domain's authority signs.

It says what the node's X.509 certificate says in a third of the octets, and travels inside each of its assertions
(COSE header parameter ``kcwt``, RFC 9528)::

    18([ h'{1: -7, 4: h'<key id of the authority>'}', {}, h'<claims>', h'<signature>' ])

    claims = {1: "<trust domain>"                                         iss
              2: "<node name>"                                            sub
              4: seconds since 1970, 5: seconds since 1970                exp, nbf
              8: {1: {1: 2, -1: 1, -2: h'<x>', -3: true | false}}}        cnf: a P-256 key, compressed (RFC 9053, 7.1.1)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trireme_py import cose
from trireme_py.assertion import (
    CLAIM_CONFIRMATION,
    CLAIM_ISSUER,
    CLAIM_NOT_AFTER,
    CLAIM_NOT_BEFORE,
    CLAIM_SUBJECT,
    check_trust_domain,
    text_untrusted,
    time_untrusted,
)
from trireme_py.cose import malformed
from trireme_py.errors import InvalidToken
from trireme_py.model import DropReason

MAX_CERTIFICATE: Final = 200
"""Octets. Leaves room for 30 hashed labels beside it (docs/identity.md, "Size budget")."""
KEY_ID_SIZE: Final = 4
CONTEXT: Final = b"TRM1 node certificate"
"""External data under the signature: nothing else the authority signs can pass for a node's certificate."""

_NODE_NAME: Final = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,62}[a-z0-9])?")
"""At most 64 characters, as the common name of an X.509 certificate (RFC 5280, appendix A.1)."""
_KTY_EC2, _CRV_P256 = 2, 1


@dataclass(frozen=True, slots=True)
class NodeCertificate:
    """What a compact certificate says."""

    trust_domain: str
    node: str
    not_before: int
    not_after: int
    """Seconds since the Unix epoch; the first second in which the certificate no longer holds."""
    public_key: ec.EllipticCurvePublicKey


def is_node_name(name: str) -> bool:
    """Tell whether ``name`` can be a node's: lower-case letters, digits, dots and dashes."""
    return _NODE_NAME.fullmatch(name) is not None


def key_id(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return the first 4 bytes of the SHA-256 of the uncompressed point (SEC 1, section 2.3.3)."""
    return sha256(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)).digest()[:KEY_ID_SIZE]


def issue_certificate(authority: ec.EllipticCurvePrivateKey, certificate: NodeCertificate) -> bytes:
    """Sign a compact certificate.

    :raises ValueError: a name is out of bounds, or it would have more than 200 octets
    """
    point = certificate.public_key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    key = {1: _KTY_EC2, -1: _CRV_P256, -2: point[1:], -3: point[0] == 3}
    payload = cose.dumps(
        {
            CLAIM_ISSUER: certificate.trust_domain,
            CLAIM_SUBJECT: certificate.node,
            CLAIM_NOT_AFTER: certificate.not_after,
            CLAIM_NOT_BEFORE: certificate.not_before,
            CLAIM_CONFIRMATION: {1: key},
        }
    )
    try:
        _read_claims_untrusted(payload)
    except InvalidToken as error:
        raise ValueError(str(error)) from error
    signed = cose.sign1(authority, {cose.HEADER_KEY_ID: key_id(authority.public_key())}, payload, CONTEXT)
    if len(signed) > MAX_CERTIFICATE:
        raise ValueError(
            f"the compact certificate has {len(signed)} octets, {MAX_CERTIFICATE} are allowed: node name and trust "
            f"domain together must be {len(signed) - MAX_CERTIFICATE} characters shorter"
        )
    return signed


def read_certificate_untrusted(item: object) -> tuple[cose.Message, NodeCertificate]:
    """Read a certificate from a decoded header parameter. Its signature and validity are not checked.

    :raises InvalidToken: MALFORMED_ASSERTION
    """
    message = cose.from_item_untrusted(item, cose.Kind.SIGN1, MAX_CERTIFICATE)
    cose.require_one_spelling_untrusted(message)
    return message, _read_claims_untrusted(message.payload)


def verify_certificate_untrusted(message: cose.Message, authorities: Sequence[ec.EllipticCurvePublicKey]) -> None:
    """Check that one of ``authorities`` signed it.

    :raises InvalidToken: UNKNOWN_SIGNER if none has the key id it names, BAD_SIGNATURE if the signature is wrong
    """
    named = [key for key in authorities if key_id(key) == message.header.get(cose.HEADER_KEY_ID)]
    if not named:
        raise InvalidToken(DropReason.UNKNOWN_SIGNER, "certificate of an authority that is not trusted")
    for key in named[:-1]:  # two authorities with one key id: one in four billion, and still right
        try:
            return cose.verify_sign1_untrusted(message, key, CONTEXT)
        except InvalidToken:
            continue
    return cose.verify_sign1_untrusted(message, named[-1], CONTEXT)


def _read_claims_untrusted(payload: bytes) -> NodeCertificate:
    items = cose.loads_untrusted(payload, MAX_CERTIFICATE)
    if not isinstance(items, Mapping):
        malformed("certificate's claims are not a map")
    trust_domain = text_untrusted(items.get(CLAIM_ISSUER), "certificate's iss")
    check_trust_domain(trust_domain)
    node = text_untrusted(items.get(CLAIM_SUBJECT), "certificate's sub")
    if not is_node_name(node):
        malformed("node name must be at most 64 of a-z, 0-9, dot and dash")
    not_before = time_untrusted(items.get(CLAIM_NOT_BEFORE), "certificate's nbf")
    not_after = time_untrusted(items.get(CLAIM_NOT_AFTER), "certificate's exp")
    if not_after <= not_before:
        malformed("certificate ends before it begins")
    return NodeCertificate(
        trust_domain, node, not_before, not_after, _read_key_untrusted(items.get(CLAIM_CONFIRMATION))
    )


def _read_key_untrusted(value: object) -> ec.EllipticCurvePublicKey:
    """Read ``{1: COSE_Key}`` with a compressed P-256 point and no parameter that could say otherwise."""
    key = value.get(1) if isinstance(value, Mapping) and len(value) == 1 else None
    if not isinstance(key, Mapping) or len(key) != 4 or key.get(1) != _KTY_EC2 or key.get(-1) != _CRV_P256:
        malformed("certificate's cnf is not a P-256 key")
    x, odd = key.get(-2), key.get(-3)
    if not isinstance(x, bytes) or len(x) != 32 or not isinstance(odd, bool):
        malformed("certificate's cnf is not a compressed P-256 key")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), bytes([3 if odd else 2]) + x)
    except ValueError:
        raise InvalidToken(DropReason.MALFORMED_ASSERTION, "certificate's key is not on the curve") from None
