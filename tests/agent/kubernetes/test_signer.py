"""The signer's decisions: a table of who may have what, and what is written back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from agent.enroll import (
    Request,
    compact_certificate_of,
    create_authority,
    generate_key,
    request_pem,
)
from agent.kubernetes.calls import ApiRefused, call
from agent.kubernetes.csr import REQUESTS, certified_name, signing_request
from agent.kubernetes.signer import NODE_NAME, POD_NAME, POD_UID, Refusal, Signer, SigningRequest, decide
from tests.harness.api_objects import Object, Objects
from trireme_py.certificate import NodeCertificate, issue_certificate
from trireme_py.errors import CredentialError

TRUST_DOMAIN = "cluster.local"
AGENT = "system:serviceaccount:trireme-system:trireme-agent"
NOW = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
PEM = request_pem(generate_key(), "worker-1")
FROM_WORKER_1 = {NODE_NAME: ["worker-1"], POD_NAME: ["trireme-agent-x7k2p"], POD_UID: ["0d5f"]}


def asked(pem: bytes = PEM, username: str = AGENT, extra: Any = FROM_WORKER_1, **spec: Any) -> Object:
    """A request as the API server keeps it."""
    made = msgspec.to_builtins(signing_request("worker-1", pem))
    made["metadata"] = {"name": "trireme-worker-1-abcde", "uid": "0", "resourceVersion": "1"}
    made["spec"].update({"username": username, "extra": extra, **spec})
    assert isinstance(made, dict)
    return made


def decided(raw: Object) -> Request | Refusal:
    return decide(msgspec.convert(raw, SigningRequest), AGENT, TRUST_DOMAIN)


def pem_of(builder: x509.CertificateSigningRequestBuilder, key: Any = None) -> bytes:
    return builder.sign(key or generate_key(), hashes.SHA256()).public_bytes(Encoding.PEM)


def named(*names: str) -> x509.CertificateSigningRequestBuilder:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name) for name in names])
    return x509.CertificateSigningRequestBuilder().subject_name(subject)


def with_names(*names: str) -> bytes:
    return pem_of(named("worker-1").add_extension(x509.SubjectAlternativeName(list(map(x509.DNSName, names))), False))


def without(key: str) -> dict[str, list[str]]:
    return {name: values for name, values in FROM_WORKER_1.items() if name != key}


# -- Decisions --------------------------------------------------------------------------------------------------------


def test_the_agent_on_the_node_itself_gets_what_it_asks_for() -> None:
    decision = decided(asked())
    assert isinstance(decision, Request)
    assert decision.node == "worker-1"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(asked(username="system:node:worker-1"), "NotTheAgent", id="kubelet"),
        pytest.param(asked(username="kubernetes-admin"), "NotTheAgent", id="administrator"),
        pytest.param(asked(username=""), "NotTheAgent", id="nobody"),
        pytest.param(asked(username=AGENT + "2"), "NotTheAgent", id="longer name"),
        pytest.param(
            asked(username="system:serviceaccount:default:trireme-agent"), "NotTheAgent", id="another namespace"
        ),
        pytest.param(asked(extra={}), "NoNode", id="a token bound to nothing"),
        pytest.param(asked(extra=without(NODE_NAME)), "NoNode", id="a token without a node"),
        pytest.param(asked(extra=without(POD_NAME)), "NoNode", id="a token bound to a node alone"),
        pytest.param(asked(extra=without(POD_UID)), "NoNode", id="a token without a pod's uid"),
        pytest.param(asked(extra={**FROM_WORKER_1, NODE_NAME: []}), "NoNode", id="an empty list of nodes"),
        pytest.param(
            asked(extra={**FROM_WORKER_1, NODE_NAME: ["worker-1", "worker-2"]}), "NoNode", id="a list of two nodes"
        ),
        pytest.param(asked(extra={**FROM_WORKER_1, NODE_NAME: ["worker-2"]}), "OtherNode", id="from another node"),
        pytest.param(asked(extra={**FROM_WORKER_1, NODE_NAME: ["worker-1.example"]}), "OtherNode", id="longer node"),
        pytest.param(asked(request_pem(generate_key(), "worker-2")), "OtherNode", id="for another node"),
        pytest.param(asked(pem_of(named("worker-1", "worker-1"))), "BadRequest", id="two names"),
        pytest.param(asked(pem_of(named())), "BadRequest", id="no name"),
        pytest.param(asked(pem_of(named("Worker-1"))), "BadRequest", id="no node's name"),
        pytest.param(asked(with_names("worker-1")), "BadRequest", id="an alternative name"),
        pytest.param(
            asked(pem_of(named("worker-1").add_extension(x509.BasicConstraints(True, 0), True))),
            "BadRequest",
            id="an authority",
        ),
        pytest.param(
            asked(pem_of(named("worker-1"), ec.generate_private_key(ec.SECP384R1()))), "BadRequest", id="another curve"
        ),
        pytest.param(asked(b"nothing"), "BadRequest", id="no request"),
        pytest.param(asked(usages=["digital signature", "server auth"]), "WrongUsages", id="one usage too many"),
        pytest.param(asked(usages=["cert sign"]), "WrongUsages", id="signing certificates"),
        pytest.param(asked(usages=[]), "WrongUsages", id="no usage"),
    ],
)
def test_everybody_else_is_refused(raw: Object, reason: str) -> None:
    decision = decided(raw)
    assert isinstance(decision, Refusal)
    assert decision.reason == reason
    assert decision.message


def test_a_request_that_its_sender_did_not_sign() -> None:
    """The API server checks it, too; we do not rely on that."""
    broken = x509.load_pem_x509_csr(PEM).public_bytes(Encoding.DER)[:-1] + b"\x00"
    pem = b"-----BEGIN CERTIFICATE REQUEST-----\n" + msgspec.json.encode(broken).strip(b'"') + b"\n"
    decision = decided(asked(pem + b"-----END CERTIFICATE REQUEST-----\n"))
    assert isinstance(decision, Refusal)
    assert decision.reason == "BadRequest"


@pytest.mark.parametrize("trust_domain", ["a", "cluster.local", "a" * 32])
@pytest.mark.parametrize("length", [1, 23, 24, 43, 55, 64, 253])
def test_every_node_s_name_fits(length: int, trust_domain: str) -> None:
    node = ("node-1." * 40)[:length].rstrip(".-")
    name = certified_name(node, trust_domain)
    assert name == node or (len(name) < len(node) and name != certified_name(node + "a", trust_domain))
    issue_certificate(generate_key(), NodeCertificate(trust_domain, name, 1, 2, generate_key().public_key()))


def test_a_trust_domain_that_leaves_no_room() -> None:
    with pytest.raises(CredentialError, match=r"trust domain a+: has 33 characters .* spec\.trustDomain"):
        certified_name("worker-1", "a" * 33)


# -- Answers ----------------------------------------------------------------------------------------------------------


class Site:
    """A signer, its authority, and the API server's objects."""

    def __init__(self, folder: Path) -> None:
        self.directory = folder / "ca"
        self.authority = create_authority(self.directory, TRUST_DOMAIN, NOW - timedelta(days=1), days=3650)
        self.api = Objects(requester=(AGENT, dict(FROM_WORKER_1)))
        self.signer = Signer(self.api, self.directory, AGENT, NOW.timestamp)

    def ask(self, **changes: Any) -> Object:
        """Return a new request, as a watch would deliver it."""
        body = msgspec.to_builtins(signing_request("worker-1", PEM))
        body["spec"].update(changes)
        return call(self.api, "POST", REQUESTS, dict[str, Any], body)

    def now(self, raw: Object) -> Object:
        return self.api.objects[f"{REQUESTS}/{raw['metadata']['name']}"]

    def conditions(self, raw: Object) -> list[tuple[str, str]]:
        return [(one["type"], one["reason"]) for one in self.now(raw)["status"].get("conditions", ())]

    def leaf(self, raw: Object) -> x509.Certificate:
        pem = msgspec.convert(self.now(raw)["status"]["certificate"], bytes)
        leaf, authority = x509.load_pem_x509_certificates(pem)
        assert authority == self.authority
        return leaf


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_request_is_approved_and_signed(site: Site) -> None:
    raw = site.ask()
    site.signer.answer(raw)
    assert site.conditions(raw) == [("Approved", "NodeAgent")]
    leaf = site.leaf(raw)
    leaf.verify_directly_issued_by(site.authority)
    assert leaf.subject.rfc4514_string() == "CN=worker-1"
    assert compact_certificate_of(Path("leaf"), leaf)


