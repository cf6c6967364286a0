"""Claims, keys and authenticators of a small make-believe cluster, all of them fixed."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from trireme_py.assertion import Claims
from trireme_py.auth_pki import PkiAuthenticator
from trireme_py.auth_psk import PskAuthenticator
from trireme_py.certificate import NodeCertificate, issue_certificate
from trireme_py.model import NamedPort, PlainLabels, Protocol
from trireme_py.pairing import AgreementKey

TRUST_DOMAIN: Final = "cluster.local"
NOW: Final = 1_800_000_000
"""2027-01-15 08:00:00 UTC, in the middle of everything's validity."""
PSK: Final = sha256(b"pre-shared key of the tests").digest()
SALT: Final = bytes.fromhex("5a17000000000001")
AGREEMENT: Final = AgreementKey(sha256(b"agreement key of the tests").digest())


def ec_key(name: str) -> ec.EllipticCurvePrivateKey:
    """A P-256 key that is the same in every run."""
    return ec.derive_private_key(int.from_bytes(sha256(name.encode()).digest()[:31], "big"), ec.SECP256R1())


CLAIMS: Final = Claims(
    trust_domain=TRUST_DOMAIN,
    namespace="shop",
    service_account="frontend",
    pod="frontend-7d9f8c6b5-x2x4z",
    labels=PlainLabels({"app.kubernetes.io/name": "frontend", "tier": "web"}),
    named_ports=(NamedPort("http", Protocol.TCP, 8080),),
    not_before=NOW - 600,
    not_after=NOW + 3000,
    agreement_key=AGREEMENT.public,
)


def claims(**changes: Any) -> Claims:
    return replace(CLAIMS, **changes)


def psk_authenticator(psk: bytes = PSK, trust_domain: str = TRUST_DOMAIN) -> PskAuthenticator:
    return PskAuthenticator(psk, trust_domain)


def node_certificate(**changes: Any) -> NodeCertificate:
    certificate = NodeCertificate(
        TRUST_DOMAIN, "worker-1", NOW - 86_400, NOW + 86_400 * 300, ec_key("worker-1").public_key()
    )
    return replace(certificate, **changes)


def pki_authenticator(
    node: str = "worker-1", authority: str = "authority", trusted: tuple[str, ...] = (), **changes: Any
) -> PkiAuthenticator:
    """The authenticator of ``node``, its certificate signed by ``authority``; ``trusted`` are further authorities."""
    key = ec_key(node)
    certificate = node_certificate(node=node, public_key=key.public_key(), **changes)
    return PkiAuthenticator(
        key,
        issue_certificate(ec_key(authority), certificate),
        [ec_key(name).public_key() for name in (authority, *trusted)],
        certificate.trust_domain,
    )


def realistic_labels(count: int) -> PlainLabels:
    """As many labels as asked for, 35 octets of key and value each, in the shape of those that charts put on pods."""
    return PlainLabels({f"app.kubernetes.io/p-{index:03}": f"{index:06}-value" for index in range(count)})
