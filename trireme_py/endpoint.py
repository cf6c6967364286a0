"""One local pod as the data path holds it, and what all of the data path shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from trireme_py.datagram_flows import DatagramTables
from trireme_py.errors import BadPacket, InvalidToken
from trireme_py.flows import BoundedTable, ClientFlow, Held, Live, ServerFlow, Tuple5
from trireme_py.identities import Identities, LocalIdentity, Peer
from trireme_py.messages import AGAIN
from trireme_py.model import (
    Address,
    Decision,
    Direction,
    DropReason,
    FlowEvent,
    Hook,
    Identity,
    Instant,
    PolicyView,
    Protocol,
    Reason,
    Release,
    Result,
    Verdict,
)
from trireme_py.networks import NetworkSet
from trireme_py.packet import ACK, SEQUENCE_SPACE, SYN, Packet, reset_for
from trireme_py.replay import Counting, PlainCounter, ReplayWindow, Window
from trireme_py.surplus import with_message

_SECOND: Final = 1_000_000_000

MAX_HALF_OPEN: Final = 8192
"""Per pod and role. Linux's own default SYN backlog is at most 4096; a SYN flood turns the oldest out."""
HALF_OPEN_NS: Final = 70 * _SECOND
"""Longer than a Linux server goes on repeating its SYN-ACK (tcp_synack_retries 5: 63 s)."""
MAX_LIVE: Final = 65_536
"""Per pod; what is turned out is judged as unidentified should policy change."""
MAX_LIVE_DATAGRAMS: Final = 16_384
"""Per pod, of UDP and every other protocol."""
MAX_DENIALS: Final = 4096
DENIAL_NS: Final = 130 * _SECOND
"""As long as a Linux client goes on repeating its SYN (tcp_syn_retries 6: 127 s): one event for one connect."""
MAX_BARE: Final = 4096
UNANSWERED_NS: Final = 60 * _SECOND
"""Where two SYNs with a token stayed unanswered and a bare one did not. Loss can look the same, so it is short."""
MINDS_PAYLOAD_NS: Final = 3600 * _SECOND
"""A server that took our token for data (Fast Open without cookies) is spared it for an hour after each contact."""
HOLD_NS: Final = 1 * _SECOND
"""As long as a packet may wait in the queue: the sender's own retransmission has come by then."""
MAX_HELD_PACKETS: Final = 64
MAX_HELD_OCTETS: Final = 128 * 1024
"""Per connection: an initial window of ten segments of a 9000-octet link, with room."""
MAX_HELD_PER_POD: Final = 2048
"""A quarter of the queue (agent/nfqueue.py, QUEUE_LENGTH): whoever captured a SYN can open many connections and have
data held on each, and must not fill it for the rest. The oldest make room."""

MAX_IDENTIFIED: Final = 16_384
IDENTIFIED_NS: Final = 3600 * _SECOND
"""While agents are being installed, whoever has presented an identity is asked for one for an hour."""

Translate = Callable[[int, int, Address, int, Address, int], "tuple[Address, int] | None"]
"""(endpoint, protocol, source, port, destination, port) -> the address and port that the node's conntrack shows the
destination translated to, or None when it has no such connection. Raises BadPacket(NOT_READY) when it cannot tell."""


@dataclass(frozen=True, slots=True)
class DatapathSettings:
    """What an installation chooses."""

    identity_scope: NetworkSet
    """Where tokens, and so labels, may be sent."""
    pod_ranges: NetworkSet
    """Addresses that belong to pods; what lies outside may be a load balancer or a masquerading router."""
    node_addresses: frozenset[Address] = frozenset()
    """The node's own addresses, which masquerading puts in place of a pod's; a pod range may hold some of them."""
    require_translation_evidence: bool = True
    """Do not identify a server behind a translated address unless the node's conntrack shows the translation."""


