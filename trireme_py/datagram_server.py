"""The server's end on UDP: somebody begins a flow with the local pod."""

from __future__ import annotations

from hmac import compare_digest

from trireme_py import messages, wire
from trireme_py.assertion import check_validity
from trireme_py.datagram_flows import HELLO_INTERVAL_NS, DatagramTables, ServerDatagrams, Stage, Ticket
from trireme_py.datagram_messages import confirmed_ends, decode_resume_untrusted, encode_confirm, resume_mac
from trireme_py.endpoint import Acceptance, Shared, Turn, drop_held, hold, judge, take_held, unmark
from trireme_py.errors import BadPacket
from trireme_py.flows import Live
from trireme_py.identities import Peer
from trireme_py.messages import Ack, Syn
from trireme_py.model import Decision, Direction, DropReason, Identity, Release, Result, Verdict
from trireme_py.packet import Packet
from trireme_py.surplus import (
    Datagram,
    read_datagram_untrusted,
    room_for,
    towards_sender,
    with_message,
    without_message,
)
from trireme_py.wire import MessageType


def again_towards_sender(packet: Packet) -> bytes:
    """Return the datagram that asks the sender of ``packet`` for an exchange."""
    return with_message(towards_sender(packet), b"", messages.AGAIN, sealed=True)


