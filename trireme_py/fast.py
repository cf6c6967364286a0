"""The C fast path in front of the Python data path (docs/fastpath.md).

The engine in C answers the packets of warm TCP connections and UDP flows. What it does not know it parks: the packet
comes here with all that the engine knew of its connection, and the Python data path finishes it. What that accepts,
this file teaches the engine. Nothing here decides anything.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from trireme_py import _fastpath
from trireme_py.assertion import CLOCK_SKEW_S
from trireme_py.datagram_flows import MAX_FLOWS
from trireme_py.datapath import Caught, Datapath, Gauges
from trireme_py.endpoint import (
    MAX_HALF_OPEN,
    MAX_LIVE,
    MAX_LIVE_DATAGRAMS,
    Acceptance,
    DatapathSettings,
    Endpoint,
    Translate,
    tuple_of,
)
from trireme_py.errors import BadPacket, InvalidToken
from trireme_py.fast_exchanges import Exchanges, session_of
from trireme_py.fast_tables import (
    SUPERSEDED,
    AcceptedTable,
    BareTargets,
    LentTable,
    OwnedSyns,
    OwnedTable,
    SilentTargets,
)
from trireme_py.flows import ClientFlow, Live, Tuple5
from trireme_py.handover import DIRECTIONS, Reader, is_settled, write
from trireme_py.identities import Identities, LocalIdentity, Peer
from trireme_py.model import (
    Address,
    Decision,
    Direction,
    DropReason,
    FlowEvent,
    Hook,
    Instant,
    PolicyView,
    Protocol,
    Reason,
    Release,
    Result,
    Verdict,
)
from trireme_py.packet import only_acknowledges_untrusted, parse_packet_untrusted
from trireme_py.wire import NONCE_SIZE

MAX_PEERS: Final = 1 << 15
"""Per pod, of its own identity; the least recently used makes room and is parked the next time."""
MAX_VERDICTS: Final = 1 << 16
"""Per pod: peers times ports, with room."""
MAX_OWNED: Final = 1 << 17
"""Per pod: what the Python tables of live and half-open connections can hold."""
MAX_POLICIES: Final = 64
"""Policies that live connections may have been accepted under: as many as a pod has epochs (agent/marks.py)."""
SWEEP_NS: Final = 60_000_000_000
"""How long a token that the engine has let go of is remembered: far longer than a parked packet waits."""
GRAIN_NS: Final = 100_000_000
"""How much longer the engine's flows may be remembered, so that many expire by one wake-up."""

_VERDICTS: Final = (Verdict.PASS, Verdict.PASS_CLEAR, Verdict.ACCEPT, Verdict.DROP)
_PARK: Final = 4
_PARK_ENTROPY: Final = 4
_REASONS: Final = tuple(DropReason)
_ALLOWED: Final = tuple(Reason)
_HOOKS: Final = {Hook.NETWORK: 0, Hook.APPLICATION: 1}


class Parked(NamedTuple):
    """A packet that the engine parked."""

    ticket: int
    """The shell's own number for it, as in Caught."""
    data: bytes
    handover: bytes
    """What the engine knew of its connection."""


class Counters(NamedTuple):
    """What the engine counts for one pod (struct tr_counters)."""

    drops: Sequence[int]
    """By the order of DropReason."""
    parked: Sequence[int]
    """By class: its connection is known; its identity is known; neither, without a message; neither, with one."""
    ingress: Sequence[int]
    """Connections accepted, by the order of Reason."""
    egress: Sequence[int]
    unrecorded_ingress: Sequence[int]
    """Those of them that became no event: nobody listened, or events were not taken in time."""
    unrecorded_egress: Sequence[int]
    clients: int
    servers: int
    live: int
    peers: int
    verdicts: int
    owned: int
    proving: int
    """Of the clients: the server has answered, and the proof has not left."""


