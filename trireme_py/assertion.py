"""The claims of an identity assertion: a CWT (RFC 8392) and its strict reading.

::

    {  1: "psk" | "node"                                   iss, the kind of issuer
       2: "spiffe://<trust domain>/ns/<namespace>/sa/<service account>"      sub
       4: seconds since 1970                               exp, first second in which it no longer holds
       5: seconds since 1970                               nbf
       8: {1: {1: 1, -1: 4, -2: h'<32 bytes>'}}            cnf (RFC 8747), an X25519 public key (RFC 9053, table 19)
       -65537: [pod, labels, [[name, protocol, number], …]]   }

``labels`` is a map of texts, or the byte string of :mod:`trireme_py.labels`. Claims with other numbers are passed over,
as RFC 8392 section 3 wants it; what a reader must not pass over goes into the header with ``crit``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2s
from typing import Final, Literal

from trireme_py import cose, wire
from trireme_py.cose import malformed
from trireme_py.errors import ConfigError, InvalidToken
from trireme_py.labels import hash_labels, read_hashed_labels_untrusted
from trireme_py.model import DropReason, Identity, Labels, NamedPort, PlainLabels, Protocol

Issuer = Literal["psk", "node"]
"""Who vouches for the claims: every holder of the pre-shared key, or the node whose certificate came along."""

# -- Specification ----------------------------------------------------------------------------------------------------

CLAIM_ISSUER: Final = 1
CLAIM_SUBJECT: Final = 2
CLAIM_NOT_AFTER: Final = 4
CLAIM_NOT_BEFORE: Final = 5
CLAIM_CONFIRMATION: Final = 8
CLAIM_POD: Final = -65537
"""First of the numbers for private use (RFC 8392, section 9.1). One claim, because each number costs five octets."""

CONTEXT: Final = b"TRM1 assertion"
"""External data under the proof (RFC 9052, section 4.3): nothing else signed with the same key can pass for this."""

AGREEMENT_KEY_SIZE: Final = 32
MAX_LIFETIME_S: Final = 24 * 60 * 60
"""There is no revocation: an assertion must run out before it matters that one could have wanted to revoke it."""
MAX_TIME: Final = 1 << 40

NAMED_PORT_PROTOCOLS: Final = frozenset({int(Protocol.TCP), int(Protocol.UDP), int(Protocol.SCTP)})

# -- Implementation ---------------------------------------------------------------------------------------------------

CLOCK_SKEW_S: Final = 60
"""How far the clocks of two nodes may differ: NTP holds milliseconds, this forgives a node that just booted."""

# Kubernetes' own limits (apimachinery's IsDNS1123Label, IsDNS1123Subdomain, IsQualifiedName, IsValidLabelValue,
# IsValidPortName); the trust domain's are those of the SPIFFE-ID standard, section 2.1.
_DNS_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_LABEL_NAME = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?"
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_NAMESPACE: Final = re.compile(_DNS_LABEL)
_SUBDOMAIN: Final = re.compile(rf"{_DNS_LABEL}(?:\.{_DNS_LABEL})*")
_LABEL_PART: Final = re.compile(_LABEL_NAME)
_PORT_NAME: Final = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Claims:
    """What an assertion says."""

    trust_domain: str
    namespace: str
    service_account: str
    pod: str
    """The pod's name; empty where it was left out for want of room. For people only, no policy asks for it."""
    labels: Labels
    """Given as :class:`PlainLabels` to be issued; read as those or as HashedLabels."""
    named_ports: tuple[NamedPort, ...]
    not_before: int
    """Seconds since the Unix epoch."""
    not_after: int
    """Seconds since the Unix epoch; the first second in which the assertion no longer holds."""
    agreement_key: bytes
    """X25519 public key of the node, 32 bytes."""


@dataclass(frozen=True, slots=True)
class VerifiedAssertion:
    """An assertion whose proof and validity have been checked."""

    identity: Identity
    agreement_key: bytes
    not_before: int
    not_after: int
    """Seconds since the Unix epoch; no later than the end of the certificate behind it."""
    issuer: Issuer


def identity_id(assertion: bytes) -> bytes:
    """Return the 16-byte id under which an assertion is cached, compared and bound into each handshake."""
    return blake2s(assertion, digest_size=wire.ID_SIZE, person=wire.PERSON_ID).digest()