@dataclass(slots=True, eq=False)
class Endpoint:
    """One local pod."""

    number: int
    pod: str
    addresses: frozenset[Address]
    identity: LocalIdentity | None
    policy: PolicyView
    clients: BoundedTable[Tuple5, ClientFlow] = field(default_factory=lambda: BoundedTable(MAX_HALF_OPEN, HALF_OPEN_NS))
    servers: BoundedTable[tuple[Address, int, int], ServerFlow] = field(
        default_factory=lambda: BoundedTable(MAX_HALF_OPEN, HALF_OPEN_NS)
    )
    answered: dict[Tuple5, ServerFlow] = field(default_factory=dict)
    """Members of ``servers`` whose SYN-ACK has left, by their tuple."""
    live: BoundedTable[Tuple5, Live] = field(default_factory=lambda: BoundedTable(MAX_LIVE, 1 << 62))
    """TCP connections."""
    live_datagrams: BoundedTable[Tuple5, Live] = field(
        default_factory=lambda: BoundedTable(MAX_LIVE_DATAGRAMS, 1 << 62)
    )
    """Flows of every other protocol: apart, because their ports cost nothing and would turn connections out."""
    denials: BoundedTable[tuple[Tuple5, int | None], PolicyView] = field(
        default_factory=lambda: BoundedTable(MAX_DENIALS, DENIAL_NS)
    )
    unanswered: BoundedTable[tuple[Address, int | None], bool] = field(
        default_factory=lambda: BoundedTable(MAX_BARE, UNANSWERED_NS)
    )
    minds_payload: BoundedTable[tuple[Address, int | None], bool] = field(
        default_factory=lambda: BoundedTable(MAX_BARE, MINDS_PAYLOAD_NS)
    )
    holds: BoundedTable[int, Held] = field(default_factory=lambda: BoundedTable(MAX_HALF_OPEN, HOLD_NS))
    """The flows that hold packets, by the id() of their queue."""
    held_packets: int = 0
    """Of all of them."""
    datagrams: DatagramTables = field(default_factory=DatagramTables)

    def deadlines(self) -> Iterator[int]:
        """The next deadline of each table that has one; monotonic nanoseconds."""
        own: tuple[BoundedTable[Any, Any], ...] = (
            self.holds, self.servers, self.clients, self.denials, self.unanswered, self.minds_payload
        )  # fmt: skip
        for table in (*own, *self.datagrams.timed()):
            deadline = table.next_deadline()
            if deadline is not None:
                yield deadline


@dataclass(frozen=True, slots=True)
class Acceptance:
    """An identified connection was accepted: all that it takes to accept the next one like it."""

    endpoint: int
    direction: Direction
    local: LocalIdentity
    peer: Peer
    address: Address
    """The peer's, as policy judged it; with ``port``, the destination's own."""
    port: int
    decision: Decision
    dialled: tuple[Address, int] | None
    """On egress: the destination as the local pod sees it."""
    protocol: int = Protocol.TCP
    ticket: bytes = b""
    """On ingress, of UDP: what the client may go on from."""


def _nobody_learns(_: Acceptance) -> None:
    """The Python data path alone needs no teaching."""


@dataclass(slots=True, eq=False)
class Shared:
    """What the parts of the data path work with together."""

    identities: Identities
    settings: DatapathSettings
    entropy: Callable[[int], bytes]
    translate: Translate
    events: list[FlowEvent] = field(default_factory=list)
    drops: Counter[DropReason] = field(default_factory=Counter)
    unproven_translations: int = 0
    """Servers accepted behind an outside address whose translation this node could not see."""
    pod_addresses: Counter[Address] = field(default_factory=Counter)
    """Addresses of the local pods, whatever the configured ranges say."""
    identified: BoundedTable[tuple[Address, int | None], bool] = field(
        default_factory=lambda: BoundedTable(MAX_IDENTIFIED, IDENTIFIED_NS)
    )
    """Who has presented an identity, while agents are being installed: address, and port where many share it."""
    sends: list[tuple[int, bytes]] = field(default_factory=list)
    """(endpoint, packet) of our own that no packet's result carries: it is time that asks for them."""
    orphans: list[tuple[int, Release]] = field(default_factory=list)
    """(endpoint, release) of held packets whose flow had to go."""
    teach: Callable[[Acceptance], None] = _nobody_learns
    """Told of every identified connection that was accepted (fast.py)."""
    counter: Callable[[], Counting] = PlainCounter
    """Makes what counts the datagrams of one client to one server: others may count by it, too (fast.py)."""
    window: Callable[[], Window] = ReplayWindow
    """Makes what the server knows of those counters."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One packet's turn: everything there is to know before anything is decided."""

    now: Instant
    pod: Endpoint
    hook: Hook
    ticket: int
    packet: Packet
    tuple5: Tuple5
    more: bool
    """Whether more packets of the same connection wait behind this one."""

    @property
    def accept(self) -> Verdict:
        """How an accepted packet passes: the mark goes on the last that waits, so that none overtakes another."""
        return Verdict.PASS if self.more else Verdict.ACCEPT


