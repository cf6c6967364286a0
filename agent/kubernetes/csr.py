"""CertificateSigningRequests of nodes: what they look like, and how a node's agent gets its certificate by one.

The node's key is made here and stays here, in the runtime directory, beside the certificate and in the same file: they
are replaced together. What comes back in ``status.certificate`` is what ``trireme ca sign`` writes (agent/enroll.py):
the node's X.509 certificate with the compact one inside.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from agent.credentials import NodeCredentials, Replaceable, authenticator_of, load_authorities, load_node
from agent.enroll import fingerprint, generate_key, private_pem, request_pem, utc
from agent.kubernetes.calls import NOT_FOUND, Api, ApiRefused, Backoff, call, shortened
from agent.logs import fields
from agent.runtime import NODE_KEYS
from agent.secretfile import read_public
from trireme_py.errors import CredentialError, TriremeError

log = logging.getLogger(__name__)

REQUESTS: Final = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
SIGNER_NAME: Final = "trireme.io/node"
USAGES: Final = ("digital signature",)
"""Certificates of nodes sign assertions and do nothing else."""
LIFETIME_S: Final = 7 * 86_400
"""Of a certificate. Renewed after two thirds, so the signer may be away for a weekend; there is no revocation, so what
a stolen node key is good for ends within a week."""
RENEW_AT: Final = 2 / 3
RENEW_SPREAD: Final = 1 / 20
"""Of the life: nodes that were installed in one minute do not renew in one minute."""
LOOK_S: Final = 10.0
"""How often the authorities' file is read: it is a ConfigMap that the kubelet swaps."""
ANSWER_S: Final = (1.0, 15.0)
"""First and longest wait for the signer's answer."""
AGAIN_S: Final = (15.0, 900.0)
"""First and longest wait after a request that came to nothing."""
_NAMES: Final = 56
"""Characters of a compact certificate for node and trust domain together (docs/identity.md)."""
_SHORTEST: Final = 24
"""A name that had to be cut keeps seven characters before its hash."""


class Condition(msgspec.Struct, frozen=True, rename="camel"):
    type: str
    reason: str = ""
    message: str = ""


class _Status(msgspec.Struct, frozen=True):
    conditions: tuple[Condition, ...] = ()
    certificate: bytes = b""
    """PEM; base64 in JSON."""


class _Metadata(msgspec.Struct, frozen=True):
    name: str


class Asked(msgspec.Struct, frozen=True):
    """A CertificateSigningRequest as its requester sees it."""

    metadata: _Metadata
    status: _Status = _Status()


def certified_name(node: str, trust_domain: str) -> str:
    """Return the name that a node's certificate has: the node's own, or its beginning and a hash if it is too long.

    :raises CredentialError: the trust domain leaves no room for one
    """
    longest = _NAMES - len(trust_domain)
    if longest < _SHORTEST:
        raise CredentialError(
            f"trust domain {trust_domain}: has {len(trust_domain)} characters where node certificates leave room for "
            f"{_NAMES - _SHORTEST}; set spec.trustDomain to a shorter one on every node"
        )
    return shortened(node, longest)


def signing_request(name: str, pem: bytes) -> dict[str, object]:
    """Return the object that asks for a certificate. ``name``: the certified name of the node."""
    return {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"generateName": f"trireme-{name}-"},
        "spec": {"request": pem, "signerName": SIGNER_NAME, "expirationSeconds": LIFETIME_S, "usages": USAGES},
    }


