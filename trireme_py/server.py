"""The server's end: somebody opens a connection to the local pod."""

from __future__ import annotations

from typing import Final

from trireme_py import messages, wire
from trireme_py.endpoint import Acceptance, Endpoint, Shared, Turn, drop_held, hold, judge, release_held
from trireme_py.errors import BadPacket
from trireme_py.flows import Live, ServerFlow
from trireme_py.handshake import State, Step, advance
from trireme_py.model import Direction, DropReason, Reason, Result, Verdict
from trireme_py.packet import (
    ACK,
    FIN,
    RST,
    SEQUENCE_SPACE,
    has_fast_open,
    tcp_checksum_is_right,
    with_tcp,
)

PROOF = wire.ACK.size

MAX_REPEATS: Final = 5
"""SYN-ACKs we repeat for one connection; the pod's kernel repeats its own besides."""
REPEAT_INTERVAL_NS: Final = 20_000_000
"""A burst of unproven segments asks for the proof once."""
WINDOW: Final = 1 << 20
"""How far beyond the first octet a client may send before its proof has arrived: a generous initial window."""


class ServerSide:
    """Each method takes one packet of a connection that is opened to the local pod, and returns its result.

    All raise BadPacket or InvalidToken for what is to be dropped; state changes only after everything was verified.
    """

    __slots__ = ("_shared",)

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def net_syn(self, turn: Turn) -> Result:
        """A SYN arrives: who asks, and would policy let that one in? Nothing is believed for good before the ACK."""
        shared, endpoint, packet, tuple5 = self._shared, turn.pod, turn.packet, turn.tuple5
        if not tcp_checksum_is_right(packet):
            raise BadPacket(DropReason.BAD_CHECKSUM)
        live = endpoint.live.get(tuple5)
        if live is not None and live.isn == packet.sequence:
            # A late copy of an accepted connection's SYN: the pod's kernel answers it with a bare ACK. Should it answer
            # with a SYN-ACK instead, that one finds no SYN.
            return Result(Verdict.PASS, packet=with_tcp(packet, b"", without_fast_open=True))
        peer = None
        syn_fixed = b""
        # Somebody outside the identity scope would be answered with our pod's own token; he stays unidentified instead.
        in_scope = endpoint.identity is not None and packet.source in shared.settings.identity_scope
        if in_scope and messages.is_message(packet.payload):
            message = messages.decode_syn_untrusted(packet.payload)
            peer = shared.identities.resolve_untrusted(turn.now, endpoint.number, message.id, message.assertion)
            syn_fixed = message.fixed
        key = (packet.source, packet.source_port or 0, packet.sequence)
        flow = endpoint.servers.get(key)
        if flow is not None and flow.tuple5 == tuple5 and _repeats(flow, syn_fixed):
            peer = flow.peer
        else:
            if flow is not None and flow.server_isn is not None and flow.tuple5 != tuple5:
                raise BadPacket(DropReason.UNEXPECTED, "another port than the SYN that was answered")
            flow = None  # the client's agent began anew; nobody off the path knows this number
        decision = judge(
            shared, turn, Direction.INGRESS, tuple5, identity=peer.identity if peer else None,
            address=packet.source, port=packet.destination_port, isn=packet.sequence,
        )  # fmt: skip
        if not decision.allowed:
            raise BadPacket(DropReason.POLICY)
        if flow is None:
            step = Step.CONSUME_SYN if peer else Step.ADMIT_BARE_SYN
            flow = ServerFlow(key, tuple5, advance(State.CLOSED, step), syn_fixed, peer, endpoint.identity)
        self.remember(endpoint, flow, turn.now.mono_ns)
        if not packet.payload_length and not has_fast_open(packet):
            return Result(Verdict.PASS)
        # Data of a SYN is never delivered: nobody has proved anything yet.
        return Result(Verdict.PASS, packet=with_tcp(packet, b"", without_fast_open=True))

    def remember(self, endpoint: Endpoint, flow: ServerFlow, mono_ns: int) -> None:
        """Remember a half-open connection, and take leave of whatever goes for it."""
        replaced = endpoint.servers.get(flow.key)
        evicted = endpoint.servers.put(flow.key, flow, mono_ns)
        if replaced is not None and replaced is not flow:
            self.forget(endpoint, replaced, DropReason.UNPROVEN)
        if evicted is not None:
            self.forget(endpoint, evicted, DropReason.TABLE_FULL)

    def forget(self, endpoint: Endpoint, flow: ServerFlow, reason: DropReason) -> None:
        """Take leave of a connection that is no longer half open."""
        if endpoint.answered.get(flow.tuple5) is flow:
            del endpoint.answered[flow.tuple5]
        drop_held(self._shared, endpoint, flow.held, reason)

    def app_syn_ack(self, turn: Turn) -> Result:
        """The pod's SYN-ACK leaves: attach the proof of who the pod is, if the SYN said who asked.

        It is matched to its SYN by the peer and the number it acknowledges: with a sidecar's REDIRECT it leaves with
        the proxy's port here, and is translated back later.
        """
        endpoint, packet = turn.pod, turn.packet
        key = (packet.destination, packet.destination_port or 0, (packet.acknowledgement - 1) % SEQUENCE_SPACE)
        flow = endpoint.servers.get(key)
        if flow is None:
            live = endpoint.live.get(turn.tuple5)
            if live is not None and live.isn == key[2] and live.server_isn == packet.sequence:
                # The pod's kernel did not take the ACK that we let through (its accept queue was full, say) and asks
                # for it once more. A silent client would else never be served.
                return Result(Verdict.PASS)
            raise BadPacket(DropReason.NO_STATE, "SYN-ACK without a SYN")
        state = advance(flow.state, Step.CREATE_SYN_ACK if flow.peer else Step.SEND_BARE_SYN_ACK)
        if flow.peer is not None and not flow.message:
            flow.message = self._create_syn_ack(flow)
        flow.state, flow.server_isn, flow.syn_ack = state, packet.sequence, packet
        endpoint.answered[flow.tuple5] = flow
        for tuple5 in {flow.tuple5, turn.tuple5}:
            # The pod's kernel begins anew, so what went before on these ports is over. Should this exchange be
            # forgotten before its proof, its data must not pass for that of the old connection.
            old = endpoint.live.get(tuple5)
            if old is not None and old.isn != flow.key[2]:
                endpoint.live.pop(tuple5)
        return Result(Verdict.PASS_CLEAR, packet=with_tcp(packet, flow.message) if flow.message else None)

    def _create_syn_ack(self, flow: ServerFlow) -> bytes:
        assert flow.peer is not None
        assert flow.local is not None
        _, own, own_port, other, other_port = flow.tuple5
        flow.nonce = self._shared.entropy(wire.NONCE_SIZE)
        flow.pair_key = self._shared.identities.pair_key(flow.local, flow.peer, local_is_client=False)
        return messages.encode_syn_ack(
            flow.syn_fixed, flow.local.id, flow.nonce, (own, own_port or 0), (other, other_port or 0),
            flow.local.assertion, flow.pair_key,
        )  # fmt: skip

    def find_by_proof(self, turn: Turn) -> ServerFlow | None:
        """Find the half-open connection whose first octet this proof would stand in front of."""
        packet = turn.packet
        if not messages.is_message(packet.payload):
            return None
        isn = (packet.sequence + PROOF - 1) % SEQUENCE_SPACE
        flow = turn.pod.servers.get((packet.source, packet.source_port or 0, isn))
        if flow is None or flow.peer is None or flow.tuple5 != turn.tuple5:
            return None
        return flow

    def net_proof(self, turn: Turn, flow: ServerFlow) -> Result:
        """The client's proof arrives, in front of its first octets: check it, take it off, let the rest through."""
        packet = turn.packet
        if not tcp_checksum_is_right(packet):
            raise BadPacket(DropReason.BAD_CHECKSUM)
        proof = messages.decode_ack_untrusted(packet.payload)
        state = advance(flow.state, Step.CONSUME_ACK)
        expected = messages.ack_mac(flow.pair_key, flow.syn_fixed, flow.message[: wire.SYN_ACK.size], proof.header)
        messages.check_mac(expected, proof.mac)
        if packet.acknowledgement != ((flow.server_isn or 0) + 1) % SEQUENCE_SPACE:
            raise BadPacket(DropReason.UNEXPECTED, "proof that acknowledges something else")
        self._establish(turn, flow, state)
        released = release_held(turn.pod, flow.held, accept_last=not turn.more)
        rest = with_tcp(packet, packet.payload[PROOF:], sequence=packet.sequence + PROOF)
        return Result(Verdict.PASS if released else turn.accept, packet=rest, release=released)

    def net_segment(self, turn: Turn, flow: ServerFlow) -> Result:
        """Anything else arrives on a half-open connection."""
        now, packet = turn.now, turn.packet
        if packet.flags & RST:
            # The pod's kernel forgets a half-open connection on these conditions, and so do we (tcp_check_req()).
            exact = packet.sequence == (flow.key[2] + 1) % SEQUENCE_SPACE
            sensible = not packet.flags & ACK or packet.acknowledgement == ((flow.server_isn or 0) + 1) % SEQUENCE_SPACE
            if exact and sensible and tcp_checksum_is_right(packet):
                turn.pod.servers.pop(flow.key)
                self.forget(turn.pod, flow, DropReason.UNPROVEN)
            return Result(Verdict.PASS)
        if packet.acknowledgement != ((flow.server_isn or 0) + 1) % SEQUENCE_SPACE:
            raise BadPacket(DropReason.UNEXPECTED, "acknowledges something else")
        if flow.peer is None:
            self._establish(turn, flow, advance(flow.state, Step.ADMIT_BARE_ACK))
            return Result(turn.accept)
        empty = not packet.payload_length and not packet.flags & FIN
        if not empty:
            if (packet.sequence - flow.key[2] - 1) % SEQUENCE_SPACE > WINDOW:
                raise BadPacket(DropReason.UNEXPECTED, "outside any initial window")
            hold(self._shared, turn, flow.held)
        # The proof was lost or overtaken. Ask for it by repeating the SYN-ACK, without waiting for the kernel's timer.
        send: tuple[bytes, ...] = ()
        due = flow.repeats < MAX_REPEATS and now.mono_ns - flow.repeated_ns >= REPEAT_INTERVAL_NS
        if flow.syn_ack is not None and due:
            flow.repeats += 1
            flow.repeated_ns = now.mono_ns
            send = (flow.syn_ack.data,)
        if empty:
            self._shared.drops[DropReason.UNPROVEN] += 1
            return Result(Verdict.DROP, DropReason.UNPROVEN, send=send)
        return Result(Verdict.HOLD, send=send)

    def _establish(self, turn: Turn, flow: ServerFlow, state: State) -> None:
        """Commit: the connection is real. Raises BadPacket(POLICY) if policy has changed its mind since the SYN."""
        endpoint, now = turn.pod, turn.now
        identity = flow.peer.identity if flow.peer else None
        _, _, own_port, other, _ = flow.tuple5
        decision = judge(
            self._shared, turn, Direction.INGRESS, flow.tuple5, identity=identity, address=other,
            port=own_port, isn=flow.key[2], proven=identity is not None, announce_allow=True,
        )  # fmt: skip
        if not decision.allowed:
            raise BadPacket(DropReason.POLICY)
        flow.state = state
        live = Live(
            Direction.INGRESS, identity, other, own_port, endpoint.policy, flow.key[2], flow.server_isn,
            tolerated=decision.reason is Reason.NOT_YET_IDENTIFIED, peer=flow.peer,
        )  # fmt: skip
        endpoint.live.put(flow.tuple5, live, now.mono_ns)
        if flow.syn_ack is not None and flow.syn_ack.source_port != own_port:
            # Behind a sidecar's REDIRECT the pod's packets leave from the proxy's port, as far as we can see.
            protocol, own, _, other, other_port = flow.tuple5
            endpoint.live.put((protocol, own, flow.syn_ack.source_port, other, other_port), live, now.mono_ns)
        endpoint.servers.pop(flow.key)
        if endpoint.answered.get(flow.tuple5) is flow:
            del endpoint.answered[flow.tuple5]
        if flow.peer is not None and flow.local is not None:
            lesson = Acceptance(
                endpoint.number, Direction.INGRESS, flow.local, flow.peer, other, own_port or 0, decision, None
            )
            self._shared.teach(lesson)

    def app_segment(self, turn: Turn) -> Result:
        """Anything but a SYN-ACK leaves the pod on a half-open connection: it can have nothing to say yet."""
        if turn.packet.payload_length:
            raise BadPacket(DropReason.UNPROVEN, "data before the proof")
        return Result(Verdict.PASS)


def _repeats(flow: ServerFlow, syn_fixed: bytes) -> bool:
    """Tell whether a SYN of the same tuple and number, with that message or none, says again what ``flow`` knows.

    A bare one repeats an identified one; and a token that comes late changes nothing once a bare SYN was answered,
    because the client has taken that answer.
    """
    return not syn_fixed or syn_fixed == flow.syn_fixed or (flow.peer is None and flow.server_isn is not None)
