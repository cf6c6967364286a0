"""The signer: certificates for nodes, by the CSR API, for the agent that runs on the very node and for nobody else.

Who asks is not what the request says but what the API server wrote beside it when it was made: the user of the token,
and, for a token bound to a pod, that pod and its node (``spec.extra``; Kubernetes 1.30 and later). A requester can set
neither. So a stolen token of one node's agent is worth one node's name.

Two signers may run at once: each answer is written against the version of the object that was read, so one of them
gets a conflict and leaves it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography import x509

from agent.enroll import (
    AUTHORITY_CERTIFICATE,
    Request,
    fingerprint,
    load_certificates,
    parse_request,
    sign_request,
    trust_domain_of,
)
from agent.kubernetes.calls import CONFLICT, NOT_FOUND, Api, ApiRefused, call
from agent.kubernetes.csr import LIFETIME_S, REQUESTS, SIGNER_NAME, USAGES, Condition, certified_name
from agent.logs import fields
from trireme_py.errors import CredentialError

log = logging.getLogger(__name__)

NODE_NAME: Final = "authentication.kubernetes.io/node-name"
POD_NAME: Final = "authentication.kubernetes.io/pod-name"
POD_UID: Final = "authentication.kubernetes.io/pod-uid"
SKEW: Final = timedelta(minutes=5)
"""A certificate begins this much before it is made: a node whose clock is behind must be able to use it at once."""
MAX_SIGNED: Final = 1024
"""Requests remembered as signed: the watch is at most so much behind."""
_SHORTEST_S: Final = 600
"""What the API server takes as expirationSeconds."""


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    signer_name: str
    request: bytes
    """PEM; base64 in JSON."""
    usages: tuple[str, ...] = ()
    username: str = ""
    extra: Mapping[str, tuple[str, ...]] = {}
    expiration_seconds: int = LIFETIME_S


class _Status(msgspec.Struct, frozen=True):
    conditions: tuple[Condition, ...] = ()
    certificate: bytes = b""


class _Metadata(msgspec.Struct, frozen=True):
    name: str
    uid: str


class SigningRequest(msgspec.Struct, frozen=True):
    """What matters of a CertificateSigningRequest (certificates.k8s.io/v1)."""

    metadata: _Metadata
    spec: _Spec
    status: _Status = _Status()

    def has(self, *conditions: str) -> bool:
        return any(condition.type in conditions for condition in self.status.conditions)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not signed: a condition's reason and message."""

    reason: str
    message: str


def decide(asked: SigningRequest, agent: str, trust_domain: str) -> Request | Refusal:
    """Return what may be signed, or why nothing may.

    ``agent``: the user name of the agents' service account, ``system:serviceaccount:<namespace>:<name>``.
    """
    spec = asked.spec
    if spec.username != agent:
        return Refusal("NotTheAgent", f"asked by {spec.username!r}; certificates of nodes are for {agent!r}")
    if any(len(spec.extra.get(key, ())) != 1 for key in (NODE_NAME, POD_NAME, POD_UID)):
        text = "the requester's token is not bound to a pod on a node (spec.extra); Kubernetes 1.30 or later is needed"
        return Refusal("NoNode", text)
    if sorted(spec.usages) != sorted(USAGES):
        return Refusal("WrongUsages", f"asks for {', '.join(spec.usages)}; signed is: {', '.join(USAGES)}")
    try:
        request = parse_request(spec.request, "spec.request")
        extensions = len(x509.load_pem_x509_csr(spec.request).extensions)
    except (CredentialError, ValueError) as error:
        return Refusal("BadRequest", str(error))
    if extensions:
        return Refusal("BadRequest", "spec.request: asks for extensions; a node has its common name and nothing else")
    node = spec.extra[NODE_NAME][0]
    if request.node != certified_name(node, trust_domain):
        return Refusal("OtherNode", f"asks for node {request.node!r}, and was asked from node {node!r}")
    return request