@pytest.mark.parametrize(
    ("seconds", "days"), [(None, 7), (86_400, 1), (600, 600 / 86_400), (365 * 86_400, 7), (1, 600 / 86_400)]
)
def test_a_certificate_lasts_as_long_as_asked_and_at_most_a_week(site: Site, seconds: int | None, days: float) -> None:
    raw = site.ask(**({} if seconds is None else {"expirationSeconds": seconds}))
    site.signer.answer(raw)
    assert site.leaf(raw).not_valid_after_utc == NOW + timedelta(days=days)
    assert site.leaf(raw).not_valid_before_utc == NOW - timedelta(minutes=5)


def test_a_request_is_denied_and_stays_so(site: Site) -> None:
    site.api.requester = ("kubernetes-admin", {})
    raw = site.ask()
    site.signer.answer(raw)
    assert site.conditions(raw) == [("Denied", "NotTheAgent")]
    before = len(site.api.calls)
    site.signer.answer(site.now(raw))
    assert len(site.api.calls) == before


def test_what_an_administrator_approved_is_looked_at_all_the_same(site: Site) -> None:
    approved = {"conditions": [{"type": "Approved", "status": "True", "reason": "KubectlApprove"}]}
    good = site.ask()
    site.now(good)["status"] = approved
    site.signer.answer(site.now(good))
    assert site.conditions(good) == [("Approved", "KubectlApprove")]
    assert site.leaf(good)

    site.api.requester = (AGENT, {**FROM_WORKER_1, NODE_NAME: ["worker-2"]})
    bad = site.ask()
    site.now(bad)["status"] = approved
    site.signer.answer(site.now(bad))
    assert sorted(site.conditions(bad)) == [("Approved", "KubectlApprove"), ("Failed", "OtherNode")]
    assert "certificate" not in site.now(bad)["status"]


