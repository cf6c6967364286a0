"""Making keys, requests and certificates. What travels is a request one way and a certificate the other, never a key.

The X.509 certificate of a node carries its compact certificate (trireme_py/certificate.py) in an extension of its own,
so that one PEM file is all that comes back. Behind the node's certificate the file has the authority's.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from agent.secretfile import (
    make_private_directory,
    read_public,
    read_secret,
    write_new,
    write_secret,
)
from trireme_py.assertion import check_trust_domain
from trireme_py.certificate import NodeCertificate, is_node_name, issue_certificate
from trireme_py.errors import CredentialError, InvalidToken

PSK_SIZE: Final = 32

AUTHORITY_KEY: Final = "ca.key"
AUTHORITY_CERTIFICATE: Final = "ca.crt"
NODE_KEY: Final = "node.key"
NODE_REQUEST: Final = "node.csr"
NODE_CERTIFICATE: Final = "node.crt"

COMPACT_CERTIFICATE: Final = x509.ObjectIdentifier(
    "1.2.840.113556.1.8000.2554.17520.5054.59338.19571.33194.3988359.2896283"
)
"""Extension that holds the compact certificate as a DER OCTET STRING.

The number is the GUID 447013be-e7ca-4c73-81aa-3cdb872c319b in the arc that Microsoft opened for such numbers. The arc
made for UUIDs, 2.25, has them in one piece, and Go's parser (so Kubernetes') takes no piece above 31 bits.
"""


@dataclass(frozen=True, slots=True)
class Request:
    """What a node asks for, its signature checked."""

    node: str
    key: ec.EllipticCurvePublicKey


# -- Pre-shared key ---------------------------------------------------------------------------------------------------


def create_psk(path: Path, entropy: Callable[[int], bytes]) -> None:
    """Write a fresh pre-shared key to ``path``: 32 random bytes as base64.

    :raises CredentialError: the file exists or cannot be written
    """
    write_secret(path, base64.b64encode(entropy(PSK_SIZE)) + b"\n")


# -- Authority --------------------------------------------------------------------------------------------------------


def create_authority(directory: Path, trust_domain: str, now: datetime, days: int) -> x509.Certificate:
    """Make the key and the self-signed certificate of ``trust_domain``'s authority in ``directory``.

    :raises CredentialError: the trust domain is no name, or the files exist or cannot be written
    """
    try:
        check_trust_domain(trust_domain)
    except InvalidToken as error:
        text = str(error).removeprefix(f"{error.reason.value}: ")
        raise CredentialError(f"--trust-domain {trust_domain!r}: {text}; write one such as prod.example.org") from error
    key = generate_key()
    name = _name(f"{trust_domain} authority")
    now = now.replace(microsecond=0)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_uri(f"spiffe://{trust_domain}"), critical=False)
        .sign(key, hashes.SHA256())
    )
    make_private_directory(directory)
    write_secret(directory / AUTHORITY_KEY, private_pem(key))
    write_new(directory / AUTHORITY_CERTIFICATE, certificate.public_bytes(Encoding.PEM))
    return certificate


def sign_request(directory: Path, request: Request, now: datetime, days: float) -> bytes:
    """Sign with the authority in ``directory``; return the PEM that goes back to the node.

    A certificate does not outlive its authority's.

    :raises CredentialError: the authority's files cannot be used, or the names do not fit into a compact certificate
    """
    advice = f"trireme ca init {directory} --trust-domain NAME"
    key = load_private_key(directory / AUTHORITY_KEY, advice)
    path = directory / AUTHORITY_CERTIFICATE
    authority = load_certificates(path, advice)[0]
    if public_bytes(authority_key(path, authority)) != public_bytes(key.public_key()):
        raise CredentialError(f"{path}: is not the certificate of {directory / AUTHORITY_KEY}; run: {advice}")
    trust_domain = trust_domain_of(path, authority)
    begin = now.replace(microsecond=0)
    end = min(begin + timedelta(days=days), authority.not_valid_after_utc)
    if end <= begin:
        raise CredentialError(f"{path}: ended at {authority.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; run: {advice}")
    claims = NodeCertificate(trust_domain, request.node, int(begin.timestamp()), int(end.timestamp()), request.key)
    try:
        compact = issue_certificate(key, claims)
    except ValueError as error:
        raise CredentialError(f"node {request.node}: {error}; run: trireme node request DIR --name NAME") from error
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(request.node))
        .issuer_name(authority.subject)
        .public_key(request.key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(_uri(f"spiffe://{trust_domain}/node/{request.node}"), critical=False)
        .add_extension(x509.UnrecognizedExtension(COMPACT_CERTIFICATE, _octet_string(compact)), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM) + authority.public_bytes(Encoding.PEM)


# -- Node -------------------------------------------------------------------------------------------------------------


def create_request(directory: Path, node: str) -> bool:
    """Make this node's key, if there is none, and a request for a certificate. Return whether the key is new.

    :raises CredentialError: a file cannot be read or written, or the key that is there cannot be used
    """
    if not is_node_name(node):
        raise CredentialError(
            f"node name {node!r}: lower-case letters a-z, digits, dots and dashes; run it with: --name NAME"
        )
    make_private_directory(directory)
    path = directory / NODE_KEY
    new = not path.exists()
    if new:
        key = generate_key()
        write_secret(path, private_pem(key))
    else:
        key = load_private_key(path, f"trireme node request {directory}")
    target = directory / NODE_REQUEST
    target.unlink(missing_ok=True)  # an older request holds nothing that is not in the new one
    write_new(target, request_pem(key, node))
    return new


def generate_key() -> ec.EllipticCurvePrivateKey:
    """Make a key of the only kind there is here, P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def request_pem(key: ec.EllipticCurvePrivateKey, node: str) -> bytes:
    """Return a request for a certificate of ``node`` (PKCS #10, PEM): its name, its key, nothing else."""
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(node)).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM)