def is_pod_address(shared: Shared, address: Address) -> bool:
    """Tell whether an address belongs to some pod, here or elsewhere."""
    if shared.pod_addresses[address] > 0:
        return True
    return address in shared.settings.pod_ranges and address not in shared.settings.node_addresses


def note_identity(shared: Shared, turn: Turn, address: Address, port: int | None) -> None:
    """Somebody there presents an identity, good or bad. While agents are being installed: his node has its agent."""
    if turn.pod.policy.installing:
        shared.identified.put(_place(shared, address, port), True, turn.now.mono_ns)


def may_lack_agent(shared: Shared, turn: Turn, address: Address, port: int | None) -> bool:
    """Tell whether a peer may be without an identity only because its node has no agent yet."""
    if not turn.pod.policy.installing or shared.pod_addresses[address] > 0:
        return False
    return _may_be_pod(shared, address) and _place(shared, address, port) not in shared.identified


def _may_be_pod(shared: Shared, address: Address) -> bool:
    """Tell whether an address may be a pod's, or a node's that stands for a pod's."""
    settings = shared.settings
    ranges = settings.pod_ranges or settings.identity_scope
    return shared.pod_addresses[address] > 0 or address in ranges or address in settings.node_addresses


def _place(shared: Shared, address: Address, port: int | None) -> tuple[Address, int | None]:
    return address, None if is_pod_address(shared, address) else port


def judge(
    shared: Shared,
    turn: Turn,
    direction: Direction,
    tuple5: Tuple5,
    *,
    identity: Identity | None,
    address: Address,
    port: int | None,
    isn: int | None = None,
    proven: bool = False,
    announce_allow: bool = False,
    tolerated: bool = False,
) -> Decision:
    """Ask policy about one flow and report the answer, a denial once for all repetitions of one SYN.

    ``address`` and ``port`` are what policy judges: the peer's address, and the destination's own port. ``tolerated``:
    the connection was let in while agents were being installed.
    """
    endpoint = turn.pod
    decision = endpoint.policy.decide(direction, identity, address, tuple5[0], port)
    if not decision.allowed and identity is None and (tolerated or may_lack_agent(shared, turn, address, tuple5[4])):
        decision = _tolerate(endpoint.policy, decision, direction, address, tuple5[0], port)
    if announce_allow if decision.allowed else _is_news(turn, tuple5, isn):
        _announce(shared, turn, direction, tuple5, decision, identity, proven, (address, port))
    return decision


def _tolerate(
    policy: PolicyView, denial: Decision, direction: Direction, address: Address, protocol: int, port: int | None
) -> Decision:
    if not policy.could_allow(direction, address, protocol, port):
        return denial
    return replace(denial, allowed=True, reason=Reason.NOT_YET_IDENTIFIED)


def tolerate_unknown(shared: Shared, turn: Turn, direction: Direction, address: Address, port: int | None) -> bool:
    """Tell whether a connection that is older than the agent may go on while agents are being installed; report it.

    ``address`` and ``port`` are what policy judges. The other end may have an agent by now, on this node, too: its
    identity was not asked for when the connection began.
    """
    policy = turn.pod.policy
    if not policy.installing or not _may_be_pod(shared, address):
        return False
    if not policy.could_allow(direction, address, turn.tuple5[0], port):
        return False
    decision = Decision(True, Reason.NOT_YET_IDENTIFIED)
    _announce(shared, turn, direction, turn.tuple5, decision, None, False, (address, port))
    return True


EXPLAINED: Final = frozenset(
    {
        DropReason.MALFORMED_MESSAGE,
        DropReason.VERSION,
        DropReason.MALFORMED_ASSERTION,
        DropReason.BAD_SIGNATURE,
        DropReason.TRUST_DOMAIN,
        DropReason.EXPIRED,
        DropReason.NOT_YET_VALID,
        DropReason.UNKNOWN_SIGNER,
        DropReason.BAD_MAC,
        DropReason.RELAYED,
        DropReason.UNEXPLAINED_TRANSLATION,
    }
)
"""Failures of the exchange that people must be able to see for each connection; of all others the count is enough."""


def explain(shared: Shared, turn: Turn, failure: BadPacket | InvalidToken) -> None:
    """Report an exchange that failed, once for all repetitions of one SYN."""
    packet = turn.packet
    if failure.reason not in EXPLAINED:
        return
    answer = packet.flags & (SYN | ACK) == SYN | ACK
    ours = answer or turn.tuple5 in turn.pod.datagrams.clients
    isn = packet.acknowledgement - 1 if answer else packet.sequence
    if _is_news(turn, turn.tuple5, isn % SEQUENCE_SPACE):
        direction = Direction.EGRESS if ours else Direction.INGRESS
        decision = Decision(False, failure.reason, nearest=str(failure))
        _announce(shared, turn, direction, turn.tuple5, decision, None, False, None)