class Signer:
    """Answers requests, one at a time, with the authority whose files are in a folder (``trireme ca init``).

    The files are read for each request: an authority that was replaced is in use with the next one.
    """

    def __init__(self, api: Api, directory: Path, agent: str, clock: Callable[[], float]) -> None:
        """``agent``: user name of the agents' service account. ``clock``: seconds since the Unix epoch."""
        self._api = api
        self._directory = directory
        self._agent = agent
        self._clock = clock
        self._signed: OrderedDict[str, None] = OrderedDict()

    def trust_domain(self) -> str:
        """Return the trust domain of the authority. Raises CredentialError if its certificate cannot be used."""
        path = self._directory / AUTHORITY_CERTIFICATE
        advice = f"trireme ca init {self._directory} --trust-domain NAME"
        return trust_domain_of(path, load_certificates(path, advice)[0])

    def answer(self, raw: Mapping[str, Any]) -> None:
        """Answer a CertificateSigningRequest, if it is for this signer and still open.

        :raises CredentialError: the authority's files cannot be used; the request stays open
        :raises ApiRefused: the API server does not take the answer
        :raises OSError: the API server is not there
        """
        asked = msgspec.convert(raw, SigningRequest)
        if asked.spec.signer_name != SIGNER_NAME or asked.status.certificate or asked.has("Denied", "Failed"):
            return
        if asked.metadata.uid in self._signed:
            return  # the watch tells of the approval when the certificate is there already
        decision = decide(asked, self._agent, self.trust_domain())
        try:
            if isinstance(decision, Refusal):
                self._refuse(raw, asked, decision)
            else:
                self._sign(raw, asked, decision)
        except ApiRefused as error:
            if error.status not in (CONFLICT, NOT_FOUND):
                raise
            log.info("answered by somebody else", extra=fields(request=asked.metadata.name))

    def _refuse(self, raw: Mapping[str, Any], asked: SigningRequest, refusal: Refusal) -> None:
        """Deny it; one that somebody approved without looking cannot be denied any more, and fails."""
        kind, subresource = ("Failed", "status") if asked.has("Approved") else ("Denied", "approval")
        self._put(subresource, _with_condition(raw, kind, refusal.reason, refusal.message))
        log.warning(
            "request refused",
            extra=fields(request=asked.metadata.name, reason=refusal.reason, problem=refusal.message),
        )

    def _sign(self, raw: Mapping[str, Any], asked: SigningRequest, request: Request) -> None:
        # Signed first: what cannot be signed must not stand there approved.
        lifetime = timedelta(seconds=min(max(asked.spec.expiration_seconds, _SHORTEST_S), LIFETIME_S))
        begin = datetime.fromtimestamp(self._clock(), UTC) - SKEW
        chain = sign_request(self._directory, request, begin, (lifetime + SKEW) / timedelta(days=1))
        if not asked.has("Approved"):
            text = f"asked by the agent on node {asked.spec.extra[NODE_NAME][0]} itself"
            raw = self._put("approval", _with_condition(raw, "Approved", "NodeAgent", text))
        self._put("status", {**raw, "status": {**raw.get("status", {}), "certificate": chain}})
        self._signed[asked.metadata.uid] = None
        if len(self._signed) > MAX_SIGNED:
            self._signed.popitem(last=False)
        log.info(
            "certificate signed",
            extra=fields(request=asked.metadata.name, node=request.node, key=fingerprint(request.key)),
        )

    def _put(self, subresource: str, raw: Mapping[str, Any]) -> dict[str, Any]:
        # In a list the items do not say what they are.
        raw = {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", **raw}
        path = f"{REQUESTS}/{raw['metadata']['name']}/{subresource}"
        return call(self._api, "PUT", path, dict[str, Any], raw)


def _with_condition(raw: Mapping[str, Any], kind: str, reason: str, message: str) -> dict[str, Any]:
    status = raw.get("status", {})
    condition = {"type": kind, "status": "True", "reason": reason, "message": message}
    return {**raw, "status": {**status, "conditions": [*status.get("conditions", ()), condition]}}
