"""The seam between the exchange and whoever vouches for identities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from trireme_py import cose, wire
from trireme_py.assertion import Claims, Issuer, VerifiedAssertion, check_validity, read_claims_untrusted
from trireme_py.errors import InvalidToken
from trireme_py.model import DropReason

Mode = Literal["psk", "pki"]


class Authenticator(Protocol):
    """Issues assertions for this node's pods, and verifies everybody's."""

    @property
    def trust_domain(self) -> str:
        """The one trust domain whose assertions are issued and believed."""

    @property
    def mode(self) -> Mode:
        """How identities are vouched for, for people."""

    def pair_salt(self, client_assertion: bytes) -> bytes:
        """Return the secret that goes into the pair keys of this client: empty in PKI mode.

        Derived from the pre-shared key that vouches for the client, since both ends must find the same while two keys
        are in use.

        :raises InvalidToken: UNKNOWN_SIGNER, if the assertion was made with a key that is no longer in use
        """

    def issue(self, claims: Claims, salt: bytes) -> bytes:
        """Return a signed assertion of at most ``wire.MAX_ASSERTION`` octets.

        ``salt`` is ``labels.SALT_SIZE`` fresh random bytes, used if the labels do not fit in clear.

        :raises ConfigError: the claims cannot be issued: another trust domain, a name out of bounds, or too much of it
        """

    def verify_untrusted(
        self, assertion: bytes, wall_s: float, admit: Callable[[], None] = lambda: None
    ) -> VerifiedAssertion:
        """Believe an assertion, or say why not. ``wall_s``: seconds since the Unix epoch.

        ``admit`` is called when all that is cheap to check has passed, before any cryptography; what it raises is
        raised. So what is refused cheaply takes nothing from those who come with something to verify.

        :raises InvalidToken: MALFORMED_ASSERTION, TRUST_DOMAIN, EXPIRED, NOT_YET_VALID, UNKNOWN_SIGNER or BAD_SIGNATURE
        """


def read_assertion_untrusted(
    assertion: bytes, kind: cose.Kind, issuer: Issuer, trust_domain: str, wall_s: float
) -> tuple[cose.Message, Claims]:
    """Do everything that costs no cryptography, so that what can be refused cheaply is.

    The claims are only claimed: the caller has yet to check the proof.
    """
    message = cose.decode_untrusted(assertion, kind, wire.MAX_ASSERTION)
    cose.require_one_spelling_untrusted(message)
    claims = read_claims_untrusted(message.payload, issuer)
    if claims.trust_domain != trust_domain:
        raise InvalidToken(DropReason.TRUST_DOMAIN, claims.trust_domain)
    check_validity(claims.not_before, claims.not_after, wall_s)
    return message, claims