@pytest.mark.parametrize("signer_name", ["kubernetes.io/kube-apiserver-client", "trireme.io/other"])
def test_requests_for_other_signers_are_left_alone(site: Site, signer_name: str) -> None:
    raw = site.ask(signerName=signer_name)
    before = len(site.api.calls)
    site.signer.answer(raw)
    assert len(site.api.calls) == before


def test_two_signers_give_one_answer(site: Site) -> None:
    """Both read the request before either wrote."""
    raw = site.ask()
    site.signer.answer(raw)
    first = site.now(raw)["status"]
    Signer(site.api, site.directory, AGENT, NOW.timestamp).answer(raw)
    assert site.now(raw)["status"] == first


def test_news_of_the_approval_are_not_answered_again(site: Site) -> None:
    """The watch delivers them when the certificate is there already."""
    raw = site.ask()
    approvals: list[Object] = []
    asked = site.api.request

    def watched(method: str, path: str, *arguments: Any, **more: Any) -> tuple[int, bytes]:
        answer = asked(method, path, *arguments, **more)
        if path.endswith("/approval"):
            approvals.append(msgspec.json.decode(answer[1]))
        return answer

    site.api.request = watched  # type: ignore[method-assign]
    site.signer.answer(raw)
    before = len(site.api.calls)
    site.signer.answer(approvals[0])
    assert len(site.api.calls) == before
    another = site.ask()
    site.signer.answer(another)
    assert site.leaf(another)


def test_a_request_that_is_gone_is_no_error(site: Site) -> None:
    raw = site.ask()
    site.api.objects.clear()
    site.signer.answer(raw)


def test_what_rbac_does_not_grant_is_an_error(site: Site) -> None:
    raw = site.ask()
    site.api.denied = frozenset({"PUT"})
    with pytest.raises(ApiRefused, match=r"PUT .*/approval: 403 PUT is forbidden"):
        site.signer.answer(raw)


def test_an_authority_that_cannot_be_used_leaves_the_request_open(site: Site) -> None:
    key = site.directory / "ca.key"
    key.rename(key.with_suffix(".away"))
    raw = site.ask()
    with pytest.raises(CredentialError, match=r"ca\.key: no such file"):
        site.signer.answer(raw)
    assert site.conditions(raw) == []
    key.with_suffix(".away").rename(key)
    site.signer.answer(site.now(raw))
    assert site.leaf(raw)


def test_an_authority_that_was_replaced_signs_the_next_request(site: Site) -> None:
    site.signer.answer(site.ask())
    for path in site.directory.iterdir():
        path.unlink()
    site.authority = create_authority(site.directory, TRUST_DOMAIN, NOW - timedelta(days=1), days=3650)
    raw = site.ask()
    site.signer.answer(raw)
    site.leaf(raw).verify_directly_issued_by(site.authority)
