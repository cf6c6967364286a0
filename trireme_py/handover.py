"""What the engine in C knew of a connection, read and given to the Python data path to go on with; and the way back,
for connections that have nothing odd about them any more (docs/fastpath.md).

Layouts: trireme_py/fastpath/handover.c. The octets come from our own process; the numbers in them name objects that may
have been let go meanwhile, and a flow that cannot be put together again is left out: its ends repeat themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Final

from trireme_py import messages, wire
from trireme_py.client import ClientSide
from trireme_py.datagram_flows import ClientDatagrams, ServerDatagrams, Stage, Ticket, Warm
from trireme_py.endpoint import Endpoint, Shared
from trireme_py.errors import BadPacket, InvalidToken
from trireme_py.flows import ClientFlow, Live, ServerFlow, Tuple5
from trireme_py.handshake import State
from trireme_py.identities import LocalIdentity, Peer
from trireme_py.messages import from_16, to_16
from trireme_py.model import Direction, Instant, PolicyView, Protocol
from trireme_py.packet import parse_packet_untrusted, with_tcp
from trireme_py.server import ServerSide

CLIENT, SERVER, LIVE, DATAGRAM_CLIENT, DATAGRAM_SERVER = 1, 2, 3, 4, 5
DIRECTIONS: Final = (Direction.INGRESS, Direction.EGRESS)
"""By the engine's number."""

_HEAD = Struct("!BHB16s16sHH")
_CLIENT = Struct("!BIIIIIQ16s96s28s")
_SERVER = Struct("!BIIII44s16s")
_LIVE = Struct("!BIIII16sH")
_DATAGRAM_CLIENT = Struct("!B??IQ16s16sH28sB")
_DATAGRAM_SERVER = Struct("!B?II44s88s")
_STATES: Final = {
    1: State.SYN_CREATED,
    2: State.SYN_ACK_CONSUMED,
    3: State.ACK_CREATED,
    4: State.SYN_CONSUMED,
    5: State.SYN_ACK_CREATED,
}
_NUMBERS: Final = {state: number for number, state in _STATES.items()}
MAX_HEADERS: Final = 120
"""What the engine keeps of a packet (TR_HEADERS)."""

_STAGES: Final = {1: Stage.RESUMED, 2: Stage.RESUME_CONSUMED, 3: Stage.PROVEN}

Flow = ClientFlow | ServerFlow | ClientDatagrams | ServerDatagrams | tuple[Tuple5, Live]
"""What the engine can know of a connection; of an accepted one, with its tuple."""
Known = Callable[[int], "Peer | LocalIdentity | None"]
"""Who a token's number stands for."""
PolicyOf = Callable[[int], PolicyView]
"""Which policy a number stands for."""
Lent = Callable[[int], "Warm | Ticket | None"]
"""Which exchange of a moment ago the engine counts by."""


