"""One node's data path in this process: real namespaces, real rules, real queues, a policy the test gives.

The agent around it (files, metrics, observe) is tested elsewhere; what is real here is everything a packet meets.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

from agent.conntrack import NodeConntrack
from agent.fastqueue import FastThreads
from agent.interfaces import addresses_of
from agent.lab import LabNamespace, LabPod
from agent.loop import Loop
from agent.marks import FIRST_EPOCH, Marks, next_epoch
from agent.nfqueue import CrashGuard, PodQueue
from agent.rules import RuleBackend
from agent.rules_restore import probe
from agent.ruleset import PodRules
from tests.harness import assertions
from tests.harness.implementation import make_datapath, open_queue
from trireme_py._fastpath import Workers
from trireme_py.assertion import Claims, identity_id
from trireme_py.auth import Authenticator
from trireme_py.auth_pki import PkiAuthenticator
from trireme_py.auth_psk import PskAuthenticator
from trireme_py.datapath import Datapath
from trireme_py.endpoint import DatapathSettings
from trireme_py.identities import Identities, LocalIdentity
from trireme_py.labels import SALT_SIZE
from trireme_py.model import (
    Address,
    Decision,
    Direction,
    DropReason,
    FlowEvent,
    Identity,
    NamedPort,
    PlainLabels,
    PolicyView,
    Reason,
)
from trireme_py.networks import NetworkSet
from trireme_py.pairing import AgreementKey

TRUST_DOMAIN = "test.example"
PSK = b"a pre-shared key of a test, 32 octets or more"
POD_RANGES = ("10.77.0.0/16", "fd77::/16")
WORKERS = 2
"""Threads of the fast path: more than one, so that tests see what two of them do to each other."""
IDENTITY_SCOPE = ("10.0.0.0/8", "fd00::/8")


@dataclass(frozen=True, slots=True)
class Rules:
    """A policy in a few words, for tests of the exchange: who may come in, who may be gone to. None: not isolated.

    Each rule is a label value of ``app`` that an identity must have, or an address that anybody may have.
    """

    ingress: tuple[str | Address, ...] | None = None
    egress: tuple[str | Address, ...] | None = None
    port: int | None = None
    """If given, the only destination port that rules allow."""
    installing: bool = False

    def _side(self, direction: Direction) -> tuple[str | Address, ...] | None:
        return self.ingress if direction is Direction.INGRESS else self.egress

    def isolated(self, direction: Direction) -> bool:
        return self._side(direction) is not None

    def may_open(self, protocol: int) -> bool:
        return self.egress != ()

    def decide(
        self, direction: Direction, identity: Identity | None, address: Address, protocol: int, port: int | None
    ) -> Decision:
        side = self._side(direction)
        if side is None:
            return Decision(True, Reason.NO_ISOLATION)
        if self.port in (None, port):
            for index, rule in enumerate(side):
                if rule == address:
                    return Decision(True, Reason.IPBLOCK, "Rules", index)
                if isinstance(rule, str) and identity is not None and identity.labels.has_value("app", rule):
                    return Decision(True, Reason.POLICY, "Rules", index)
        return Decision(False, Reason.UNIDENTIFIED if identity is None else Reason.NO_MATCH)

    def could_allow(self, direction: Direction, address: Address, protocol: int, port: int | None) -> bool:
        side = self._side(direction)
        return side is None or (self.port in (None, port) and any(isinstance(rule, str) for rule in side))


OPEN = Rules()


def pki(node: str, authority: str = "authority") -> PkiAuthenticator:
    """The authenticator of a node whose certificate holds now."""
    now = int(time.time())
    return assertions.pki_authenticator(
        node, authority, trust_domain=TRUST_DOMAIN, not_before=now - 60, not_after=now + 7200
    )


def make_identity(
    authenticator: Authenticator,
    name: str,
    labels: dict[str, str] | None = None,
    *,
    lifetime: tuple[float, float] = (0, 3600),
    named_ports: tuple[NamedPort, ...] = (),
) -> LocalIdentity:
    """An identity in namespace ``test``; ``lifetime`` in seconds from now."""
    now = time.time()
    key = AgreementKey.generate(os.urandom)
    claims = Claims(
        trust_domain=authenticator.trust_domain,
        namespace="test",
        service_account="default",
        pod=name,
        labels=PlainLabels(labels or {"app": name}),
        named_ports=named_ports,
        not_before=int(now + lifetime[0]),
        not_after=int(now + lifetime[1]),
        agreement_key=key.public,
    )
    assertion = authenticator.issue(claims, os.urandom(SALT_SIZE))
    return LocalIdentity(identity_id(assertion), assertion, key, now + lifetime[1])


def _flush_conntrack() -> None:
    with NFCTSocket() as conntrack:
        conntrack.flush()


@dataclass(slots=True)
class HeldPod:
    """A pod that a node enforces."""

    pod: LabPod
    name: str
    endpoint: int
    queue: PodQueue
    rules: PodRules
    identity: LocalIdentity


@dataclass(slots=True)
class Seen:
    """What the data path reported, collected on its own thread."""

    events: list[FlowEvent] = field(default_factory=list)

    def __call__(self, events: Sequence[FlowEvent]) -> None:
        self.events.extend(events)


class Node:
    """A node: one data path, its thread, and the pods it holds. A context manager."""

    def __init__(
        self,
        router: LabNamespace | None = None,
        *,
        authenticator: Authenticator | None = None,
        backend: RuleBackend | None = None,
        marks: Marks | None = None,
        require_translation_evidence: bool = True,
        pod_ranges: tuple[str, ...] = POD_RANGES,
        workers: int = WORKERS,
    ) -> None:
        """``router``: the namespace whose conntrack is this node's; None gives no evidence of translations."""
        self.authenticator = authenticator or PskAuthenticator(PSK, TRUST_DOMAIN)
        self.backend = backend or probe()
        self.marks = marks or Marks()
        self.conntrack = NodeConntrack(router.path) if router is not None else None
        settings = DatapathSettings(
            NetworkSet((*IDENTITY_SCOPE, *pod_ranges)),
            NetworkSet(pod_ranges),
            addresses_of(router.path) if router is not None else frozenset(),
            require_translation_evidence,
        )
        self.datapath = make_datapath(Identities(self.authenticator), settings, translate=self._translate)
        self.threads = FastThreads(Workers(workers), self.conntrack.table if self.conntrack is not None else None)
        self.guard = CrashGuard()
        self.seen = Seen()
        self.loop = Loop(self.datapath, self.guard, self.seen)
        self.pods: dict[str, HeldPod] = {}

    def __enter__(self) -> Node:
        self.loop.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.loop.stop()
        for held in self.pods.values():
            self.backend.remove(held.pod.path)
        if self.conntrack is not None:
            self.conntrack.close()

    def _translate(
        self, endpoint: int, protocol: int, source: Address, sport: int, destination: Address, dport: int
    ) -> tuple[Address, int] | None:
        if self.conntrack is None:
            return None
        return self.conntrack.translate(protocol, source, sport, destination, dport)

    def hold(
        self,
        pod: LabPod,
        name: str,
        policy: PolicyView = OPEN,
        *,
        labels: dict[str, str] | None = None,
        identity: LocalIdentity | None = None,
    ) -> HeldPod:
        """Enforce on a pod, which is ``test/<name>`` with the label ``app=<name>`` unless given otherwise.

        Its namespace forgets the connections of earlier nodes, whose marks would mean the same epochs as ours.
        """
        pod.run(_flush_conntrack)
        endpoint = len(self.pods) + 1
        identity = identity or make_identity(self.authenticator, name, labels)
        self.loop.call(
            lambda: self.datapath.add_endpoint(endpoint, f"test/{name}", pod.addresses, identity, policy)
        ).result()
        queue = open_queue(
            pod.path,
            endpoint,
            self.datapath,
            self.guard,
            threads=self.threads,
            marks=self.marks,
            epoch=FIRST_EPOCH,
        )
        self.loop.call(lambda: self.loop.add(queue)).result()
        rules = PodRules(self.marks, FIRST_EPOCH)
        self.backend.apply(pod.path, rules)
        held = self.pods[name] = HeldPod(pod, name, endpoint, queue, rules, identity)
        return held

    def set_identity(self, name: str, identity: LocalIdentity) -> None:
        """Have a pod present another identity from its next connection on."""
        self.call(lambda datapath: datapath.set_identity(self.pods[name].endpoint, identity))

    def set_policy(self, name: str, policy: PolicyView) -> None:
        """Change a pod's policy as the agent does: data path and queue first, then the rules' epoch."""
        held = self.pods[name]
        epoch = next_epoch(held.queue.epoch)

        def swap() -> None:
            self.datapath.set_policy(held.endpoint, policy)
            held.queue.epoch = epoch

        self.loop.call(swap).result()
        held.rules = PodRules(self.marks, epoch)
        self.backend.set_epoch(held.pod.path, held.rules)

    @property
    def drops(self) -> Counter[DropReason]:
        """Packets dropped so far, by reason; those of zero left out."""
        return self.loop.call(lambda: Counter({reason: n for reason, n in self.datapath.drops.items() if n})).result()

    @property
    def events(self) -> list[FlowEvent]:
        """What was judged so far."""
        return self.loop.call(lambda: list(self.seen.events)).result()

    def call(self, function: Callable[[Datapath], object]) -> object:
        """Ask the data path something on its own thread."""
        return self.loop.call(lambda: function(self.datapath)).result()