def read_request(path: Path) -> Request:
    """Read a request from a file; see :func:`parse_request`."""
    return parse_request(read_public(path, "trireme node request DIR"), path)


def parse_request(pem: bytes, path: Path | str) -> Request:
    """Read a request and check that its sender holds the key. ``path``: where it comes from, for messages.

    Only the node's name and key are taken from it. What else it may ask for is not its to decide.

    :raises CredentialError: it is not a request, not for a P-256 key, or its signature is wrong
    """
    advice = "trireme node request DIR"
    try:
        request = x509.load_pem_x509_csr(pem)
        key = request.public_key()
        request_valid = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise CredentialError(f"{path}: is not a certificate request; run on the node: {advice}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CredentialError(f"{path}: asks for a key that is not P-256; run on the node: {advice}")
    if not request_valid:
        raise CredentialError(
            f"{path}: signature is wrong, the sender need not hold the key; run on the node: {advice}"
        )
    names = request.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    # Not only what will be signed: the name is shown to whoever signs, and must not be able to draw lines of its own.
    name = names[0].value if len(names) == 1 else ""
    if not isinstance(name, str) or not is_node_name(name):
        raise CredentialError(f"{path}: does not name one node in a-z, 0-9, dot and dash; run on the node: {advice}")
    return Request(name, key)


# -- Shared with credentials.py ---------------------------------------------------------------------------------------


def load_private_key(path: Path, advice: str) -> ec.EllipticCurvePrivateKey:
    """Load a P-256 key that only its owner may read.

    :raises CredentialError: it is missing, open to others, or not such a key
    """
    try:
        key = load_pem_private_key(read_secret(path, f"run: {advice}"), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # the cause may quote the file: it is left out
        raise CredentialError(f"{path}: is not an unencrypted private key in PEM; run: {advice}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CredentialError(f"{path}: is not a P-256 key; run: {advice}")
    return key


def load_certificates(path: Path, advice: str) -> list[x509.Certificate]:
    """Load every certificate of a PEM file, at least one.

    :raises CredentialError: it is missing or holds none
    """
    try:
        return x509.load_pem_x509_certificates(read_public(path, advice))
    except ValueError:
        raise CredentialError(f"{path}: holds no certificate in PEM; run: {advice}") from None


def authority_key(path: Path, certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """Return the public key of a certificate, if it is an authority's.

    :raises CredentialError: it is not, or the key is not P-256
    """
    advice = "trireme ca init DIR --trust-domain NAME"
    if not is_authority(certificate):
        raise CredentialError(f"{path}: is not an authority's certificate; run: {advice}")
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CredentialError(f"{path}: the authority's key cannot be read: {error}; run: {advice}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CredentialError(f"{path}: the authority's key is not P-256; run: {advice}")
    return key


def is_authority(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate says that its key signs certificates."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def trust_domain_of(path: Path, certificate: x509.Certificate) -> str:
    """Return the trust domain in a certificate's SPIFFE id.

    :raises CredentialError: it has none
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        uris = []
    if len(uris) != 1 or not uris[0].startswith("spiffe://"):
        raise CredentialError(f"{path}: names no trust domain; run: trireme ca init DIR --trust-domain NAME")
    return uris[0].split("/")[2]


def compact_certificate_of(path: Path, certificate: x509.Certificate) -> bytes:
    """Return the compact certificate inside a node's X.509 certificate; it is yet to be verified.

    :raises CredentialError: there is none
    """
    try:
        extension = certificate.extensions.get_extension_for_oid(COMPACT_CERTIFICATE).value
        value = extension.value if isinstance(extension, x509.UnrecognizedExtension) else b""
    except (x509.ExtensionNotFound, ValueError):
        value = b""
    for head in (2, 3):
        if len(value) > head and _octet_string(value[head:]) == value:
            return value[head:]
    raise CredentialError(f"{path}: was not signed for trireme-py; run where the authority is: trireme ca sign REQUEST")


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return ``SHA256:…`` over the key (SubjectPublicKeyInfo), to be read aloud or compared by eye."""
    return "SHA256:" + base64.b64encode(sha256(public_bytes(key)).digest()).decode().rstrip("=")


def public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a public key as SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def utc(seconds: int) -> datetime:
    """Return seconds since the Unix epoch as a date for people."""
    return datetime.fromtimestamp(seconds, UTC)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PKCS #8 in PEM, for a file that only its owner may read."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(common_name: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    except ValueError:
        raise CredentialError(f"{common_name!r}: a name in a certificate has 1 to 64 characters") from None


def _uri(uri: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _octet_string(data: bytes) -> bytes:
    """Encode a DER OCTET STRING of fewer than 256 bytes (X.690, section 8.7)."""
    return (b"\x04" + bytes([len(data)]) if len(data) < 128 else b"\x04\x81" + bytes([len(data)])) + data