class Reader:
    """Puts the flows of one local pod together again."""

    __slots__ = ("_client_side", "_known", "_lent", "_pod", "_policy_of", "_server_side", "_shared")

    def __init__(self, shared: Shared, pod: Endpoint, known: Known, policy_of: PolicyOf, lent: Lent) -> None:
        self._shared = shared
        self._client_side = ClientSide(shared)
        self._server_side = ServerSide(shared)
        self._pod = pod
        self._known = known
        self._policy_of = policy_of
        self._lent = lent

    def adopt(self, octets: bytes, now: Instant) -> None:
        """Put the flows into the pod's tables, as if they had always been there."""
        pod = self._pod
        for flow in self.read(octets):
            if isinstance(flow, ClientFlow):
                self._client_side.remember(pod, flow, now.mono_ns)
            elif isinstance(flow, ServerFlow):
                self._server_side.remember(pod, flow, now.mono_ns)
                if flow.server_isn is not None:
                    pod.answered[flow.tuple5] = flow
            elif isinstance(flow, ClientDatagrams):
                pod.datagrams.clients.put(flow.key, flow, now.mono_ns)
            elif isinstance(flow, ServerDatagrams):
                pod.datagrams.servers.put(flow.key, flow, now.mono_ns)
            else:
                table = pod.live if flow[0][0] == Protocol.TCP else pod.live_datagrams
                table.put(flow[0], flow[1], now.mono_ns)

    def read(self, octets: bytes) -> Iterator[Flow]:
        """Yield each flow; accepted connections with their tuple."""
        readers: dict[int, Callable[[Tuple5, bytes], Flow | None]] = {
            CLIENT: self._client,
            SERVER: self._server,
            LIVE: self._live,
            DATAGRAM_CLIENT: self._datagram_client,
            DATAGRAM_SERVER: self._datagram_server,
        }
        while octets:
            kind, size, protocol, own, other, own_port, other_port = _HEAD.unpack_from(octets)
            tuple5 = (protocol, from_16(own), own_port, from_16(other), other_port)
            record, octets = octets[_HEAD.size : size], octets[size:]
            try:
                flow = readers[kind](tuple5, record)
            except (BadPacket, InvalidToken):
                continue  # the pre-shared key behind it was withdrawn, say
            if flow is not None:
                yield flow

    def _client(self, tuple5: Tuple5, octets: bytes) -> ClientFlow | None:
        state, isn, server_isn, policy, local_number, peer_number, proven_ns, nonce, fixed, proof = _CLIENT.unpack_from(
            octets
        )
        local, peer = self._known(local_number), self._known(peer_number)
        syn, ack = _packets(octets[_CLIENT.size :])
        if not isinstance(local, LocalIdentity):
            return None
        flow = ClientFlow(tuple5, isn, local, parse_packet_untrusted(syn), _STATES[state])
        flow.message = messages.encode_syn(local.id, nonce, local.assertion)
        flow.sent = 1
        if flow.state is State.SYN_CREATED:
            return flow
        if not isinstance(peer, Peer):
            return None
        _, _, _, server, _, server_port, _, _ = wire.SYN_ACK.unpack(fixed)
        flow.peer, flow.actual, flow.policy = peer, (from_16(server), server_port), self._policy_of(policy)
        flow.server_isn, flow.syn_ack_fixed, flow.proof = server_isn, fixed, proof
        flow.asked_ns, flow.met = proven_ns, True
        if ack:
            flow.ack = parse_packet_untrusted(ack)
        return flow

    def _server(self, tuple5: Tuple5, octets: bytes) -> ServerFlow | None:
        state, isn, server_isn, local_number, peer_number, syn_fixed, nonce = _SERVER.unpack_from(octets)
        local, peer = self._known(local_number), self._known(peer_number)
        (syn_ack,) = _packets(octets[_SERVER.size :])
        if not isinstance(local, LocalIdentity) or not isinstance(peer, Peer):
            return None
        _, own, own_port, other, other_port = tuple5
        key = (other, other_port or 0, isn)
        flow = ServerFlow(key, tuple5, _STATES[state], syn_fixed, peer, local)
        if flow.state is State.SYN_ACK_CREATED:
            flow.nonce, flow.server_isn = nonce, server_isn
            flow.pair_key = self._shared.identities.pair_key(local, peer, local_is_client=False)
            ends = (own, own_port or 0), (other, other_port or 0)
            flow.message = messages.encode_syn_ack(syn_fixed, local.id, nonce, *ends, local.assertion, flow.pair_key)
            flow.syn_ack = parse_packet_untrusted(syn_ack)
        return flow

    def _live(self, tuple5: Tuple5, octets: bytes) -> tuple[Tuple5, Live] | None:
        direction, isn, server_isn, policy, peer_number, address, port = _LIVE.unpack_from(octets)
        peer = self._known(peer_number)
        if not isinstance(peer, Peer):
            return None
        ingress = DIRECTIONS[direction] is Direction.INGRESS
        live = Live(DIRECTIONS[direction], peer.identity, from_16(address), port, self._policy_of(policy))
        if tuple5[0] == Protocol.TCP:
            live.isn, live.server_isn, live.peer = isn, server_isn if ingress else None, peer
        return tuple5, live

    def _datagram_client(self, tuple5: Tuple5, octets: bytes) -> ClientDatagrams | None:
        stage, waits, confirmed, session, began_ns, nonce, actual, port, proof, count = _DATAGRAM_CLIENT.unpack_from(
            octets
        )
        warm = self._lent(session)
        if not isinstance(warm, Warm):
            return None
        rest = octets[_DATAGRAM_CLIENT.size :]
        resumes = [rest[at : at + wire.RESUME.size] for at in range(0, count * wire.RESUME.size, wire.RESUME.size)]
        (first,) = _packets(rest[count * wire.RESUME.size :])
        hello = messages.encode_syn(
            warm.local.id, nonce, warm.local.assertion, kind=wire.MessageType.HELLO,
            flags=wire.ASKS_ANSWER if waits else 0,
        )  # fmt: skip
        flow = ClientDatagrams(
            tuple5, warm.local, hello, parse_packet_untrusted(first), waits, _STAGES[stage], began_ns, warm=warm
        )
        flow.resumes = {wire.RESUME.unpack(resume)[2]: resume for resume in resumes}
        if confirmed:
            flow.confirmed, flow.peer, flow.actual, flow.proof = 1, warm.peer, (from_16(actual), port), proof
        return flow

    def _datagram_server(self, tuple5: Tuple5, octets: bytes) -> ServerDatagrams | None:
        stage, waits, session, request, hello_fixed, confirm = _DATAGRAM_SERVER.unpack_from(octets)
        ticket = self._lent(session)
        if not isinstance(ticket, Ticket):
            return None
        return ServerDatagrams(
            tuple5, _STAGES[stage], hello_fixed, ticket.peer, ticket.local, ticket.key, waits, request, confirm=confirm
        )  # fmt: skip


