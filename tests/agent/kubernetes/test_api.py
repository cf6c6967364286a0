"""Connections to the API server: certificates, tokens that are replaced, kubeconfig files. TLS is real."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent.kubernetes.api import Access, ApiServer, in_cluster
from agent.kubernetes.kubeconfig import read
from tests.harness.api_stand_in import ApiStandIn
from trireme_py.errors import ConfigError


@dataclass(frozen=True)
class Pair:
    certificate: bytes
    key: bytes


def make_pair(*names: str) -> Pair:
    """Make a certificate that vouches for itself and for ``names``."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    alternatives = [x509.DNSName(one) if one[0].isalpha() else x509.IPAddress(ip_address(one)) for one in names]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
        .not_valid_after(datetime.now(UTC) + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Pair(certificate.public_bytes(Encoding.PEM), private)


@dataclass
class Secured:
    api: ApiStandIn
    folder: Path
    server: Pair
    client: Pair

    def access(self, **other: Any) -> Access:
        fields = {"authority": self.server.certificate, "certificate": self.client.certificate, "key": self.client.key}
        return replace(Access("127.0.0.1", self.api.port), **{**fields, **other})


@pytest.fixture(scope="module")
def pairs() -> tuple[Pair, Pair]:
    return make_pair("127.0.0.1", "api.example.org"), make_pair("agent")


@pytest.fixture
def secured(tmp_path: Path, pairs: tuple[Pair, Pair]) -> Iterator[Secured]:
    server, client = pairs
    for name, data in (("server.crt", server.certificate), ("server.key", server.key)):
        (tmp_path / name).write_bytes(data)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    context.load_verify_locations(cadata=client.certificate.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    with ApiStandIn("pods", tls=context) as api:
        yield Secured(api, tmp_path, server, client)


def ask(access: Access) -> int:
    return ApiServer(access).request("GET", "/api/v1/pods")[0]


def test_a_certificate_from_memory_shows_who_we_are_and_leaves_no_file(secured: Secured) -> None:
    assert ask(secured.access()) == 200
    with pytest.raises(OSError, match=r"certificate required|bad certificate|handshake|reset|EOF"):
        ask(secured.access(certificate=None, key=None))


def test_a_server_that_nobody_vouches_for_is_not_spoken_to(secured: Secured) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(secured.access(authority=make_pair("127.0.0.1").certificate))
    assert not secured.api.requests


def test_a_server_is_believed_under_the_name_that_is_configured(secured: Secured) -> None:
    assert ask(secured.access(server_name="api.example.org")) == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(secured.access(server_name="other.example.org"))


def test_a_token_that_was_replaced_is_read_again(secured: Secured) -> None:
    token = secured.folder / "token"
    server = ApiServer(secured.access(token=token))
    for text in ("first", "second"):
        token.write_text(text + "\n")
        secured.api.token = text
        assert server.request("GET", "/api/v1/pods")[0] == 200
    token.write_text("stale")
    assert server.request("GET", "/api/v1/pods")[0] == 401


def test_an_authority_that_was_replaced_is_read_again(secured: Secured) -> None:
    authority = secured.folder / "ca.crt"
    authority.write_bytes(make_pair("127.0.0.1").certificate)
    server = ApiServer(secured.access(authority=authority))
    with pytest.raises(ssl.SSLCertVerificationError):
        server.request("GET", "/api/v1/pods")
    fresh = authority.with_suffix(".new")
    fresh.write_bytes(secured.server.certificate)
    fresh.rename(authority)
    assert server.request("GET", "/api/v1/pods")[0] == 200


def test_in_a_pod_the_service_account_is_used(tmp_path: Path) -> None:
    for name in ("token", "ca.crt"):
        (tmp_path / name).write_text("x")
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    access = in_cluster(environment, tmp_path)
    assert (access.address, access.token) == ("https://[fd00::1]:443", tmp_path / "token")
    with pytest.raises(ConfigError, match=r"KUBERNETES_SERVICE_HOST.*spec\.kubernetes\.kubeconfig"):
        in_cluster({}, tmp_path)
    (tmp_path / "token").unlink()
    with pytest.raises(ConfigError, match="token: is not there; set automountServiceAccountToken"):
        in_cluster(environment, tmp_path)


def kubeconfig(folder: Path, user: dict[str, Any], server: str = "https://10.0.0.1:6443", **cluster: Any) -> Path:
    path = folder / "kube.yaml"
    data = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(data))
    return path


def test_a_kubeconfig_with_certificates_inside_or_beside(tmp_path: Path, secured: Secured) -> None:
    inside = {
        f"client-{name}-data": base64.b64encode(data).decode()
        for name, data in (("certificate", secured.client.certificate), ("key", secured.client.key))
    }
    url = f"https://127.0.0.1:{secured.api.port}"
    authority = {"certificate-authority": "server.crt"}
    assert ask(read(kubeconfig(tmp_path, inside, url, **authority))) == 200
    (tmp_path / "agent.crt").write_bytes(secured.client.certificate)
    (tmp_path / "agent.key").write_bytes(secured.client.key)
    beside = {"client-certificate": "agent.crt", "client-key": "agent.key"}
    assert ask(read(kubeconfig(tmp_path, beside, url, **authority))) == 200


def test_a_kubeconfig_with_a_token_or_a_file_of_one(tmp_path: Path) -> None:
    assert read(kubeconfig(tmp_path, {"token": "secret"})).token == "secret"
    access = read(kubeconfig(tmp_path, {"tokenFile": "token"}, "https://api.example.org"))
    assert (access.token, access.port) == (tmp_path / "token", 443)
    assert "secret" not in repr(read(kubeconfig(tmp_path, {"token": "secret"})))


@pytest.mark.parametrize(
    ("user", "server", "told"),
    [
        ({"exec": {"command": "aws"}}, "https://a:1", r"users\[u\]\.exec: is not supported; give the agent a client-"),
        ({"password": "x"}, "https://a:1", r"users\[u\]\.password: is not supported"),
        ({"token": "x"}, "http://a:1", r"users\[u\]: a token is not sent to a:1 without TLS; write https://"),
        ({"client-key": "k"}, "https://a:1", r"client-certificate and client-key belong together; name both"),
        ({"client-key-data": "???"}, "https://a:1", r"client-key-data: is not base64; name a file instead"),
        ({}, "a:1", r"server: 'a:1' is not the URL of an API server, such as https://"),
        ({}, "https://a:port", r"server: 'https://a:port': "),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_is_refused_by_its_field(
    tmp_path: Path, user: dict[str, Any], server: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        read(kubeconfig(tmp_path, user, server))
    assert str(tmp_path / "kube.yaml") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is not one kubeconfig document"),
        ("{", r"kube\.yaml:2: not YAML"),
        ("kind: Config", "current-context: missing; see: kubectl config view"),
        ("{current-context: x, contexts: 7}", "contexts: none is called 'x'; see: kubectl config view"),
    ],
)
def test_a_file_that_is_no_kubeconfig_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "kube.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read(path)
    with pytest.raises(ConfigError, match=r"spec\.kubernetes\.kubeconfig .*: No such file or directory"):
        read(tmp_path / "missing.yaml")
