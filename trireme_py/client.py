"""The client's end: the local pod opens a connection."""

from __future__ import annotations

from typing import Final

from trireme_py import messages, wire
from trireme_py.endpoint import (
    Acceptance,
    Endpoint,
    Shared,
    Turn,
    cut,
    drop_held,
    explain,
    hold,
    judge,
    note_identity,
    release_held,
)
from trireme_py.errors import BadPacket
from trireme_py.flows import BoundedTable, ClientFlow, Live
from trireme_py.handshake import AWAITING_ACK, AWAITING_SYN_ACK, State, Step, advance
from trireme_py.model import Address, Decision, Direction, DropReason, Instant, Reason, Result, Verdict
from trireme_py.packet import (
    ACK,
    FIN,
    RST,
    SEQUENCE_SPACE,
    URG,
    Packet,
    reset_for,
    tcp_checksum_is_right,
    with_tcp,
)
from trireme_py.relay import check_ends

PROOF = wire.ACK.size

RESYNCHRONISE_NS: Final = 500_000_000
"""How far apart two repeated SYN-ACKs must be to say that nothing of ours arrives. The server's kernel repeats its own
after one and three seconds. The server's agent asks sooner, and a late or doubled copy comes whenever it likes."""


class ClientSide:
    """Each method takes one packet of a connection that the local pod opens, and returns its result.

    All raise BadPacket or InvalidToken for what is to be dropped; state changes only after everything was verified.
    """

    __slots__ = ("_shared",)

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def app_syn(self, turn: Turn) -> Result:
        """The pod's SYN leaves: attach who the pod is."""
        endpoint, packet = turn.pod, turn.packet
        flow = endpoint.clients.get(turn.tuple5)
        if flow is not None and flow.isn == packet.sequence and flow.resynchronising:
            flow.resynchronising = False
            return Result(Verdict.PASS)  # our own bare copy; it must not disturb the mark
        if flow is not None and flow.isn == packet.sequence and flow.state not in AWAITING_SYN_ACK:
            # The kernel's timer was faster than the SYN-ACK, which we have let through meanwhile.
            raise BadPacket(DropReason.REPEATED, "SYN that was answered")
        # Each repetition is sent as the kernel made it: its timestamp is new, and after some losses it asks for less
        # (no ECN, no Multipath TCP).
        syn = _without_data(packet)
        if flow is None or flow.isn != packet.sequence:
            flow = self._open(turn, syn)
        target = (packet.destination, packet.destination_port)
        in_scope = packet.destination in self._shared.settings.identity_scope
        if not in_scope and not self._may_be_node(packet):
            # Nobody there can be identified, so there is no answer to wait for.
            self._judge_silent(turn)
        # The first two go with a token, then every other one: something on the path may mind data in a SYN. Not where a
        # server has answered that we refuse: asked without one, it would take us for somebody unidentified.
        bare = not in_scope or (flow.sent >= 2 and flow.sent % 2 == 0 and not flow.met)
        if endpoint.minds_payload.get(target):
            endpoint.minds_payload.put(target, True, turn.now.mono_ns)
            bare = True
        elif endpoint.unanswered.get(target):
            bare = True
        local = flow.local
        if local is None or packet.body + wire.SYN.size + len(local.assertion) > wire.PATH_MTU:
            bare = True  # extension headers left no room: unidentified beats fragmented
        if bare or local is None:
            state = advance(flow.state, Step.SEND_BARE_SYN)
            rewritten = syn.data
        else:
            state = advance(flow.state, Step.CREATE_SYN)
            if flow.message is None:
                nonce = self._shared.entropy(wire.NONCE_SIZE)
                flow.message = messages.encode_syn(local.id, nonce, local.assertion)
            rewritten = with_tcp(syn, flow.message)
        flow.state, flow.syn = state, syn
        flow.sent += 1
        flow.last_was_bare = bare
        self.remember(turn.pod, flow, turn.now.mono_ns)
        return Result(Verdict.PASS_CLEAR, packet=rewritten)

    def _open(self, turn: Turn, syn: Packet) -> ClientFlow:
        endpoint, packet, key = turn.pod, turn.packet, turn.tuple5
        if not endpoint.policy.may_open(packet.protocol) and not self._may_be_node(packet):
            self._judge_silent(turn)
        return ClientFlow(key, packet.sequence, endpoint.identity, syn)

    def _may_be_node(self, packet: Packet) -> bool:
        """Tell whether a SYN may be for the pod's own node, which policy cannot forbid. Only the answer tells: the
        node's own never comes here (docs/datapath.md), and one from behind a NodePort is judged."""
        return packet.destination in self._shared.settings.node_addresses

    def remember(self, endpoint: Endpoint, flow: ClientFlow, mono_ns: int) -> None:
        """Remember a connection that is being opened, and give up what is held of whatever goes for it."""
        replaced = endpoint.clients.get(flow.key)
        evicted = endpoint.clients.put(flow.key, flow, mono_ns)
        if replaced is not None and replaced is not flow:
            drop_held(self._shared, endpoint, replaced.held, DropReason.HOLD_TIMEOUT)
        if evicted is not None:
            drop_held(self._shared, endpoint, evicted.held, DropReason.TABLE_FULL)

    def net_syn_ack(self, turn: Turn, flow: ClientFlow) -> Result:
        """The server answers: believe it, judge it, and prove ourselves when asked again."""
        packet = turn.packet
        if packet.acknowledgement != (flow.isn + 1) % SEQUENCE_SPACE:
            return self._payload_acknowledged(turn, flow)
        if not tcp_checksum_is_right(packet):
            raise BadPacket(DropReason.BAD_CHECKSUM)
        if not messages.is_message(packet.payload):
            return self._bare_syn_ack(turn, flow)
        if flow.message is not None:
            return self._identified_syn_ack(turn, flow)
        return self._taken_back(flow, packet)

    def _payload_acknowledged(self, turn: Turn, flow: ClientFlow) -> Result:
        """A server that takes data in any SYN has handed our token to its application: take it back, come again."""
        packet = turn.packet
        sent = len(flow.message or b"") or flow.taken_back
        if not sent or packet.acknowledgement != (flow.isn + 1 + sent) % SEQUENCE_SPACE:
            raise BadPacket(DropReason.UNEXPECTED, "SYN-ACK of another SYN")
        if flow.message is None:
            return self._taken_back(flow, packet)
        if flow.state not in AWAITING_SYN_ACK or flow.last_was_bare:
            raise BadPacket(DropReason.UNEXPECTED, "late SYN-ACK")
        return self._start_over_bare(turn, flow, turn.pod.minds_payload, DropReason.PAYLOAD_ACKNOWLEDGED)

    def _taken_back(self, flow: ClientFlow, packet: Packet) -> Result:
        """An answer to the SYN that we have taken back: a copy, or our reset was lost. The kernel's next SYN helps."""
        if not flow.taken_back or flow.state not in AWAITING_SYN_ACK:
            raise BadPacket(DropReason.UNEXPECTED, "token in answer to none")
        self._shared.drops[DropReason.UNEXPECTED] += 1
        return Result(Verdict.DROP, DropReason.UNEXPECTED, send=(reset_for(packet, towards_sender=True),))

    def _start_over_bare(
        self, turn: Turn, flow: ClientFlow, table: BoundedTable[tuple[Address, int | None], bool], reason: DropReason
    ) -> Result:
        """Take the connection back and open it again without a token, now and for as long as ``table`` remembers."""
        packet = turn.packet
        table.put((packet.source, packet.source_port), True, turn.now.mono_ns)
        flow.taken_back, flow.message = len(flow.message or b""), None
        self._shared.drops[reason] += 1
        explain(self._shared, turn, BadPacket(reason, "nothing shows who translates; the connection starts over"))
        return Result(Verdict.DROP, reason, send=(reset_for(packet, towards_sender=True), flow.syn.data))

    def _identified_syn_ack(self, turn: Turn, flow: ClientFlow) -> Result:
        shared, packet = self._shared, turn.packet
        payload = packet.payload
        if flow.syn_ack_fixed and payload.startswith(flow.syn_ack_fixed) and packet.sequence == flow.server_isn:
            return self._asked_again(turn, flow)
        answer = messages.decode_syn_ack_untrusted(payload)
        if flow.message is None or flow.local is None:
            raise BadPacket(DropReason.UNEXPECTED)
        state = advance(flow.state, Step.CONSUME_SYN_ACK)
        syn_fixed = flow.message[: wire.SYN.size]
        peer = shared.identities.resolve_untrusted(turn.now, turn.pod.number, answer.id, answer.assertion)
        key = shared.identities.pair_key(flow.local, peer, local_is_client=True)
        messages.check_mac(messages.syn_ack_mac(key, syn_fixed, answer.fixed[: wire.SYN_ACK_MAC_OFFSET]), answer.mac)
        evident = check_ends(shared, turn.pod, flow.key, answer.server, answer.client)
        if not evident and shared.settings.require_translation_evidence:
            return self._start_over_bare(turn, flow, turn.pod.unanswered, DropReason.UNEXPLAINED_TRANSLATION)
        note_identity(shared, turn, *answer.server)
        decision = judge(
            shared, turn, Direction.EGRESS, flow.key, identity=peer.identity, address=answer.server[0],
            port=answer.server[1], isn=flow.isn, proven=True,
        )  # fmt: skip
        flow.met = True
        if not decision.allowed:
            return self._refuse(packet)
        shared.unproven_translations += not evident
        flow.state, flow.peer, flow.actual = state, peer, answer.server
        flow.server_isn, flow.syn_ack_fixed, flow.policy = packet.sequence, answer.fixed, turn.pod.policy
        flow.proof = messages.encode_ack(syn_fixed, answer.fixed, key)
        self.remember(turn.pod, flow, turn.now.mono_ns)
        return Result(Verdict.PASS, packet=with_tcp(packet, b""))

    def _bare_syn_ack(self, turn: Turn, flow: ClientFlow) -> Result:
        endpoint, packet = turn.pod, turn.packet
        if flow.state is State.ACK_CREATED and packet.sequence == flow.server_isn:
            # Our proof was taken, but the server's kernel has missed the ACK: ours is to repeat that one.
            return Result(Verdict.PASS)
        state = advance(flow.state, Step.ADMIT_BARE_SYN_ACK)
        protocol, own, own_port, address, port = flow.key
        actual = (address, port or 0)
        if endpoint.policy.isolated(Direction.EGRESS):
            actual = self._shared.translate(endpoint.number, protocol, own, own_port or 0, *actual) or actual
        decision = judge(
            self._shared, turn, Direction.EGRESS, flow.key, identity=None, address=actual[0],
            port=actual[1], isn=flow.isn,
        )  # fmt: skip
        if not decision.allowed:
            return self._refuse(packet)
        if flow.last_was_bare and flow.message is not None:
            endpoint.unanswered.put((address, port), True, turn.now.mono_ns)
        if flow.state in AWAITING_SYN_ACK:
            flow.server_isn = packet.sequence
        flow.state, flow.actual, flow.policy = state, actual, endpoint.policy
        self.remember(turn.pod, flow, turn.now.mono_ns)
        stripped = with_tcp(packet, b"") if packet.payload_length else None
        return Result(Verdict.PASS, packet=stripped)

    def _refuse(self, packet: Packet) -> Result:
        """Egress policy says no: the server is told at once, so that it keeps nothing half open."""
        self._shared.drops[DropReason.POLICY] += 1
        return Result(Verdict.DROP, DropReason.POLICY, send=(reset_for(packet, towards_sender=True),))

    def _asked_again(self, turn: Turn, flow: ClientFlow) -> Result:
        """The same SYN-ACK again: our proof was lost, or the pod's kernel has not seen the first copy yet."""
        if flow.state in AWAITING_ACK:
            return Result(Verdict.PASS, packet=with_tcp(turn.packet, b""))
        self.remember(turn.pod, flow, turn.now.mono_ns)
        return self._prove_again(turn.now, flow)

    def _prove_again(self, now: Instant, flow: ClientFlow) -> Result:
        send: list[bytes] = []
        if now.mono_ns - flow.asked_ns >= RESYNCHRONISE_NS:
            flow.asked_ns = now.mono_ns
            flow.repeats += 1
            if flow.repeats == 2:
                # A stale entry of the same ports in a conntrack on the path has counted the token into its window and
                # now calls our ACKs invalid. A SYN without it sets that window right. (To an entry that is right it
                # does harm: it would forget what is in flight, and call that invalid.)
                flow.resynchronising = True
                send.append(flow.syn.data)
        if flow.ack is not None:
            send.append(self._proof_alone(flow, flow.ack))
        self._shared.drops[DropReason.REPEATED] += 1
        return Result(Verdict.DROP, DropReason.REPEATED, send=tuple(send))

    def app_segment(self, turn: Turn, flow: ClientFlow) -> Result:
        """Anything but a SYN leaves the pod on a connection it opened: put the proof in front of the first."""
        packet = turn.packet
        if packet.flags & RST:
            return Result(Verdict.PASS)
        if flow.state in AWAITING_ACK and flow.policy is not turn.pod.policy:
            # Policy has changed since the SYN-ACK, which the pod's kernel has seen: both ends must be told.
            if not self._judge_server(turn, flow).allowed:
                turn.pod.clients.pop(flow.key)
                drop_held(self._shared, turn.pod, flow.held, DropReason.CUT)
                return cut(self._shared, packet)
            flow.policy = turn.pod.policy
        first = (flow.isn + 1) % SEQUENCE_SPACE
        if flow.proof and packet.sequence == (first - PROOF) % SEQUENCE_SPACE:
            if packet.payload != flow.proof:
                raise BadPacket(DropReason.UNEXPECTED, "before the first octet")
            self._proven(turn, flow)
            released = release_held(turn.pod, flow.held, accept_last=not turn.more)
            return Result(Verdict.PASS if released else turn.accept, release=released)
        if flow.state is State.SYN_ACK_CONSUMED:
            return self._prove(turn, flow)
        if flow.state is State.BARE_SYN_ACK_ADMITTED:
            flow.state = advance(flow.state, Step.SEND_BARE_ACK)
            self._admit(turn, flow)
        if flow.state in (State.ACK_CREATED, State.BARE_ACK_SENT):
            return Result(turn.accept)
        raise BadPacket(DropReason.UNPROVEN, "before the SYN-ACK")

    def _prove(self, turn: Turn, flow: ClientFlow) -> Result:
        packet = turn.packet
        first = (flow.isn + 1) % SEQUENCE_SPACE
        room = packet.length + PROOF <= wire.PATH_MTU and not packet.truncated and not packet.flags & URG
        if packet.sequence == first and room and not flow.held.packets:
            self._proven(turn, flow)
            return Result(turn.accept, packet=with_tcp(packet, flow.proof + packet.payload, sequence=first - PROOF))
        # No room in front of this one: the proof goes alone, and what the pod wants to send waits for it to pass.
        waiting = bool(flow.held.packets)
        hold(self._shared, turn, flow.held)
        return Result(Verdict.HOLD, send=() if waiting else (self._proof_alone(flow, packet),))

    def _proof_alone(self, flow: ClientFlow, like: Packet) -> bytes:
        """The proof as a segment of its own, ending where the pod's first octet begins: old data, should it be late."""
        return with_tcp(like, flow.proof, sequence=flow.isn + 1 - PROOF, flags=ACK)

    def _proven(self, turn: Turn, flow: ClientFlow) -> None:
        again = flow.state is State.ACK_CREATED
        flow.state = advance(flow.state, Step.CREATE_ACK)
        if not again:
            flow.ack, flow.asked_ns = turn.packet, turn.now.mono_ns
            self._admit(turn, flow)

    def _admit(self, turn: Turn, flow: ClientFlow) -> None:
        address, port = self._server_of(flow)
        identity = flow.peer.identity if flow.peer else None
        decision = self._judge_server(turn, flow, announce_allow=True)
        tolerated = decision.reason is Reason.NOT_YET_IDENTIFIED
        live = Live(
            Direction.EGRESS, identity, address, port, turn.pod.policy, flow.isn, tolerated=tolerated, peer=flow.peer
        )  # fmt: skip
        turn.pod.live.put(flow.key, live, turn.now.mono_ns)
        self.remember(turn.pod, flow, turn.now.mono_ns)
        if flow.peer is not None and flow.local is not None:
            dialled = (flow.key[3], flow.key[4] or 0)
            lesson = Acceptance(
                turn.pod.number, Direction.EGRESS, flow.local, flow.peer, address, port, decision, dialled
            )
            self._shared.teach(lesson)

    def _judge_server(self, turn: Turn, flow: ClientFlow, *, announce_allow: bool = False) -> Decision:
        address, port = self._server_of(flow)
        identity = flow.peer.identity if flow.peer else None
        return judge(
            self._shared, turn, Direction.EGRESS, flow.key, identity=identity, address=address, port=port,
            isn=flow.isn, proven=identity is not None, announce_allow=announce_allow,
        )  # fmt: skip

    def _server_of(self, flow: ClientFlow) -> tuple[Address, int]:
        """The server as policy judges it."""
        return flow.actual or (flow.key[3], flow.key[4] or 0)

    def net_segment(self, turn: Turn, flow: ClientFlow) -> Result:
        """Anything but a SYN-ACK arrives before the connection is accepted."""
        packet = turn.packet
        if packet.flags & RST:
            sent = len(flow.message or b"")
            if sent and packet.acknowledgement == (flow.isn + 1 + sent) % SEQUENCE_SPACE:
                # A closed port acknowledges the token as well; the pod's kernel knows only of its SYN.
                if not tcp_checksum_is_right(packet):
                    raise BadPacket(DropReason.BAD_CHECKSUM)
                return Result(Verdict.PASS, packet=with_tcp(packet, b"", acknowledgement=flow.isn + 1))
            return Result(Verdict.PASS)
        if packet.flags & FIN or packet.payload_length:
            raise BadPacket(DropReason.UNPROVEN, "data before our proof")
        return Result(Verdict.PASS)  # a server that remembers an older connection; the pod's kernel answers with RST

    def _judge_silent(self, turn: Turn) -> None:
        """Judge a destination that will not identify itself. Raises BadPacket(POLICY)."""
        key, isn = turn.tuple5, turn.packet.sequence
        decision = judge(self._shared, turn, Direction.EGRESS, key, identity=None, address=key[3], port=key[4], isn=isn)
        if not decision.allowed:
            raise BadPacket(DropReason.POLICY)


def _without_data(syn: Packet) -> Packet:
    """Return a SYN without data of its own, and without Fast Open.

    Its data would reach the other side before anybody was judged: the pod's kernel sends it again with its first ACK,
    as it does with any server that does not speak Fast Open.
    """
    bare = with_tcp(syn, b"", without_fast_open=True)
    return Packet(
        bare, syn.body, syn.version, syn.protocol, syn.source, syn.destination, syn.transport,
        syn.source_port, syn.destination_port, syn.sequence, syn.acknowledgement, syn.flags, syn.body,
    )  # fmt: skip