def is_settled(live: Live, flow: ClientFlow | None, policy: PolicyView) -> bool:
    """Tell whether an accepted connection, and the flow that opened it, is one that the engine could have accepted."""
    if live.peer is None or live.cut or live.policy is not policy:
        return False
    if flow is None:
        return True
    if flow.state is not State.ACK_CREATED or flow.peer is None or flow.isn != live.isn:
        return False
    if flow.repeats or flow.taken_back or flow.resynchronising or flow.held.packets:
        return False
    return flow.ack is not None and max(flow.syn.body, flow.ack.body) <= MAX_HEADERS


def write(tuple5: Tuple5, live: Live, flow: ClientFlow | None, policy: int, local: int, peer: int) -> bytes:
    """Write a settled connection as the engine would; ``policy``, ``local`` and ``peer`` are its numbers for those."""
    octets = b""
    if flow is not None:
        assert flow.ack is not None
        assert flow.message is not None
        headers = [with_tcp(packet, b"") for packet in (flow.syn, flow.ack)]
        octets = _record(
            CLIENT, tuple5,
            _CLIENT.pack(
                _NUMBERS[flow.state], flow.isn, flow.server_isn, policy, local, peer, flow.asked_ns,
                flow.message[wire.SYN.size - wire.NONCE_SIZE : wire.SYN.size], flow.syn_ack_fixed, flow.proof,
            ),
            *(bytes([len(one)]) + one for one in headers),
        )  # fmt: skip
    return octets + _record(
        LIVE, tuple5,
        _LIVE.pack(
            DIRECTIONS.index(live.direction), live.isn, live.server_isn or 0, policy, peer, to_16(live.address),
            live.port,
        ),
    )  # fmt: skip


def _record(kind: int, tuple5: Tuple5, *parts: bytes) -> bytes:
    protocol, own, own_port, other, other_port = tuple5
    rest = b"".join(parts)
    return _HEAD.pack(kind, _HEAD.size + len(rest), protocol, to_16(own), to_16(other), own_port, other_port) + rest


def _packets(octets: bytes) -> Iterator[bytes]:
    """Yield the packets at the end of a record, each behind its length."""
    while octets:
        size = octets[0]
        yield octets[1 : 1 + size]
        octets = octets[1 + size :]