def verified(assertion: bytes, claims: Claims, issuer: Issuer) -> VerifiedAssertion:
    """Put together what :meth:`Authenticator.verify_untrusted` returns, after it has checked everything."""
    identity = Identity(
        id=identity_id(assertion),
        trust_domain=claims.trust_domain,
        namespace=claims.namespace,
        service_account=claims.service_account,
        pod=claims.pod,
        labels=claims.labels,
        named_ports=claims.named_ports,
    )
    return VerifiedAssertion(identity, claims.agreement_key, claims.not_before, claims.not_after, issuer)


def check_validity(not_before: int, not_after: int, wall_s: float) -> None:
    """Hold a validity period against the clock, give or take ``CLOCK_SKEW_S``.

    :raises InvalidToken: EXPIRED or NOT_YET_VALID
    """
    if wall_s >= not_after + CLOCK_SKEW_S:
        raise InvalidToken(DropReason.EXPIRED, f"ended at {not_after}")
    if wall_s < not_before - CLOCK_SKEW_S:
        raise InvalidToken(DropReason.NOT_YET_VALID, f"begins at {not_before}")


# -- Writing ----------------------------------------------------------------------------------------------------------


def encode_claims(claims: Claims, issuer: Issuer, salt: bytes, limit: int) -> bytes:
    """Encode ``claims`` in at most ``limit`` octets.

    Labels stay in clear if that fits, else they are hashed under ``salt`` (``labels.SALT_SIZE`` fresh random bytes); if
    it still does not fit, the pod's name is left out.

    :raises ConfigError: a name or label is not one Kubernetes would take, or there is too much of it
    """
    if not isinstance(claims.labels, PlainLabels):
        raise ConfigError(f"pod {claims.namespace}/{claims.pod}: only labels in clear can be issued")
    plain = claims.labels.items
    try:
        _check_claims(claims)
    except InvalidToken as error:
        raise ConfigError(f"pod {claims.namespace}/{claims.pod}: no assertion can be issued: {error}") from error
    hashed = hash_labels(plain, salt)
    for pod, labels in ((claims.pod, dict(plain)), (claims.pod, hashed), ("", hashed)):
        payload = _encode(claims, issuer, pod, labels)
        if len(payload) <= limit:
            return payload
    raise ConfigError(
        f"pod {claims.namespace}/{claims.pod}: {len(plain)} labels and {len(claims.named_ports)} named ports need "
        f"{len(payload)} octets where {limit} fit into a handshake; remove labels that no policy selects"
    )


def _encode(claims: Claims, issuer: Issuer, pod: str, labels: dict[str, str] | bytes) -> bytes:
    ports = [[port.name, port.protocol, port.number] for port in claims.named_ports]
    return cose.dumps(
        {
            CLAIM_ISSUER: issuer,
            CLAIM_SUBJECT: spiffe_id(claims.trust_domain, claims.namespace, claims.service_account),
            CLAIM_NOT_AFTER: claims.not_after,
            CLAIM_NOT_BEFORE: claims.not_before,
            CLAIM_CONFIRMATION: {1: {1: 1, -1: 4, -2: claims.agreement_key}},
            CLAIM_POD: [pod, labels, ports],
        }
    )


def spiffe_id(trust_domain: str, namespace: str, service_account: str) -> str:
    """Return the SPIFFE id of a service account's workloads."""
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"


# -- Reading ----------------------------------------------------------------------------------------------------------


def read_claims_untrusted(payload: bytes, issuer: Issuer) -> Claims:
    """Decode claims and hold every one of them to its bounds. Neither proof nor validity is checked here.

    :raises InvalidToken: MALFORMED_ASSERTION
    """
    items = cose.loads_untrusted(payload, wire.MAX_ASSERTION)
    if not isinstance(items, Mapping):
        malformed("claims are not a map")
    if items.get(CLAIM_ISSUER) != issuer:
        malformed(f"issuer is not {issuer!r}")
    trust_domain, namespace, service_account = _read_subject_untrusted(items.get(CLAIM_SUBJECT))
    pod_claim = items.get(CLAIM_POD)
    if not isinstance(pod_claim, list | tuple) or len(pod_claim) != 3:
        malformed("pod claim is not an array of three")
    pod, labels, ports = pod_claim
    claims = Claims(
        trust_domain=trust_domain,
        namespace=namespace,
        service_account=service_account,
        pod=text_untrusted(pod, "pod"),
        labels=_read_labels_untrusted(labels),
        named_ports=_read_ports_untrusted(ports),
        not_before=time_untrusted(items.get(CLAIM_NOT_BEFORE), "nbf"),
        not_after=time_untrusted(items.get(CLAIM_NOT_AFTER), "exp"),
        agreement_key=_read_agreement_key_untrusted(items.get(CLAIM_CONFIRMATION)),
    )
    _check_claims(claims)
    return claims


