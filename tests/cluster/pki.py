"""The cluster's keys: two authorities, a certificate for each program, a key for service accounts."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.cluster.layout import (
    ADMIN_KUBECONFIG,
    API_PORT,
    API_SERVICE,
    API_URL,
    CLUSTER_DOMAIN,
    CONTROL,
    NODES,
    PKI,
)

_LIFETIME = timedelta(days=30)
_EARLIER = timedelta(minutes=5)
_CONTROL_PLANE_USERS = ("kube-controller-manager", "kube-scheduler", "kube-proxy")


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority; its certificate is ``PKI/NAME.crt``."""

    name: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def certificate_file(name: str) -> Path:
    return PKI / f"{name}.crt"


def key_file(name: str) -> Path:
    return PKI / f"{name}.key"


def kubeconfig(name: str) -> Path:
    """The kubeconfig of one program of the cluster."""
    return PKI / f"{name}.kubeconfig"


def _private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _write_key(name: str) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    form = serialization.PrivateFormat.PKCS8
    _private(key_file(name), key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return key


def _subject(name: str, groups: Sequence[str] = ()) -> x509.Name:
    organisations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organisations, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - _EARLIER).not_valid_after(now + _LIFETIME)


def _authority(name: str) -> Authority:
    key = _write_key(name)
    subject = _subject(f"trireme test cluster {name}")
    builder = _builder(subject, key).issuer_name(subject)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    certificate = builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())
    certificate_file(name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return Authority(name, key, certificate)


def _issue(authority: Authority, name: str, user: str, groups: Sequence[str] = (), served: Sequence[str] = ()) -> None:
    """Write a key and a certificate; it is a client's, and a server's too if it has names or addresses to serve."""
    key = _write_key(name)
    builder = _builder(_subject(user, groups), key).issuer_name(authority.certificate.subject)
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH] + [ExtendedKeyUsageOID.SERVER_AUTH] * bool(served)
    builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if served:
        names = x509.SubjectAlternativeName([_general_name(name) for name in served])
        builder = builder.add_extension(names, critical=False)
    certificate = builder.sign(authority.key, hashes.SHA256())
    certificate_file(name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _general_name(text: str) -> x509.GeneralName:
    try:
        address: IPv4Address | IPv6Address = ip_address(text)
    except ValueError:
        return x509.DNSName(text)
    return x509.IPAddress(address)


def _write_kubeconfig(path: Path, name: str, server: str) -> None:
    """Write a kubeconfig that needs no other file. Its form is YAML's; JSON is YAML."""

    def data(file: Path) -> str:
        return base64.b64encode(file.read_bytes()).decode()

    cluster = {"server": server, "certificate-authority-data": data(certificate_file("ca"))}
    user = {"client-certificate-data": data(certificate_file(name)), "client-key-data": data(key_file(name))}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "trireme", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": "trireme", "context": {"cluster": "trireme", "user": name}}],
        "current-context": "trireme",
    }
    _private(path, json.dumps(content, indent=2).encode())


def make() -> None:
    """Make every key, certificate and kubeconfig of a new cluster."""
    PKI.mkdir(mode=0o700, parents=True)
    authority = _authority("ca")
    service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{CLUSTER_DOMAIN}"]
    addresses = [str(address) for address in (*CONTROL.addresses, *API_SERVICE)]
    _issue(
        authority, "kube-apiserver", "kube-apiserver", served=[*service, "localhost", "127.0.0.1", "::1", *addresses]
    )
    _issue(authority, "kubelet-client", "kube-apiserver-kubelet-client", ["system:masters"])
    _issue(_authority("front-proxy-ca"), "front-proxy-client", "front-proxy-client")
    _service_account_key()
    _issue(authority, "admin", "admin", ["system:masters"])
    _write_kubeconfig(ADMIN_KUBECONFIG, "admin", f"https://127.0.0.1:{API_PORT}")
    for user in _CONTROL_PLANE_USERS:
        _issue(authority, user, f"system:{user}")
        _write_kubeconfig(kubeconfig(user), user, API_URL)
    for node in NODES:
        served = [node.name, *(str(address) for address in node.addresses)]
        _issue(authority, node.name, f"system:node:{node.name}", ["system:nodes"], served)
        _write_kubeconfig(kubeconfig(node.name), node.name, API_URL)


def _service_account_key() -> None:
    public = _write_key("service-accounts").public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (PKI / "service-accounts.pub").write_bytes(public.public_bytes(serialization.Encoding.PEM, form))