@dataclass(slots=True)
class _Pod:
    """One local pod on both sides."""

    engine: _fastpath.Endpoint
    reader: Reader
    accepted: AcceptedTable
    """Its live connections, as far as Python has them."""
    policy: int = 1
    """The current one's number."""
    policies: dict[int, PolicyView] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    numbers: dict[Decision, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Known:
    token: _fastpath.Token
    value: Peer | LocalIdentity
    unused_since: int | None = None
    """Monotonic ns."""


def _unrecorded(counters: Counters) -> dict[tuple[Direction, Reason], int]:
    both = ((Direction.INGRESS, counters.unrecorded_ingress), (Direction.EGRESS, counters.unrecorded_egress))
    return {(direction, reason): n for direction, ns in both for reason, n in zip(_ALLOWED, ns, strict=True) if n}


def _waiting(hook: Hook, packets: Sequence[bytes]) -> list[bool]:
    """Tell for each packet whether more of its connection come behind it."""
    waiting = []
    behind: set[Tuple5] = set()
    for data in reversed(packets):
        try:
            tuple5 = tuple_of(parse_packet_untrusted(data), leaving=hook is Hook.APPLICATION)
        except BadPacket:
            waiting.append(False)
            continue
        waiting.append(tuple5 in behind)
        if not only_acknowledges_untrusted(data):
            behind.add(tuple5)
    return waiting[::-1]


class FastDatapath(Datapath):
    """The data path of all local pods, what is warm in C. As :class:`Datapath`, one thread owns it."""

    __slots__ = (
        "__weakref__", "_dropped", "_engine", "_exchanges", "_known", "_listening", "_next_number", "_numbers",
        "_pods", "_swept_ns", "_translate", "_unrecorded",
    )  # fmt: skip

    def __init__(
        self,
        identities: Identities,
        settings: DatapathSettings,
        *,
        seed: bytes,
        entropy: Callable[[int], bytes],
        translate: Translate,
        on_failure: Callable[[Exception], Verdict] = lambda _: Verdict.DROP,
    ) -> None:
        """``seed``: 16 octets of the kernel's CSPRNG; it keeps others from choosing keys that collide in the tables."""
        super().__init__(identities, settings, entropy=entropy, translate=translate, on_failure=on_failure)
        self._shared.teach = self._teach
        self._exchanges = Exchanges(self._token)
        self._shared.counter = self._shared.window = self._exchanges.new_session
        self._translate = translate
        self._engine = _fastpath.Engine(seed)
        self._pods: dict[int, _Pod] = {}
        self._known: dict[int, _Known] = {}
        self._numbers: dict[bytes, int] = {}
        """Of tokens, by identity id."""
        self._next_number = 1
        self._listening = True
        self._dropped: Counter[DropReason] = Counter()
        """By the engine, for pods that are gone; and what became no event."""
        self._unrecorded: Counter[tuple[Direction, Reason]] = Counter()
        self._swept_ns = 0

    # -- pods ---------------------------------------------------------------------------------------------------------

    def add_endpoint(
        self,
        endpoint: int,
        pod: str,
        addresses: tuple[Address, ...],
        identity: LocalIdentity | None,
        policy: PolicyView,
    ) -> None:
        super().add_endpoint(endpoint, pod, addresses, identity, policy)
        tables = self._endpoints[endpoint]
        engine = _fastpath.Endpoint(
            self._engine, MAX_HALF_OPEN, MAX_LIVE, MAX_PEERS, MAX_VERDICTS, MAX_OWNED, MAX_FLOWS, MAX_LIVE_DATAGRAMS
        )
        tables.clients = OwnedTable(engine, tables.clients)
        tables.live = accepted = AcceptedTable(engine, tables.live)
        tables.servers = OwnedSyns(engine, tables.servers)
        tables.unanswered = BareTargets(engine, tables.unanswered)
        tables.minds_payload = BareTargets(engine, tables.minds_payload)
        tables.live_datagrams = OwnedTable(engine, tables.live_datagrams)
        datagrams = tables.datagrams
        datagrams.clients = OwnedTable(engine, datagrams.clients)
        datagrams.servers = OwnedTable(engine, datagrams.servers, foreign=True)
        datagrams.silent = SilentTargets(engine, datagrams.silent)
        datagrams.warm = LentTable(datagrams.warm, session_of, lambda target: engine.forget_warm(*target))
        datagrams.tickets = LentTable(datagrams.tickets, session_of, engine.forget_ticket)
        one = self._pods[endpoint] = _Pod(engine, self._reader(endpoint, tables), accepted)
        one.policies[one.policy] = policy
        engine.teach_identity(self._token(identity) if identity else None)
        engine.listen(self._listening)

    def _reader(self, endpoint: int, tables: Endpoint) -> Reader:
        return Reader(
            self._shared,
            tables,
            lambda number: known.value if (known := self._known.get(number)) else None,
            lambda number: self._pods[endpoint].policies.get(number, SUPERSEDED),
            self._exchanges.get,
        )

    def engine_endpoint(self, endpoint: int) -> _fastpath.Endpoint:
        """Return the pod's engine, for whoever reads its packets."""
        return self._pods[endpoint].engine

    def ask_translations_of_python(self, endpoint: int) -> None:
        """Let the engine ask ``translate`` where it meets a translated server: for tests, as the agent asks in C."""
        # Weakly: Python's collector does not look into the engine, and would never free what it keeps.
        weak = weakref.ref(self)

        def ask(*flow: Any) -> tuple[Address, int] | None:
            datapath = weak()
            return datapath._translate(endpoint, *flow) if datapath else None

        self._pods[endpoint].engine.set_translate(ask)

    def remove_endpoint(self, endpoint: int) -> list[Release]:
        gone = self._pods.get(endpoint)
        if gone is not None:
            self._collect_events(endpoint, gone)
            last = self.counters(endpoint)
            self._dropped.update(dict(zip(_REASONS, last.drops, strict=True)))
            self._unrecorded.update(_unrecorded(last))
            gone.engine.teach_identity(None)  # should its queue be served on: it answers nobody any more
            gone.engine.teach_policy()
            del self._pods[endpoint]
        return super().remove_endpoint(endpoint)

    def set_identity(self, endpoint: int, identity: LocalIdentity | None) -> None:
        super().set_identity(endpoint, identity)
        self._pods[endpoint].engine.teach_identity(self._token(identity) if identity else None)

    def forget_peers(self) -> None:
        super().forget_peers()
        for endpoint, pod in self._pods.items():
            identity = self._endpoints[endpoint].identity
            pod.engine.teach_identity(self._token(identity) if identity else None)

    def wind_up(self) -> None:
        super().wind_up()
        for endpoint, pod in self._pods.items():
            # Without verdicts and destinations the engine answers nothing, and is taught none: all is judged here.
            self._begin_policy(endpoint, pod, pod.policies[pod.policy])

    def unproven(self) -> int:
        engines = [self.counters(endpoint) for endpoint in self._pods]
        return super().unproven() + sum(one.servers + one.proving for one in engines)

    def set_policy(self, endpoint: int, policy: PolicyView) -> None:
        pod = self._pods[endpoint]
        changed = policy is not pod.policies[pod.policy]
        super().set_policy(endpoint, policy)
        if changed:
            self._begin_policy(endpoint, pod, policy)

    def _begin_policy(self, endpoint: int, pod: _Pod, policy: PolicyView) -> None:
        """Have the engine forget every verdict and destination: what it accepts from now on is under this policy."""
        pod.policy = pod.engine.teach_policy()
        pod.policies[pod.policy] = policy
        if len(pod.policies) > MAX_POLICIES:
            del pod.policies[min(pod.policies)]
        self._collect_events(endpoint, pod)  # their decisions are the old policy's
        pod.decisions.clear()
        pod.numbers.clear()

    # -- packets ------------------------------------------------------------------------------------------------------

    def receive(self, now: Instant, endpoint: int, hook: Hook, batch: Sequence[Caught]) -> list[Result]:
        pod = self._pods.get(endpoint)
        if pod is None:
            return super().receive(now, endpoint, hook, batch)
        return [
            self._receive_fast(now, endpoint, pod, hook, caught, more)
            for caught, more in zip(batch, _waiting(hook, [one.data for one in batch]), strict=True)
        ]

    def _receive_fast(self, now: Instant, endpoint: int, pod: _Pod, hook: Hook, caught: Caught, more: bool) -> Result:
        engine, data = pod.engine, caught.data
        verdict, why, packet = engine.receive(now.mono_ns, now.wall_s, _HOOKS[hook], data, more)
        if verdict == _PARK and why == _PARK_ENTROPY:
            engine.add_entropy(self._entropy())
            verdict, why, packet = engine.receive(now.mono_ns, now.wall_s, _HOOKS[hook], data, more)
        if verdict == _PARK:
            return self._receive_parked(now, endpoint, hook, caught, more, engine.hand_over(_HOOKS[hook], data))
        answer = _VERDICTS[verdict]
        return Result(answer, _REASONS[why] if answer is Verdict.DROP else None, packet)

    def receive_parked(self, now: Instant, endpoint: int, hook: Hook, batch: Sequence[Parked]) -> list[Result]:
        """Judge packets of one pod that the engine has parked, in their order; one result each."""
        return [
            self._receive_parked(now, endpoint, hook, Caught(one.ticket, one.data), more, one.handover)
            for one, more in zip(batch, _waiting(hook, [one.data for one in batch]), strict=True)
        ]

    def _receive_parked(
        self, now: Instant, endpoint: int, hook: Hook, caught: Caught, more: bool, handed_over: bytes
    ) -> Result:
        pod = self._pods.get(endpoint)
        if pod is None:
            return self.receive_one(now, endpoint, hook, caught, more)
        try:
            self._collect_events(endpoint, pod)
            pod.reader.adopt(handed_over, now)
            return self.receive_one(now, endpoint, hook, caught, more)
        except Exception as failure:  # what stands before the catch-all must not take the batch's other packets along
            return self._fail(failure)
        finally:
            pod.engine.returned(_HOOKS[hook], caught.data)

    # -- teaching -----------------------------------------------------------------------------------------------------

    def _teach(self, accepted: Acceptance) -> None:
        pod, tables = self._pods[accepted.endpoint], self._endpoints[accepted.endpoint]
        if accepted.local is not tables.identity or not accepted.decision.allowed or self._winding_up:
            return
        if tables.policy.installing:
            return  # until all agents are there Python notes who has presented an identity, packet by packet
        egress = accepted.direction is Direction.EGRESS
        try:
            key = self._shared.identities.pair_key(accepted.local, accepted.peer, local_is_client=egress)
        except InvalidToken:
            return  # its keys were withdrawn during the exchange, which ends as it began; the next one is refused
        number = pod.numbers.get(accepted.decision)
        if number is None:
            number = pod.numbers[accepted.decision] = len(pod.decisions)
            pod.decisions.append(accepted.decision)
        assert isinstance(accepted.decision.reason, Reason)
        peer, datagrams = self._token(accepted.peer), accepted.protocol == Protocol.UDP
        anybody = self._exchanges.teach(accepted, pod.engine, pod.policy, tables) if datagrams else False
        if anybody is None:
            return
        pod.engine.teach(
            peer, self._token(accepted.local), DIRECTIONS.index(accepted.direction),
            _ALLOWED.index(accepted.decision.reason), accepted.protocol, accepted.port, pod.policy, number,
            accepted.address, key, anybody,
        )  # fmt: skip
        target = None if datagrams else accepted.dialled
        if target is not None and not tables.minds_payload.get(target) and not tables.unanswered.get(target):
            pod.engine.teach_target(*target)

    def _token(self, one: Peer | LocalIdentity) -> _fastpath.Token:
        if isinstance(one, Peer):
            identity, assertion, not_after = one.identity.id, one.assertion, float(one.not_after)
        else:
            identity, assertion, not_after = one.id, one.assertion, one.not_after
        name = identity + (b"peer" if isinstance(one, Peer) else b"own")
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = self._next_number
            self._next_number += 1
            token = _fastpath.Token(number, identity, assertion, not_after + CLOCK_SKEW_S)
            self._known[number] = _Known(token, one)
        known = self._known[number]
        known.unused_since = None
        return known.token

    def _forget_tokens(self, now: Instant) -> None:
        """Forget the tokens that the engine has let go of long ago: a parked packet may still name a younger one."""
        if now.mono_ns - self._swept_ns < SWEEP_NS:
            return
        self._swept_ns = now.mono_ns
        for number, known in list(self._known.items()):
            if known.token.in_use():
                known.unused_since = None
            elif known.unused_since is None:
                known.unused_since = now.mono_ns
            elif now.mono_ns - known.unused_since >= SWEEP_NS:
                del self._known[number]
        self._exchanges.forget_unused(now.mono_ns, SWEEP_NS)
        self._numbers = {name: number for name, number in self._numbers.items() if number in self._known}

    def _entropy(self) -> bytes:
        return self._shared.entropy(NONCE_SIZE)

    # -- time and reports ---------------------------------------------------------------------------------------------

    def next_deadline(self) -> int | None:
        own = super().next_deadline()
        sources = [source for pod in self._pods.values() for source in (pod.engine, pod.accepted.settling)]
        engines = [one for source in sources if (one := source.next_deadline()) is not None]
        if not engines:
            return own
        grained = -(-min(engines) // GRAIN_NS) * GRAIN_NS
        return grained if own is None else min(own, grained)

    def expire(self, now: Instant) -> list[tuple[int, Release]]:
        for endpoint, pod in self._pods.items():
            pod.engine.expire(now.mono_ns)
            self._give_back(now, pod, self._endpoints[endpoint])
        self._forget_tokens(now)
        return super().expire(now)

    def _give_back(self, now: Instant, pod: _Pod, tables: Endpoint) -> None:
        """Let the engine have the connections that nothing keeps here, so that the next one on their ports is warm."""
        due = pod.accepted.settling.expire(now.mono_ns)
        if not due:
            return
        opening = {half_open.tuple5 for key in tables.servers if (half_open := tables.servers.get(key))}
        for tuple5 in due:
            live, flow = tables.live.get(tuple5), tables.clients.get(tuple5)
            if live is None or not is_settled(live, flow, tables.policy):
                continue  # should it be accepted once more, or judged again, it settles once more
            # The proof of another one, true or not, would be a segment of this one to the engine.
            if tuple5 not in opening and self._take_back(now, pod, tuple5, live, flow):
                tables.clients.pop(tuple5)
                tables.live.pop(tuple5)
            else:
                pod.accepted.settling.put(tuple5, tuple5, now.mono_ns)

    def _take_back(self, now: Instant, pod: _Pod, tuple5: Tuple5, live: Live, flow: ClientFlow | None) -> bool:
        assert live.peer is not None
        peer, local = self._token(live.peer), self._token(flow.local) if flow and flow.local else None
        octets = write(tuple5, live, flow, pod.policy, local.number if local else 0, peer.number)
        return pod.engine.take_back(octets, local, peer, now.mono_ns)

    def remembered(self, endpoint: int) -> dict[Tuple5, Live | None]:
        found: dict[Tuple5, Live | None] = dict.fromkeys(self._pods[endpoint].engine.remembered())
        return found | super().remembered(endpoint)

    def forget(self, endpoint: int, gone: Mapping[Tuple5, Live | None]) -> int:
        # The engine's threads go on meanwhile. What they have accepted since on the ports of a connection that is gone
        # cannot be told from that one, and is forgotten with it. This takes ports that nobody has used for a minute,
        # used again in the milliseconds since conntrack was read; and it opens nothing. The new connection goes on by
        # its mark, and under a new policy it is what one is that is older than the agent: judged as unidentified.
        engine, dead = self._pods[endpoint].engine, 0
        for (protocol, own, own_port, other, other_port), live in gone.items():
            if live is None:
                dead += engine.forget(protocol, own, own_port or 0, other, other_port or 0)
        return super().forget(endpoint, gone) + dead

    def drain_events(self) -> list[FlowEvent]:
        for endpoint, pod in self._pods.items():
            self._collect_events(endpoint, pod)
        return super().drain_events()

    def _collect_events(self, endpoint: int, pod: _Pod) -> None:
        """Put what the engine has accepted among the events, before anything that comes later."""
        name = self._endpoints[endpoint].pod
        while (taken := pod.engine.take_event()) is not None:
            tuple5, token, wall_s, decision, direction, address, port = taken
            known = self._known.get(token)
            assert known is not None
            assert isinstance(known.value, Peer)
            protocol, own, own_port, other, other_port = tuple5
            ends = (own, own_port, other, other_port)
            actual = None
            if DIRECTIONS[direction] is Direction.INGRESS:
                ends = (other, other_port, own, own_port)
            elif (address, port) != (other, other_port):
                actual = (address, port)
            peer = known.value.identity
            decided = pod.decisions[decision]
            event = FlowEvent(wall_s, name, DIRECTIONS[direction], decided, protocol, *ends, peer, True, actual)
            self._shared.events.append(event)

    def listen(self, flag: bool) -> None:
        """Have connections that the engine accepts become events, or only numbers."""
        self._listening = flag
        for pod in self._pods.values():
            pod.engine.listen(flag)

    def unrecorded(self) -> Counter[tuple[Direction, Reason]]:
        """Count the connections that the engine has accepted and that became no event."""
        found = Counter(self._unrecorded)
        for endpoint in self._pods:
            found.update(_unrecorded(self.counters(endpoint)))
        return found

    def counters(self, endpoint: int) -> Counters:
        """Return what the engine counts for a pod."""
        return Counters(*self._pods[endpoint].engine.counters())

    @property
    def drops(self) -> Counter[DropReason]:
        """Packets dropped, by reason, on either side."""
        drops = self._shared.drops + self._dropped
        for endpoint in self._pods:
            drops.update(dict(zip(_REASONS, self.counters(endpoint).drops, strict=True)))
        return +drops

    def gauges(self) -> Gauges:
        own = super().gauges()
        fast = [self.counters(endpoint) for endpoint in self._pods]
        return Gauges(
            own.opening + sum(one.clients for one in fast),
            own.half_open + sum(one.servers for one in fast),
            own.live + sum(one.live for one in fast),
            own.identities,
        )

    # -- for tests ----------------------------------------------------------------------------------------------------

    def take_over(self, endpoint: int, now: Instant) -> Endpoint:
        """Have Python own all connections of a pod that the engine knows, and return Python's tables."""
        pod = self._pods[endpoint]
        for octets in pod.engine.export(True):
            pod.reader.adopt(octets, now)
        return self._endpoints[endpoint]
