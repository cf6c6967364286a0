"""Assertions signed by nodes: COSE_Sign1 with ES256, the node's compact certificate in the protected header.

A node vouches for the pods it runs, and can claim any pod of its trust domain (docs/identity.md says what that means).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Literal, NoReturn

from cryptography.hazmat.primitives.asymmetric import ec

from trireme_py import cose, wire
from trireme_py.assertion import CONTEXT, Claims, VerifiedAssertion, check_validity, encode_claims, verified
from trireme_py.auth import read_assertion_untrusted
from trireme_py.certificate import (
    MAX_CERTIFICATE,
    NodeCertificate,
    key_id,
    read_certificate_untrusted,
    verify_certificate_untrusted,
)
from trireme_py.errors import ConfigError, CredentialError, InvalidToken
from trireme_py.model import DropReason

MAX_KNOWN_CERTIFICATES: Final = 8192
"""Nodes whose certificate need not be verified again, the least recently used going first. A cluster has up to 5,000;
one costs about 2 kB. Only what an authority signed gets in, so a stranger cannot push anybody out."""


class PkiAuthenticator:
    """Signs with this node's key, verifies against the authorities; see :class:`trireme_py.auth.Authenticator`."""

    __slots__ = ("_authorities", "_certificate", "_header", "_key", "_known", "_limit")

    def __init__(
        self,
        key: ec.EllipticCurvePrivateKey,
        certificate: bytes,
        authorities: Sequence[ec.EllipticCurvePublicKey],
        trust_domain: str,
    ) -> None:
        """Take the node's key, its compact certificate, and the authorities to trust (several during a rotation).

        :raises CredentialError: they do not belong together
        """
        try:
            item = cose.loads_untrusted(certificate, MAX_CERTIFICATE)
            message, self._certificate = read_certificate_untrusted(item)
            verify_certificate_untrusted(message, authorities)
        except InvalidToken as error:
            raise CredentialError(f"the node's certificate cannot be used: {error}") from error
        if self._certificate.trust_domain != trust_domain:
            raise CredentialError(
                f"the node's certificate is for trust domain {self._certificate.trust_domain}, not {trust_domain}"
            )
        if key_id(self._certificate.public_key) != key_id(key.public_key()):
            raise CredentialError("the node's key is not the one in its certificate")
        self._key = key
        self._authorities = tuple(authorities)
        self._header: dict[int, object] = {cose.HEADER_KCWT: item}
        self._limit = wire.MAX_ASSERTION - cose.overhead(cose.Kind.SIGN1, self._header)
        self._known: OrderedDict[bytes, NodeCertificate] = OrderedDict()

    @property
    def trust_domain(self) -> str:
        return self._certificate.trust_domain

    @property
    def mode(self) -> Literal["pki"]:
        return "pki"

    def pair_salt(self, client_assertion: bytes) -> bytes:  # noqa: ARG002 - the protocol's signature
        return b""

    @property
    def certificate(self) -> NodeCertificate:
        """This node's own certificate: assertions cannot outlive it."""
        return self._certificate

    def issue(self, claims: Claims, salt: bytes) -> bytes:
        own = self._certificate
        if claims.trust_domain != own.trust_domain:
            raise ConfigError(f"trust domain is {own.trust_domain}, no assertion for {claims.trust_domain} is issued")
        not_after = min(claims.not_after, own.not_after)
        not_before = max(claims.not_before, own.not_before)
        if not_before >= not_after:
            raise CredentialError(
                f"certificate of node {own.node} does not hold at that time; run: trireme node request"
            )
        claims = replace(claims, not_before=not_before, not_after=not_after)
        payload = encode_claims(claims, "node", salt, self._limit)
        return cose.sign1(self._key, self._header, payload, CONTEXT)

    def verify_untrusted(
        self, assertion: bytes, wall_s: float, admit: Callable[[], None] = lambda: None
    ) -> VerifiedAssertion:
        message, claims = read_assertion_untrusted(assertion, cose.Kind.SIGN1, "node", self.trust_domain, wall_s)
        admit()
        certificate = self._certificate_untrusted(message.header.get(cose.HEADER_KCWT))
        check_validity(certificate.not_before, certificate.not_after, wall_s)
        cose.verify_sign1_untrusted(message, certificate.public_key, CONTEXT)
        # An assertion that says it outlives its certificate is believed for as long as the certificate holds.
        claims = replace(
            claims,
            not_before=max(claims.not_before, certificate.not_before),
            not_after=min(claims.not_after, certificate.not_after),
        )
        return verified(assertion, claims, "node")

    def _certificate_untrusted(self, item: object) -> NodeCertificate:
        """Return the signer's certificate, its signature verified now or before. Validity is the caller's to check.

        The second pod of a node then costs one signature instead of two.
        """
        if item is None:
            raise InvalidToken(DropReason.MALFORMED_ASSERTION, "no certificate")
        encoded = cose.dumps(item)
        known = self._known.get(encoded)
        if known is not None:
            self._known.move_to_end(encoded)
            return known
        message, certificate = read_certificate_untrusted(item)
        if len(encoded) > MAX_CERTIFICATE:
            raise InvalidToken(DropReason.MALFORMED_ASSERTION, f"certificate of {len(encoded)} octets")
        if certificate.trust_domain != self.trust_domain:
            raise InvalidToken(DropReason.TRUST_DOMAIN, certificate.trust_domain)
        verify_certificate_untrusted(message, self._authorities)
        self._known[encoded] = certificate
        if len(self._known) > MAX_KNOWN_CERTIFICATES:
            self._known.popitem(last=False)
        return certificate

    def __repr__(self) -> str:
        return f"PkiAuthenticator(trust_domain={self.trust_domain!r}, node={self._certificate.node!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a node's key does not leave the process")