def text_untrusted(value: object, field: str) -> str:
    """Return ``value`` if it is a text."""
    if not isinstance(value, str):
        malformed(f"{field} is not a text")
    return value


def time_untrusted(value: object, field: str) -> int:
    """Return ``value`` if it is a number of seconds this side of the year 36,000."""
    if type(value) is not int or not 0 <= value < MAX_TIME:
        malformed(f"{field} is not a time")
    return value


def _read_subject_untrusted(value: object) -> tuple[str, str, str]:
    parts = text_untrusted(value, "sub").split("/")
    if len(parts) != 7 or parts[:2] != ["spiffe:", ""] or parts[3] != "ns" or parts[5] != "sa":
        malformed("sub is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>")
    return parts[2], parts[4], parts[6]


def _read_labels_untrusted(value: object) -> Labels:
    if isinstance(value, bytes):
        return read_hashed_labels_untrusted(value)
    if not isinstance(value, Mapping):
        malformed("labels are neither a map nor a byte string")
    return PlainLabels({text_untrusted(key, "label"): text_untrusted(item, "label") for key, item in value.items()})


def _read_ports_untrusted(value: object) -> tuple[NamedPort, ...]:
    if not isinstance(value, list | tuple):
        malformed("named ports are not an array")
    ports = []
    for entry in value:
        if not isinstance(entry, list | tuple) or len(entry) != 3:
            malformed("a named port is not an array of three")
        name, protocol, number = entry
        if type(protocol) is not int or type(number) is not int:
            malformed("a named port's protocol or number is not an integer")
        ports.append(NamedPort(text_untrusted(name, "port name"), protocol, number))
    return tuple(ports)


def _read_agreement_key_untrusted(value: object) -> bytes:
    """Read ``{1: COSE_Key}`` with an X25519 key and no parameter that could say otherwise."""
    key = value.get(1) if isinstance(value, Mapping) and len(value) == 1 else None
    if not isinstance(key, Mapping) or len(key) != 3 or key.get(1) != 1 or key.get(-1) != 4:
        malformed("cnf is not an X25519 key")
    public = key.get(-2)
    if not isinstance(public, bytes):
        malformed("cnf is not an X25519 key")
    return public


def check_trust_domain(name: str) -> None:
    """Hold a trust domain's name to the SPIFFE-ID standard.

    :raises InvalidToken: MALFORMED_ASSERTION
    """
    if not _TRUST_DOMAIN.fullmatch(name):
        malformed("trust domain must be 1 to 255 of a-z, 0-9, dot, dash and underscore")


def _check_claims(claims: Claims) -> None:
    """Hold the claims to the limits that both writer and reader keep."""
    check_trust_domain(claims.trust_domain)
    _check_name(claims.namespace, _NAMESPACE, 63, "namespace")
    _check_name(claims.service_account, _SUBDOMAIN, 253, "service account")
    if claims.pod:
        _check_name(claims.pod, _SUBDOMAIN, 253, "pod name")
    if isinstance(claims.labels, PlainLabels):
        for key, value in claims.labels.items.items():
            _check_label(key, value)
    for port in claims.named_ports:
        _check_name(port.name, _PORT_NAME, 15, "port name")
        if port.protocol not in NAMED_PORT_PROTOCOLS or not 1 <= port.number <= 65535:
            malformed("a named port is out of range")
    if len(claims.agreement_key) != AGREEMENT_KEY_SIZE:
        malformed("agreement key has a wrong size")
    if not 0 < claims.not_after - claims.not_before <= MAX_LIFETIME_S:
        malformed(f"validity must be more than 0 and at most {MAX_LIFETIME_S} s")


def _check_label(key: str, value: str) -> None:
    prefix, slash, name = key.rpartition("/")
    if slash:
        _check_name(prefix, _SUBDOMAIN, 253, "label prefix")
    _check_name(name, _LABEL_PART, 63, "label name")
    if value:
        _check_name(value, _LABEL_PART, 63, "label value")


def _check_name(text: str, pattern: re.Pattern[str], longest: int, field: str) -> None:
    if len(text) > longest or not pattern.fullmatch(text):
        malformed(f"{field} {text[:longest]!r} is not one Kubernetes takes")