class NodeKeys:
    """This node's key and certificate: kept, asked for, renewed, and put into use.

    ``step`` is called by one thread at a time; :attr:`authenticator` is used by all.
    """

    def __init__(
        self,
        api: Api,
        node: str,
        trust_domain: str,
        authority: Path,
        directory: Path,
        *,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """``authority``: the file of the authorities to trust. ``directory``: where the key is kept, for root alone."""
        self._api = api
        self._name = certified_name(node, trust_domain)
        self._trust_domain = trust_domain
        self._authority = authority
        self._path = directory / NODE_KEYS
        self._clock = clock
        self._draw = draw
        self._answer = Backoff(*ANSWER_S, draw)
        self._again = Backoff(*AGAIN_S, draw)
        self._authorities = b""
        self._pending: tuple[ec.EllipticCurvePrivateKey, str] | None = None
        self._said = False
        self._ask_at = 0.0
        self.not_after = 0.0
        """End of the certificate in use, seconds since the Unix epoch; 0 without one."""
        self.changes = 0
        """How often another certificate came into use. From any thread."""
        self.problem = ""
        """None: what it lacks, it asks for."""
        self._authenticator: Replaceable | None = None
        self.on_replaced: Callable[[], None] = lambda: None
        """Called, on the thread of ``step``, when other keys or authorities are in use."""

    @property
    def authenticator(self) -> Replaceable:
        """What vouches for this node's pods. Only after :meth:`wait` returned."""
        assert self._authenticator is not None, "asked before there was a certificate"
        return self._authenticator

    def wait(self, stop: threading.Event) -> None:
        """Return when there is a certificate. Raises CredentialError if ``stop`` is set before."""
        while self._authenticator is None:
            wait_s = self.step()
            if self._authenticator is None and stop.wait(wait_s):
                raise CredentialError(f"stopped while node {self._name} had no certificate yet; see: kubectl get csr")

    def step(self) -> float:
        """Do what is due; return the seconds until the next step."""
        try:
            self._look_at_authorities()
            if self._pending is not None:
                return self._collect(*self._pending)
            if self._clock() >= self._ask_at:
                return self._ask()
        except (OSError, TriremeError) as error:
            self._pending = None
            wait_s = self._again.failed()
            self._ask_at = self._clock() + wait_s
            self._say_failure(error, wait_s)
        return LOOK_S

    def _say_failure(self, error: Exception, wait_s: float) -> None:
        left_s = self.not_after - self._clock()
        state = f"the one in use holds until {utc(int(self.not_after)):%Y-%m-%d %H:%M} UTC" if left_s > 0 else "none"
        level = logging.WARNING if left_s > 0 else logging.ERROR
        log.log(level, "no new certificate", extra=fields(error=error, certificate=state, again_in_s=int(wait_s)))

    # -- What is kept -------------------------------------------------------------------------------------------------

    def _look_at_authorities(self) -> None:
        """Use the key and certificate that are kept, under the authorities of this moment."""
        bundle = read_public(self._authority, "kubectl get configmap -A")
        if bundle == self._authorities:
            return
        self._authorities = bundle
        load_authorities(self._authority)
        try:
            if self._path.exists():
                self._use(self._load(self._path))
        except CredentialError as error:
            log.warning("the certificate that was kept is of no use", extra=fields(error=error))
            self._ask_at = 0.0

    def _load(self, path: Path) -> NodeCredentials:
        return load_node(path, path, self._authority, again=f"rm {path}")

    def _use(self, node: NodeCredentials) -> None:
        fresh = authenticator_of(node, self._path, self._trust_domain, self._clock(), again=f"rm {self._path}")
        begin, end = node.certificate.not_before, node.certificate.not_after
        self._ask_at = begin + (end - begin) * (RENEW_AT + RENEW_SPREAD * self._draw())
        self.not_after = end
        if self._authenticator is None:
            self._authenticator = Replaceable(fresh)
        else:
            self._authenticator.replace(fresh)
            self.changes += 1
            self.on_replaced()
        log.info(
            "certificate in use",
            extra=fields(
                node=node.certificate.node,
                key=fingerprint(node.certificate.public_key),
                authorities=len(node.authorities),
                until=f"{utc(end):%Y-%m-%d %H:%M} UTC",
            ),
        )

    # -- What is asked for --------------------------------------------------------------------------------------------

    def _ask(self) -> float:
        """Make a key and ask for its certificate."""
        key = generate_key()
        asked = call(self._api, "POST", REQUESTS, Asked, signing_request(self._name, request_pem(key, self._name)))
        self._pending = key, asked.metadata.name
        self._answer.worked()
        self._said = False
        log.info("asked for a certificate", extra=fields(request=asked.metadata.name, node=self._name))
        return self._answer.failed()

    def _collect(self, key: ec.EllipticCurvePrivateKey, name: str) -> float:
        """Look for the answer. Raises CredentialError if the answer is no, ApiRefused if nobody asks any more."""
        try:
            asked = call(self._api, "GET", f"{REQUESTS}/{name}", Asked)
        except ApiRefused as error:
            if error.status == NOT_FOUND:
                raise
            return self._wait(name, error)
        except OSError as error:
            return self._wait(name, error)
        for condition in asked.status.conditions:
            if condition.type in ("Denied", "Failed"):
                text = f"certificate signing request {name}: {condition.type}, {condition.reason}: {condition.message}"
                raise CredentialError(f"{text}; see: kubectl describe csr {name}")
        if not asked.status.certificate:
            return self._wait(name, None)
        fresh = self._path.with_suffix(".new")
        with open(fresh, "wb", opener=_for_root_alone) as stream:
            stream.write(private_pem(key) + asked.status.certificate)
        node = self._load(fresh)
        fresh.replace(self._path)
        self._use(node)
        self._pending = None
        self._again.worked()
        return LOOK_S

    def _wait(self, name: str, error: Exception | None) -> float:
        wait_s = self._answer.failed()
        if wait_s > ANSWER_S[1] / 2 and not self._said:
            self._said = True
            see = f"kubectl describe csr {name}; kubectl get pods -A -l app.kubernetes.io/component=signer"
            log.warning("the certificate is not there yet", extra=fields(request=name, error=error, see=see))
        return wait_s


def load_from_cluster(
    api: Api, node: str, trust_domain: str, authority: Path, directory: Path, stop: threading.Event
) -> NodeKeys:
    """Return this node's keys, once it has a certificate: the one kept in ``directory``, or one asked for now.

    Let its ``step`` be called from then on (agent/kubernetes/chores.py), and set its ``on_replaced``.

    :raises CredentialError: ``stop`` was set before there was a certificate
    """
    keys = NodeKeys(api, node, trust_domain, authority, directory)
    keys.wait(stop)
    return keys


def _for_root_alone(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
