"""A cluster in memory, in virtual time: pods with a TCP and an agent each, a network between them, and an attacker.

The data path and its credentials are the real ones; the shell around them does what the rules and the queue do in the
kernel (docs/datapath.md). Nothing here reads a clock, draws randomness but from the seed, or waits.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from dataclasses import replace as changed
from difflib import unified_diff
from typing import Final

from tests.harness import assertions
from tests.harness.network import Faults, Router
from tests.harness.segments import ACK, MAGIC, RST, SYN, Segment, describe, packed, read, udp
from tests.harness.standin_policy import OPEN
from tests.harness.surplus import Read, describe_datagram, has_surplus, is_udp, is_valid, is_whole, read_udp
from tests.harness.tcp import SECOND, Connection, Host, Listener
from trireme_py.assertion import identity_id
from trireme_py.auth import Authenticator
from trireme_py.datapath import Caught, Datapath
from trireme_py.endpoint import EXPLAINED, Acceptance, DatapathSettings, Endpoint
from trireme_py.errors import BadPacket, InvalidToken
from trireme_py.fast import FastDatapath
from trireme_py.flows import Tuple5
from trireme_py.identities import Identities, LocalIdentity
from trireme_py.model import (
    Direction,
    DropReason,
    FlowEvent,
    Hook,
    Instant,
    PlainLabels,
    PolicyView,
    Release,
    Result,
    Verdict,
)
from trireme_py.networks import NetworkSet
from trireme_py.packet import parse_packet_untrusted
from trireme_py.pairing import AgreementKey

START_NS: Final = 1_000 * SECOND
LATENCY: Final = SECOND // 100
"""One way; a round trip is 20 ms."""
POD_RANGES: Final = ("10.1.0.0/16", "fd00:1::/64")
SCOPE: Final = (*POD_RANGES, "10.96.0.0/12", "fd00:96::/64", "192.0.2.0/24")
TCP, UDP = 6, 17
IMPLEMENTATION = "python"
"""Which data path the pods get: "python", or "c", which is the fast path in front of it with everything it may know
taught beforehand. `pytest --impl` sets it (tests/trireme_py/conftest.py)."""
TOUCHED: Final = {
    DropReason.POLICY: {"denials", "clients"},
    DropReason.CUT: {"denials", "live", "live_datagrams"},
    DropReason.UNPROVEN: {"servers", "answered"},
    DropReason.REPEATED: {"clients"},
    DropReason.PAYLOAD_ACKNOWLEDGED: {"clients", "minds_payload"},
    DropReason.UNEXPLAINED_TRANSLATION: {"clients", "denials", "unanswered"},
    **{reason: {"denials"} for reason in EXPLAINED - {DropReason.UNEXPLAINED_TRANSLATION}},
}
"""The tables a drop may touch: what was reported, whom we met, how often was repeated, who takes our token for data."""


@dataclass(eq=False)
class Mark:
    """The connection marks of one pod's namespace."""

    epoch: int = 1
    accepted: dict[Tuple5, int] = field(default_factory=dict)