class DatagramServer:
    """Each method takes one datagram of a flow that somebody began with the local pod. All raise BadPacket or
    InvalidToken for what is to be dropped."""

    __slots__ = ("_shared",)

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def net_hello(self, turn: Turn, hello: Syn, datagram: Datagram) -> Result:
        """A claim of identity arrives, with or without the flow's first datagram."""
        shared, pod = self._shared, turn.pod
        waits = not self._anybody_may(turn)
        if not waits and not hello.flags & wire.ASKS_ANSWER:
            return self._let_in_unidentified(turn, datagram)
        flow = pod.datagrams.servers.get(turn.tuple5)
        known = flow is not None and flow.hello_fixed == hello.fixed
        if flow is not None and known and flow.stage is Stage.PROVEN:
            return self._late(turn, datagram)
        peer = shared.identities.resolve_untrusted(turn.now, pod.number, hello.id, hello.assertion)
        if self._was_somebody_else(turn, hello.id):
            return unmark(shared, turn, send=self._again(turn))
        if waits and not self._judge_client(turn, peer.identity, proven=False, announce_allow=False).allowed:
            raise BadPacket(DropReason.POLICY)
        if flow is None or not known or not flow.answer:
            flow = self._answer(turn, hello, peer, flow)
        flow.waits = waits
        pod.datagrams.servers.put(turn.tuple5, flow, turn.now.mono_ns)
        flow.request += turn.packet.length
        send = self._say(turn, flow, flow.answer) or self._say(turn, flow, messages.AGAIN)
        if datagram.sealed and not datagram.payload:
            return self._consumed(send=send)
        if flow.waits or datagram.sealed:
            hold(shared, turn, flow.held)
            return Result(Verdict.HOLD, send=send)
        return Result(Verdict.PASS, packet=without_message(turn.packet, datagram.payload), send=send)

    def _was_somebody_else(self, turn: Turn, identity: bytes) -> bool:
        """Forget the accepted flow of another identity on this tuple, and tell whether there was one.

        Its address went to another pod; or that pod's assertion was renewed, and it proves itself anew.
        """
        pod = turn.pod
        live = pod.live_datagrams.get(turn.tuple5)
        if live is None or live.identity is None or live.identity.id == identity:
            return False
        pod.live_datagrams.pop(turn.tuple5)
        flow = pod.datagrams.servers.pop(turn.tuple5)
        if flow is not None:
            drop_held(self._shared, pod, flow.held, DropReason.UNPROVEN)
        return True

    @staticmethod
    def _again(turn: Turn) -> tuple[bytes, ...]:
        again = again_towards_sender(turn.packet)
        return (again,) if len(again) <= turn.packet.length else ()

    @staticmethod
    def _say(turn: Turn, flow: ServerDatagrams, message: bytes) -> tuple[bytes, ...]:
        """Return a message to be sent, if it is not more than what came: the address has proved nothing."""
        data = with_message(towards_sender(turn.packet), b"", message, sealed=True)
        if len(data) > flow.request:
            return ()
        flow.request -= len(data)
        flow.said_ns = turn.now.mono_ns
        return (data,)

    def _answer(self, turn: Turn, hello: Syn, peer: Peer, previous: ServerDatagrams | None) -> ServerDatagrams:
        pod = turn.pod
        local = pod.identity
        assert local is not None
        _, own, own_port, other, other_port = turn.tuple5
        key = self._shared.identities.pair_key(local, peer, local_is_client=False)
        nonce = self._shared.entropy(wire.NONCE_SIZE)
        answer = messages.encode_syn_ack(
            hello.fixed, local.id, nonce, (own, own_port or 0), (other, other_port or 0), local.assertion, key,
            kind=MessageType.ANSWER,
        )  # fmt: skip
        flow = ServerDatagrams(
            turn.tuple5, Stage.HELLO_CONSUMED, hello.fixed, peer, local, key, True, 0, answer, nonce
        )  # fmt: skip
        if previous is not None and previous.hello_fixed == hello.fixed and previous.pair_key == key:
            # It had begun with a RESUME, and answers to that may still be confirmed.
            flow.confirm, flow.held = previous.confirm, previous.held
        elif previous is not None:
            drop_held(self._shared, pod, previous.held, DropReason.UNPROVEN)
        return flow

    def _late(self, turn: Turn, datagram: Datagram) -> Result:
        """A datagram whose message has served already comes behind the proof, repeated or overtaken."""
        live = turn.pod.live_datagrams.get(turn.tuple5)
        if datagram.sealed and not datagram.payload:
            return self._consumed()
        if live is None or live.cut:
            raise BadPacket(DropReason.REPEATED)
        if not self._judge_client(turn, live.identity, proven=True, announce_allow=False).allowed:
            raise BadPacket(DropReason.REPEATED)
        return Result(Verdict.PASS, packet=without_message(turn.packet, datagram.payload))

    def net_resume(self, turn: Turn, message: bytes, datagram: Datagram) -> Result:
        """A datagram arrives with a proof of its own; or, if we do not know the ticket, with a HELLO."""
        resume = decode_resume_untrusted(message)
        pod = turn.pod
        _, own, own_port, other, other_port = turn.tuple5
        ticket = pod.datagrams.tickets.get(resume.ticket)
        if (
            ticket is None
            or (ticket.server, ticket.client) != ((own, own_port), other)
            or ticket.peer.identity.id != resume.hello.id
            or ticket.local is not pod.identity
        ):
            return self.net_hello(turn, resume.hello, datagram)
        check_validity(ticket.peer.not_before, ticket.peer.not_after, turn.now.wall_s)
        if not ticket.window.is_fresh(resume.counter):
            raise BadPacket(DropReason.REPLAYED)
        expected = resume_mac(
            ticket.key, resume.fixed[: wire.RESUME_MAC_OFFSET], resume.hello.fixed, ticket.server, ticket.client,
            datagram.payload,
        )  # fmt: skip
        messages.check_mac(expected, resume.mac)
        known = pod.datagrams.servers.get(turn.tuple5)
        first = known is None or known.hello_fixed != resume.hello.fixed
        waits = not self._anybody_may(turn)
        decision = self._judge_client(turn, ticket.peer.identity, proven=True, announce_allow=first)
        if not decision.allowed:
            raise BadPacket(DropReason.POLICY)
        if not ticket.window.commit(resume.counter):
            raise BadPacket(DropReason.REPLAYED)
        passed = Verdict.PASS_CLEAR if self._was_somebody_else(turn, resume.hello.id) else Verdict.PASS
        pod.datagrams.tickets.put(resume.ticket, ticket, turn.now.mono_ns)
        self._teach(turn, ticket, resume.ticket, decision)
        plain = without_message(turn.packet, datagram.payload)
        if not waits and not resume.hello.flags & wire.ASKS_ANSWER:
            self._remember_live(turn, ticket.peer.identity)  # nobody asks for more
            return Result(turn.accept, packet=plain)
        confirm = encode_confirm(resume, (own, own_port or 0), (other, other_port or 0), ticket.key)
        if known is not None and not first and known.stage is not Stage.RESUME_CONSUMED:
            # It was overtaken by the proof, or by the HELLO of a later datagram.
            known.confirm = confirm
            return Result(passed, packet=plain)
        flow = ServerDatagrams(
            turn.tuple5, Stage.RESUME_CONSUMED, resume.hello.fixed, ticket.peer, ticket.local, ticket.key, waits,
            turn.packet.length, confirm=confirm,
        )  # fmt: skip
        if known is not None and first:
            drop_held(self._shared, pod, known.held, DropReason.UNPROVEN)
        elif known is not None:
            flow.held = known.held
        pod.datagrams.servers.put(turn.tuple5, flow, turn.now.mono_ns)
        return Result(passed, packet=plain)

    def app_reply(self, turn: Turn, flow: ServerDatagrams, datagram: Datagram) -> Result:
        """The pod answers on a flow whose datagrams prove themselves one by one: confirm that it is still us."""
        packet = turn.packet
        turn.pod.datagrams.servers.put(flow.key, flow, turn.now.mono_ns)
        if not self._judge_client(turn, flow.peer.identity, proven=True, announce_allow=False).allowed:
            raise BadPacket(DropReason.POLICY)
        free = not packet.truncated and not datagram.surplus
        if free and room_for(len(datagram.payload), packet.transport, len(flow.confirm)):
            return Result(Verdict.PASS, packet=with_message(packet, datagram.payload, flow.confirm))
        return Result(Verdict.PASS, send=(with_message(packet, b"", flow.confirm, sealed=True),))

    def net_proof(self, turn: Turn, flow: ServerDatagrams, message: bytes, datagram: Datagram) -> Result:
        """The client's proof arrives: the flow is its own from here on."""
        pod = turn.pod
        proof = messages.decode_ack_untrusted(message, MessageType.PROOF)
        if len(message) != wire.ACK.size:
            raise BadPacket(DropReason.MALFORMED_MESSAGE, "lengths")
        self._check_proof(flow, proof)
        first = flow.stage is not Stage.PROVEN
        announce = flow.stage is Stage.HELLO_CONSUMED and not flow.confirm
        decision = self._judge_client(turn, flow.peer.identity, proven=True, announce_allow=announce)
        if not decision.allowed:
            drop_held(self._shared, pod, flow.held, DropReason.POLICY)
            raise BadPacket(DropReason.POLICY)
        if first and flow.nonce:
            own, client = (turn.tuple5[1], turn.tuple5[2] or 0), turn.tuple5[3]
            ticket = Ticket(flow.peer, flow.local, flow.pair_key, own, client, self._shared.window())
            pod.datagrams.tickets.put(flow.nonce, ticket, turn.now.mono_ns)
            self._teach(turn, ticket, flow.nonce, decision)
        flow.stage = Stage.PROVEN
        self._remember_live(turn, flow.peer.identity)
        pod.datagrams.servers.put(flow.key, flow, turn.now.mono_ns)
        alone = datagram.sealed and not datagram.payload
        if flow.held.packets and not alone:
            hold(self._shared, turn, flow.held)  # what came before it goes first
            return Result(Verdict.HOLD, release=self._release(turn, flow))
        if alone:
            return self._consumed(release=self._release(turn, flow))
        return Result(turn.accept, packet=without_message(turn.packet, datagram.payload))

    @staticmethod
    def _check_proof(flow: ServerDatagrams, proof: Ack) -> None:
        """Raise BadPacket(BAD_MAC) unless it proves that the client heard our ANSWER or one of our CONFIRMs."""
        said = [flow.answer[: wire.SYN_ACK.size]] if flow.answer else []
        if flow.confirm:
            said.append(confirmed_ends(flow.confirm))
        macs = (messages.ack_mac(flow.pair_key, flow.hello_fixed, one, proof.header) for one in said)
        if not any(compare_digest(mac, proof.mac) for mac in macs):
            raise BadPacket(DropReason.BAD_MAC)

    def net_plain(self, turn: Turn, flow: ServerDatagrams) -> Result:
        """A datagram without a message arrives on a flow that is not proven yet."""
        if flow.stage is Stage.PROVEN:
            if not self._judge_client(turn, flow.peer.identity, proven=True, announce_allow=False).allowed:
                raise BadPacket(DropReason.POLICY)
            self._remember_live(turn, flow.peer.identity)
            return Result(turn.accept)
        if self._anybody_may(turn):
            return Result(Verdict.PASS)
        # The proof was lost or overtaken, or is on its way: let it wait, and ask again if that takes long.
        flow.request += turn.packet.length
        hold(self._shared, turn, flow.held)
        if turn.now.mono_ns - flow.said_ns < HELLO_INTERVAL_NS:
            return Result(Verdict.HOLD)
        return Result(Verdict.HOLD, send=self._say(turn, flow, flow.answer or flow.confirm))

    def _release(self, turn: Turn, flow: ServerDatagrams) -> tuple[Release, ...]:
        """Let held datagrams go, their messages taken off; the mark goes on the last."""
        waiting = take_held(turn.pod, flow.held)
        last = len(waiting) - 1
        released = []
        for index, (ticket, packet) in enumerate(waiting):
            read = read_datagram_untrusted(packet)
            plain = without_message(packet, read.payload) if read.message is not None else None
            verdict = Verdict.ACCEPT if index == last and not turn.more else Verdict.PASS
            released.append(Release(ticket, verdict, packet=plain))
        return tuple(released)

    def _let_in_unidentified(self, turn: Turn, datagram: Datagram) -> Result:
        """Policy asks nobody here who they are, and neither does the client ask us."""
        if datagram.sealed:
            # What follows its HELLO is no unknown flow.
            turn.pod.datagrams.renewed.put(turn.tuple5, DatagramTables.RENEWED, turn.now.mono_ns)
            return self._consumed()
        judge(
            self._shared, turn, Direction.INGRESS, turn.tuple5, identity=None, address=turn.packet.source,
            port=turn.packet.destination_port, announce_allow=True,
        )  # fmt: skip
        self._remember_live(turn, None)
        return Result(turn.accept, packet=without_message(turn.packet, datagram.payload))

    def _anybody_may(self, turn: Turn) -> bool:
        packet = turn.packet
        return turn.pod.policy.decide(
            Direction.INGRESS, None, packet.source, packet.protocol, packet.destination_port
        ).allowed

    def _judge_client(self, turn: Turn, identity: Identity | None, *, proven: bool, announce_allow: bool) -> Decision:
        return judge(
            self._shared, turn, Direction.INGRESS, turn.tuple5, identity=identity, address=turn.tuple5[3],
            port=turn.tuple5[2], proven=proven, announce_allow=announce_allow,
        )  # fmt: skip

    def _teach(self, turn: Turn, ticket: Ticket, name: bytes, decision: Decision) -> None:
        """The client has proved itself: its flows may go on from that."""
        lesson = Acceptance(
            turn.pod.number, Direction.INGRESS, ticket.local, ticket.peer, ticket.client, ticket.server[1], decision,
            None, turn.packet.protocol, name,
        )  # fmt: skip
        self._shared.teach(lesson)

    def _remember_live(self, turn: Turn, identity: Identity | None) -> None:
        packet = turn.packet
        live = Live(Direction.INGRESS, identity, packet.source, packet.destination_port, turn.pod.policy)
        turn.pod.live_datagrams.put(turn.tuple5, live, turn.now.mono_ns)

    def _consumed(self, *, send: tuple[bytes, ...] = (), release: tuple[Release, ...] = ()) -> Result:
        self._shared.drops[DropReason.CONSUMED] += 1
        return Result(Verdict.DROP, DropReason.CONSUMED, send=send, release=release)