def _is_news(turn: Turn, tuple5: Tuple5, isn: int | None) -> bool:
    endpoint = turn.pod
    news = endpoint.denials.get((tuple5, isn)) is not endpoint.policy
    endpoint.denials.put((tuple5, isn), endpoint.policy, turn.now.mono_ns)
    return news


def _announce(
    shared: Shared,
    turn: Turn,
    direction: Direction,
    tuple5: Tuple5,
    decision: Decision,
    identity: Identity | None,
    proven: bool,
    judged: tuple[Address, int | None] | None,
) -> None:
    protocol, own, own_port, other, other_port = tuple5
    ends = (own, own_port, other, other_port)
    actual = None
    if direction is Direction.INGRESS:
        ends = (other, other_port, own, own_port)
    elif judged is not None and judged[1] is not None and judged != (other, other_port):
        actual = (judged[0], judged[1])
    event = FlowEvent(turn.now.wall_s, turn.pod.pod, direction, decision, protocol, *ends, identity, proven, actual)
    shared.events.append(event)


def tuple_of(packet: Packet, *, leaving: bool) -> Tuple5:
    """Return the packet's tuple from the pod's point of view."""
    if leaving:
        return packet.protocol, packet.source, packet.source_port, packet.destination, packet.destination_port
    return packet.protocol, packet.destination, packet.destination_port, packet.source, packet.source_port


def hold(shared: Shared, turn: Turn, held: Held) -> None:
    """Let the packet wait in the queue, for HOLD_NS at most. Raises BadPacket(HOLD_LIMIT)."""
    if len(held.packets) >= MAX_HELD_PACKETS or held.octets + turn.packet.length > MAX_HELD_OCTETS:
        raise BadPacket(DropReason.HOLD_LIMIT)
    while turn.pod.held_packets >= MAX_HELD_PER_POD and (oldest := turn.pod.holds.oldest()) is not None:
        drop_held(shared, turn.pod, oldest, DropReason.HOLD_LIMIT)
    if not held.packets:
        evicted = turn.pod.holds.put(id(held), held, turn.now.mono_ns)
        if evicted is not None:
            drop_held(shared, turn.pod, evicted, DropReason.HOLD_LIMIT)
    held.add(turn.ticket, turn.packet)
    turn.pod.held_packets += 1


def take_held(endpoint: Endpoint, held: Held) -> list[tuple[int, Packet]]:
    """Let held packets go; returns them in order, for whoever gives them their verdicts."""
    endpoint.holds.pop(id(held))
    waiting = held.take()
    endpoint.held_packets -= len(waiting)
    return waiting


def release_held(endpoint: Endpoint, held: Held, *, accept_last: bool) -> tuple[Release, ...]:
    """Let go of held packets in order; the mark, if any, goes on the last, so that none overtakes another."""
    waiting = take_held(endpoint, held)
    last = len(waiting) - 1
    return tuple(
        Release(ticket, Verdict.ACCEPT if accept_last and index == last else Verdict.PASS)
        for index, (ticket, _) in enumerate(waiting)
    )


def drop_held(shared: Shared, endpoint: Endpoint, held: Held, reason: DropReason) -> None:
    """Give up held packets: each is one counted drop, released with the next result."""
    for ticket, _ in take_held(endpoint, held):
        shared.drops[reason] += 1
        shared.orphans.append((endpoint.number, Release(ticket, Verdict.DROP, reason)))


def cut(shared: Shared, packet: Packet) -> Result:
    """End a connection by one of its TCP packets: both applications are told, and the packet itself never arrives."""
    shared.drops[DropReason.CUT] += 1
    # The reset towards the packet's receiver takes the packet's place in the queue; the other is sent.
    ahead, back = reset_for(packet, towards_sender=False), reset_for(packet, towards_sender=True)
    return Result(Verdict.PASS, packet=ahead, send=(back,))


def unmark(shared: Shared, turn: Turn, *, send: tuple[bytes, ...] = ()) -> Result:
    """Clear the connection's mark by a packet that no socket reads: without data, its UDP checksum wrong."""
    shared.drops[DropReason.CONSUMED] += 1
    return Result(Verdict.PASS_CLEAR, packet=with_message(turn.packet, b"", AGAIN, sealed=True), send=send)