@dataclass(eq=False)
class Pod:
    """A pod: its addresses, its applications' TCP, and, if it has an agent, that agent's data path."""

    world: World
    name: str
    addresses: tuple[bytes, ...]
    host: Host
    datapath: Datapath | None = None
    identity: LocalIdentity | None = None
    authenticator: Authenticator | None = None
    redirects: dict[int, int] = field(default_factory=dict)
    """A sidecar's REDIRECT: port dialled, port of the proxy."""
    marks: Mark = field(default_factory=Mark)
    held: dict[int, tuple[Hook, bytes]] = field(default_factory=dict)
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    bypassed: int = 0
    """Packets that the mark kept out of the queue."""
    events: list[FlowEvent] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    """What arrived and is not TCP."""
    heard: list[Read] = field(default_factory=list)
    """Datagrams that a socket has taken, whole."""
    discarded: int = 0
    """Datagrams whose checksum no socket takes."""
    on_datagram: Callable[[Read], None] = lambda datagram: None
    """What the pod's application does with a datagram."""
    segments: list[Segment] = field(default_factory=list)
    """TCP that reached the pod's kernel."""
    _tickets: int = 0
    _redirected: dict[tuple[int, bytes, int], int] = field(default_factory=dict)

    # -- what tests ask for -------------------------------------------------------------------------------------------

    def address(self, family: int = 4) -> bytes:
        return next(address for address in self.addresses if len(address) == (4 if family == 4 else 16))

    @property
    def endpoint(self) -> Endpoint:
        """The data path's own tables of this pod; of the fast path's, Python takes all that is there over first."""
        assert self.datapath is not None
        if isinstance(self.datapath, FastDatapath):
            return self.datapath.take_over(0, self.world.now)
        return self.datapath._endpoints[0]

    @property
    def drops(self) -> Counter[DropReason]:
        assert self.datapath is not None
        return +self.datapath.drops

    def listen(self, port: int = 80, **options: object) -> Listener:
        return self.host.listen(port, **options)

    def say(
        self, to: Pod | bytes, payload: bytes = b"question", *, sport: int = 40_000, port: int = 53, family: int = 4
    ) -> None:
        """Send one datagram."""
        other = to if isinstance(to, bytes) else to.address(family)
        self.leave(udp((self.address(4 if len(other) == 4 else 6), sport), (other, port), payload))

    def connect(
        self, to: Pod | bytes, port: int = 80, data: bytes = b"", *, family: int = 4, **how: object
    ) -> Connection:
        other = to if isinstance(to, bytes) else to.address(family)
        if isinstance(to, Pod):
            self.world.acquaint(self, to, port, family)
        return self.host.connect(self.address(4 if len(other) == 4 else 6), other, port, data, **how)  # type: ignore[arg-type]

    def set_policy(self, policy: PolicyView) -> None:
        """Swap the policy and raise the epoch, as the agent does."""
        assert self.datapath is not None
        self.datapath.set_policy(0, policy)
        self.marks.epoch += 1

    def accepted(self) -> set[Tuple5]:
        return {tuple5 for tuple5, epoch in self.marks.accepted.items() if epoch == self.marks.epoch}

    def tables(self) -> dict[str, object]:
        """A copy of everything the data path remembers of this pod, to be compared."""
        assert self.datapath is not None
        tables = snapshot(self.datapath._endpoints[0])
        if isinstance(self.datapath, FastDatapath):
            tables["engine"] = self.datapath.engine_endpoint(0).export(False)
        return tables

    # -- the namespace's rules ----------------------------------------------------------------------------------------

    def leave(self, data: bytes) -> None:
        """A packet leaves: what the pod sends, or what the agent sends from its namespace."""
        if data[16:20] in self.addresses or (data[0] >> 4 == 6 and data[24:40] in self.addresses):
            self.world.after(0, lambda: self.deliver(data))  # over lo, which nobody watches
            return
        self._meet(Hook.APPLICATION, data)

    def arrive(self, data: bytes) -> None:
        self._meet(Hook.NETWORK, data)

    def _meet(self, hook: Hook, data: bytes) -> None:
        if self.datapath is None:
            self._go_on(hook, data)
            return
        tuple5, syn = self._tuple(hook, data)
        syn = syn or (is_udp(data) and has_surplus(data))
        if tuple5 is not None and not syn and self.marks.accepted.get(tuple5) == self.marks.epoch:
            self.bypassed += 1
            self._go_on(hook, data)
            return
        self._tickets += 1
        ticket = self._tickets
        before = self.tables() if self.world.audit else {}
        [result] = self.datapath.receive(self.world.now, 0, hook, [Caught(ticket, data)])
        if self.world.audit and result.reason is not None:
            touched = {name for name, table in self.tables().items() if table != before[name]}
            if "engine" in touched:  # what the engine knew of this packet's connection is Python's now
                touched -= {"engine", "clients", "servers", "answered", "live"}
            assert touched <= TOUCHED.get(result.reason, set()), f"{result.reason} has changed {touched}"
        self._carry_out(hook, ticket, data, result)

    def _carry_out(self, hook: Hook, ticket: int, data: bytes, result: Result) -> None:
        assert self.datapath is not None
        assert (result.verdict is Verdict.DROP) == (result.reason is not None)
        if result.verdict is Verdict.HOLD:
            self.held[ticket] = (hook, data)
            self.verdicts[Verdict.HOLD] += 1
        else:
            self._answer(hook, data, result.verdict, result.packet)
        self.events += self.datapath.drain_events()
        for packet in result.send:
            self.leave(packet)
        for release in result.release:
            self.release(release)
        for _, release in self.datapath.take_releases():
            self.release(release)
        self.world.wake(self)

    def release(self, release: Release) -> None:
        hook, data = self.held.pop(release.ticket)
        assert (release.verdict is Verdict.DROP) == (release.reason is not None)
        self._answer(hook, data, release.verdict, release.packet)

    def _answer(self, hook: Hook, original: bytes, verdict: Verdict, packet: bytes | None) -> None:
        self.verdicts[verdict] += 1
        if verdict is Verdict.DROP:
            return
        tuple5, _ = self._tuple(hook, original)
        if tuple5 is not None and verdict is Verdict.ACCEPT:
            self.marks.accepted[tuple5] = self.marks.epoch
        elif tuple5 is not None and verdict is Verdict.PASS_CLEAR:
            self.marks.accepted.pop(tuple5, None)
        self._go_on(hook, original if packet is None else packet)

    def _tuple(self, hook: Hook, data: bytes) -> tuple[Tuple5 | None, bool]:
        """The connection as conntrack knows it, whichever port a sidecar gave it."""
        try:
            packet = parse_packet_untrusted(data)
        except BadPacket:
            return None, False
        own, port = packet.destination, packet.destination_port
        other, other_port = packet.source, packet.source_port
        if hook is Hook.APPLICATION:
            own, port, other, other_port = other, other_port, own, port
            port = self._redirected.get((port or 0, other, other_port or 0), port)
        return (packet.protocol, own, port, other, other_port), bool(packet.protocol == TCP and packet.flags & SYN)

    def _go_on(self, hook: Hook, data: bytes) -> None:
        """After our rules: a sidecar's translation, then the kernel or the wire."""
        segment = read(data) if self.redirects else None
        if hook is Hook.NETWORK:
            if segment is not None and segment.dport in self.redirects:
                proxy = self.redirects[segment.dport]
                self._redirected[proxy, segment.source, segment.sport] = segment.dport
                data = changed(segment, dport=proxy).build()
            self.deliver(data)
            return
        if segment is not None:
            port = self._redirected.get((segment.sport, segment.destination, segment.dport))
            if port is not None:
                data = changed(segment, sport=port).build()
        self.world.send(self, data)

    def deliver(self, data: bytes) -> None:
        segment = read(data)
        if segment is None:
            if data[9 if data[0] >> 4 == 4 else 6] != TCP:
                self.raw.append(data)
            if is_udp(data):
                datagram = read_udp(data) if is_whole(data) else None
                if datagram is not None and datagram.delivered:
                    self.heard.append(datagram)
                    self.on_datagram(datagram)
                else:
                    self.discarded += 1
            return
        self.segments.append(segment)
        self.host.receive(segment)

    def sweep(self) -> int:
        """Forget what conntrack has forgotten: connections that neither end has any more."""
        living: set[Tuple5] = set()
        for own, port, other, other_port in self.host.connections:
            living.add((TCP, own, port, other, other_port))
            dialled = self._redirected.get((port, other, other_port), port)
            living.add((TCP, own, dialled, other, other_port))
        self.marks.accepted = {key: epoch for key, epoch in self.marks.accepted.items() if key in living}
        return self._forget_all_but(living)

    def forget_accepted(self) -> None:
        """Have the data path forget every accepted connection."""
        self._forget_all_but(set())

    def _forget_all_but(self, living: set[Tuple5]) -> int:
        assert self.datapath is not None
        known = self.datapath.remembered(0)
        return self.datapath.forget(0, {tuple5: live for tuple5, live in known.items() if tuple5 not in living})


def snapshot(endpoint: Endpoint) -> dict[str, object]:
    """Copy an endpoint's tables deep enough to be compared: flows field by field, peers and policies by identity."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return [(plain(key), plain(item)) for key, item in value.items()]
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        slots = getattr(type(value), "__slots__", ())
        if type(value).__name__ in {"ClientFlow", "ServerFlow", "Live", "Held", "BoundedTable", "Packet"}:
            return {name: plain(getattr(value, name)) for name in slots}
        if isinstance(value, int | str | bytes | float | None):
            return value
        return repr(value) if hasattr(value, "value") else id(value)

    names = (
        "clients",
        "servers",
        "answered",
        "live",
        "live_datagrams",
        "denials",
        "unanswered",
        "minds_payload",
        "holds",
    )
    return {name: plain(getattr(endpoint, name)) for name in names}


class World:
    """Everything, and its time. ``mode``: how identities are vouched for, "psk" or "pki"."""

    def __init__(self, seed: int = 1, *, mode: str = "psk", faults: Faults | None = None) -> None:
        self.random = random.Random(seed)
        self.mode = mode
        self.faults = faults or Faults()
        self.router = Router()
        self.pods: dict[str, Pod] = {}
        self.by_address: dict[bytes, Pod] = {}
        self.mono_ns = START_NS
        self.wall_offset = assertions.NOW - START_NS / SECOND
        self.captured: deque[bytes] = deque(maxlen=10_000)
        """The last packets on the wire, as they were sent: what an attacker on the path has seen."""
        self.on_wire: Callable[[bytes], Iterable[bytes]] = lambda data: (data,)
        """What the path does to each packet; tests put the attacker and planned losses here."""
        self.transcript: list[str] = []
        self.invalid = 0
        """Datagrams that were lost on the way because their sum was wrong."""
        self.audit = False
        """Hold every dropped packet to leaving the data path's tables as they were."""
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self._wakes: dict[str, int] = {}

    # -- time ---------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> Instant:
        return Instant(self.mono_ns, self.mono_ns / SECOND + self.wall_offset)

    @property
    def ms(self) -> int:
        """Milliseconds since the beginning."""
        return (self.mono_ns - START_NS) // 1_000_000

    def after(self, delay: int, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._agenda, (self.mono_ns + delay, self._order, action))

    def wake(self, pod: Pod) -> None:
        """Have the pod's data path expire what it must, when it must."""
        assert pod.datapath is not None
        deadline = pod.datapath.next_deadline()
        planned = self._wakes.get(pod.name)
        if deadline is None or (planned is not None and planned <= deadline):
            return
        self._wakes[pod.name] = deadline

        def due() -> None:
            assert pod.datapath is not None
            if self._wakes.get(pod.name) == deadline:
                del self._wakes[pod.name]
            for _, release in pod.datapath.expire(self.now):
                pod.release(release)
            for _, data in pod.datapath.take_sends():
                pod.leave(data)
            pod.events += pod.datapath.drain_events()
            self.wake(pod)

        self.after(max(0, deadline - self.mono_ns), due)

    def run(self, seconds: float = 10.0, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, at most so much of it, until nothing is left to happen or ``until`` holds."""
        end = self.mono_ns + int(seconds * SECOND)
        while self._agenda and self._agenda[0][0] <= end:
            if until():
                return
            self.mono_ns, _, action = heapq.heappop(self._agenda)
            action()
        if not until():
            self.mono_ns = max(self.mono_ns, end)

    # -- pods ---------------------------------------------------------------------------------------------------------

    def authenticator(self, node: str) -> Authenticator:
        return assertions.psk_authenticator() if self.mode == "psk" else assertions.pki_authenticator(node)

    def local_identity(self, name: str, authenticator: Authenticator, **claims: object) -> LocalIdentity:
        """An assertion for a pod, the way its node issues it."""
        namespace, _, pod = name.partition("/")
        key = AgreementKey.generate(self.random.randbytes)
        asked = {"namespace": namespace, "pod": pod, "labels": PlainLabels({"app": pod}), "named_ports": ()} | claims
        assertion = authenticator.issue(
            assertions.claims(agreement_key=key.public, **asked), self.random.randbytes(8)
        )  # fmt: skip
        return LocalIdentity(identity_id(assertion), assertion, key, assertions.NOW + 3000)

    def pod(
        self,
        name: str,
        *addresses: str,
        policy: PolicyView = OPEN,
        agent: bool = True,
        identity: LocalIdentity | None = None,
        strict: bool = True,
    ) -> Pod:
        """Add a pod on a node of its own."""
        own = tuple(packed(address) for address in addresses)
        pod = Pod(self, name, own, None)  # type: ignore[arg-type]
        pod.host = Host(self.after, pod.leave, lambda: self.random.getrandbits(32))
        if agent:
            pod.authenticator = self.authenticator(name.replace("/", "-"))
            pod.identity = identity or self.local_identity(name, pod.authenticator)
            settings = DatapathSettings(
                NetworkSet(SCOPE), NetworkSet(POD_RANGES), require_translation_evidence=strict
            )  # fmt: skip
            identities, translate = Identities(pod.authenticator), lambda _, *flow: self.router.shown(*flow)
            entropy = self.random.randbytes
            if IMPLEMENTATION == "c":
                pod.datapath = FastDatapath(
                    identities, settings, seed=bytes(16), entropy=entropy, translate=translate, on_failure=_fail
                )
            else:
                pod.datapath = Datapath(identities, settings, entropy=entropy, translate=translate, on_failure=_fail)
            pod.datapath.add_endpoint(0, name, own, pod.identity, policy)
            if isinstance(pod.datapath, FastDatapath):
                pod.datapath.ask_translations_of_python(0)
        self.pods[name] = pod
        for address in own:
            self.by_address[address] = pod
        return pod

    def acquaint(self, client: Pod, server: Pod, port: int, family: int) -> None:
        """Teach the two fast paths what they would know of each other had they met before."""
        ends = ((client, server, Direction.EGRESS), (server, client, Direction.INGRESS))
        dialled = server.address(family), port
        for one, other, direction in ends:
            datapath, address = one.datapath, other.address(family)
            if not isinstance(datapath, FastDatapath) or not one.identity or not other.identity:
                continue
            pod = datapath._endpoints[0]
            if pod.identity is None:
                continue
            try:
                peer = datapath._shared.identities.resolve_untrusted(
                    self.now, 0, other.identity.id, other.identity.assertion
                )  # fmt: skip
                datapath._shared.identities.pair_key(pod.identity, peer, local_is_client=direction is Direction.EGRESS)
                decision = pod.policy.decide(direction, peer.identity, address, TCP, port)
            except InvalidToken:  # these two could not have met
                continue
            if decision.allowed:
                target = dialled if direction is Direction.EGRESS else None
                lesson = Acceptance(0, direction, pod.identity, peer, address, port, decision, target)
                datapath._shared.teach(lesson)

    # -- the network --------------------------------------------------------------------------------------------------

    def send(self, sender: Pod, data: bytes) -> None:
        """Put a packet on the wire."""
        self._note(sender.name, data)
        self.captured.append(data)
        for variant in self.on_wire(data):
            for delay, copied in self.faults.apply(self.random, variant):
                self.after(LATENCY + delay, lambda copied=copied: self._travel(copied))  # type: ignore[misc]

    def inject(self, data: bytes) -> None:
        """An attacker's packet: it arrives like any other."""
        self._note("attacker", data)
        self.after(LATENCY, lambda: self._travel(data))

    def _travel(self, data: bytes) -> None:
        if is_udp(data) and not is_valid(data):
            self.invalid += 1  # connection tracking on the way takes it for damaged
            return
        data = self.router.translate(data)
        destination = data[16:20] if data[0] >> 4 == 4 else data[24:40]
        pod = self.by_address.get(destination)
        if pod is not None:
            pod.arrive(data)

    # -- the transcript -----------------------------------------------------------------------------------------------

    def _note(self, sender: str, data: bytes) -> None:
        if self.faults.any:
            return  # nobody reads the transcript of a storm
        segment = read(data)
        if segment is not None:
            what = describe(segment)
        elif is_udp(data):
            what = describe_datagram(data)
        else:
            what = f"protocol {data[9] if data[0] >> 4 == 4 else data[6]}"
        self.transcript.append(f"{self.ms:>6} ms  {sender.rpartition('/')[2]}: {what}")

    def assert_transcript(self, expected: str) -> None:
        """Compare what was on the wire, line by line; blank lines and indentation mean nothing."""
        want = [" ".join(line.split()) for line in expected.splitlines() if line.strip()]
        got = [" ".join(line.split()) for line in self.transcript]
        assert want == got, "\n" + "\n".join(unified_diff(want, got, "expected", "on the wire", lineterm="", n=30))

    # -- what an attacker looks for -----------------------------------------------------------------------------------

    def last(self, kind: str) -> Segment:
        """The last captured packet of a kind: "syn", "syn-ack" or "proof"."""
        for data in reversed(self.captured):
            segment = read(data)
            if segment is not None and kind_of(segment) == kind:
                return segment
        raise AssertionError(f"no {kind} was captured")


def kind_of(segment: Segment) -> str:
    """Which packet of the exchange this is: with our message in it, or "bare …", or "other"."""
    ours = segment.payload.startswith(MAGIC)
    match segment.flags & (SYN | ACK | RST):
        case 2:
            return "syn" if ours else "bare syn"
        case 18:
            return "syn-ack" if ours else "bare syn-ack"
        case 16 if ours:
            return "proof"
    return "reset" if segment.flags & RST else "other"


def _fail(error: Exception) -> Verdict:
    """A bug in the data path is a failed test, here and now."""
    raise error
