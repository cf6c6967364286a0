"""The client's end on UDP: the local pod begins a flow.

Where policy must know the server before anything may leave, the pod's datagrams wait behind a HELLO that no socket
reads. Where it need not, a HELLO goes along for the server's sake. Where the server was identified a moment ago, the
datagram carries its own proof, and nothing waits.
"""

from __future__ import annotations

from dataclasses import replace

from trireme_py import messages, wire
from trireme_py.datagram_flows import (
    HELLO_INTERVAL_NS,
    HELLOS,
    MAX_RESUMES,
    ClientDatagrams,
    DatagramTables,
    Stage,
    Warm,
)
from trireme_py.datagram_messages import (
    Confirm,
    confirm_mac,
    confirmed_ends,
    decode_confirm_untrusted,
    encode_resume,
)
from trireme_py.endpoint import Acceptance, Endpoint, Shared, Turn, drop_held, hold, judge, release_held, unmark
from trireme_py.errors import BadPacket
from trireme_py.flows import Live
from trireme_py.identities import Peer
from trireme_py.model import Address, Decision, Direction, DropReason, Hook, Instant, Reason, Release, Result, Verdict
from trireme_py.packet import Packet
from trireme_py.relay import check_ends
from trireme_py.surplus import (
    Datagram,
    read_datagram_untrusted,
    room_for,
    towards_sender,
    with_message,
    without_message,
)
from trireme_py.wire import MessageType

End = tuple[Address, int]


class DatagramClient:
    """Each method takes one datagram of a flow that the local pod began. All raise BadPacket or InvalidToken."""

    __slots__ = ("_shared",)

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def begin(self, turn: Turn, datagram: Datagram, *, waits: bool) -> Result:
        """The first datagram of a flow leaves."""
        flow = self._new_flow(turn, turn.packet, waits=waits)
        flow.warm = self._warm(turn)
        if flow.warm is not None and _carries(turn.packet, datagram, wire.RESUME.size + len(flow.hello)):
            return self._resume(turn, flow, datagram)
        return self._ask(turn, flow) if waits else self._introduce(turn, flow, datagram)

    def _new_flow(self, turn: Turn, first: Packet, *, waits: bool) -> ClientDatagrams:
        local = turn.pod.identity
        assert local is not None
        hello = messages.encode_syn(
            local.id, self._shared.entropy(wire.NONCE_SIZE), local.assertion, kind=MessageType.HELLO,
            flags=wire.ASKS_ANSWER if waits else 0,
        )  # fmt: skip
        flow = ClientDatagrams(turn.tuple5, local, hello, first, waits, Stage.HELLO_SENT, turn.now.mono_ns)
        turn.pod.datagrams.clients.put(flow.key, flow, turn.now.mono_ns)
        return flow

    def go_on(self, turn: Turn, flow: ClientDatagrams, datagram: Datagram, *, waits: bool) -> Result:
        """A further datagram of a flow whose exchange is under way leaves. ``waits`` is what policy says now."""
        if waits and not flow.waits:
            return self.begin(turn, datagram, waits=True)  # its HELLO did not ask who is there
        turn.pod.datagrams.clients.put(flow.key, flow, turn.now.mono_ns)
        if flow.proof:
            return self._prove(turn, flow, datagram)
        if flow.held.packets:
            hold(self._shared, turn, flow.held)  # what came before it goes first
            return Result(Verdict.HOLD)
        young = turn.now.mono_ns - flow.began_ns < HELLO_INTERVAL_NS * HELLOS
        fits = _carries(turn.packet, datagram, wire.RESUME.size + len(flow.hello)) and len(flow.resumes) < MAX_RESUMES
        if flow.stage is Stage.RESUMED and young and fits and flow.warm is self._warm(turn):
            return self._resume(turn, flow, datagram)
        if flow.waits:
            return self._ask(turn, flow)
        if turn.now.mono_ns - flow.asked_ns < HELLO_INTERVAL_NS:
            return Result(Verdict.PASS)
        if flow.hellos >= HELLOS:
            return self._accept(turn, flow)  # a flow in one direction, and nobody has asked
        return self._introduce(turn, flow, datagram)

    def _warm(self, turn: Turn) -> Warm | None:
        """Return what is known of the destination, if it still holds and policy lets us talk to it."""
        pod, packet = turn.pod, turn.packet
        warm = pod.datagrams.warm.get((packet.destination, packet.destination_port or 0))
        if warm is None or warm.local is not pod.identity or turn.now.wall_s > warm.peer.not_after:
            return None
        decision = pod.policy.decide(
            Direction.EGRESS, warm.peer.identity, warm.server[0], packet.protocol, warm.server[1]
        )
        return warm if decision.allowed else None

    def _resume(self, turn: Turn, flow: ClientDatagrams, datagram: Datagram) -> Result:
        """Send the datagram with a proof of its own, sealed if nobody but the right server may read it."""
        warm = flow.warm
        assert warm is not None
        counter = warm.counter.take()
        flow.stage = Stage.RESUMED
        resume = encode_resume(warm.ticket, counter, flow.hello, warm.key, warm.server, warm.client, datagram.payload)
        flow.resumes[counter] = resume[: wire.RESUME.size]
        return Result(Verdict.PASS, packet=with_message(turn.packet, datagram.payload, resume, sealed=flow.waits))

    def _introduce(self, turn: Turn, flow: ClientDatagrams, datagram: Datagram) -> Result:
        """Say who we are, without asking, to a server that may have to know."""
        flow.stage, flow.asked_ns = Stage.HELLO_SENT, turn.now.mono_ns
        flow.hellos += 1
        if _carries(turn.packet, datagram, len(flow.hello)):
            return Result(Verdict.PASS, packet=with_message(turn.packet, datagram.payload, flow.hello))
        # Such a server would take a datagram that comes before the HELLO for somebody unidentified's, so this one
        # waits until the HELLO has left the pod.
        hold(self._shared, turn, flow.held)
        flow.follows = True
        return Result(Verdict.HOLD, send=(self._hello(flow),))

    def own_left(self, turn: Turn) -> Result:
        """A datagram of our own leaves the pod; what waited only for that may follow."""
        flow = turn.pod.datagrams.clients.get(turn.tuple5)
        if flow is None or not flow.follows:
            return Result(Verdict.PASS)
        flow.follows = False
        target = self._target(flow)
        if not turn.pod.policy.decide(Direction.EGRESS, None, target[0], flow.key[0], target[1]).allowed:
            drop_held(self._shared, turn.pod, flow.held, DropReason.POLICY)
        return Result(Verdict.PASS, release=release_held(turn.pod, flow.held, accept_last=False))

    def _ask(self, turn: Turn, flow: ClientDatagrams) -> Result:
        """Let the datagram wait, and ask who is there."""
        first = not flow.held.packets
        hold(self._shared, turn, flow.held)
        if not first:
            return Result(Verdict.HOLD)
        flow.stage, flow.hellos = Stage.HELLO_SENT, 1
        turn.pod.datagrams.asking.put(flow.key, flow, turn.now.mono_ns)
        return Result(Verdict.HOLD, send=(self._hello(flow),))

    def _hello(self, flow: ClientDatagrams) -> bytes:
        return with_message(flow.first, b"", flow.hello, sealed=True, pad=True)

    def ask_again(self, now: Instant, pod: Endpoint, flow: ClientDatagrams) -> None:
        """Nobody has answered for a while: ask again, or take the destination for one that takes no part."""
        if flow.stage is not Stage.HELLO_SENT or not flow.held.packets:
            return
        if flow.hellos < HELLOS:
            flow.hellos += 1
            pod.datagrams.asking.put(flow.key, flow, now.mono_ns)
            self._shared.sends.append((pod.number, self._hello(flow)))
            return
        ticket, packet = flow.held.packets[0]
        turn = Turn(now, pod, hook=Hook.APPLICATION, ticket=ticket, packet=packet, tuple5=flow.key, more=False)
        pod.datagrams.silent.put(self._target(flow), True, now.mono_ns)
        if pod.datagrams.clients.get(flow.key) is flow:
            pod.datagrams.clients.pop(flow.key)
        decision = judge(
            self._shared, turn, Direction.EGRESS, flow.key, identity=None, address=flow.key[3], port=flow.key[4],
            announce_allow=True,
        )  # fmt: skip
        if decision.allowed:  # policy has changed while it waited, or agents are being installed
            tolerated = decision.reason is Reason.NOT_YET_IDENTIFIED
            live = Live(Direction.EGRESS, None, flow.key[3], flow.key[4], pod.policy, tolerated=tolerated)
            pod.live_datagrams.put(flow.key, live, now.mono_ns)
            released = release_held(pod, flow.held, accept_last=True)
            self._shared.orphans += ((pod.number, release) for release in released)
            return
        drop_held(self._shared, pod, flow.held, DropReason.POLICY)

    def net_again(self, turn: Turn, flow: ClientDatagrams, message: bytes) -> Result:
        """The server may not answer with more than it got: give it more."""
        messages.check_header_untrusted(message, MessageType.AGAIN, wire.HEADER.size)
        if flow.answer_fixed or flow.hellos >= HELLOS:
            raise BadPacket(DropReason.UNEXPECTED, "asked too often")
        flow.hellos += 1
        turn.pod.datagrams.clients.put(flow.key, flow, turn.now.mono_ns)
        # What it has confirmed meanwhile is enough to prove ourselves at once.
        return self._consumed(send=(self._proof_alone(flow) if flow.proof else self._hello(flow),))

    def begin_anew(self, turn: Turn, message: bytes, datagram: Datagram) -> Result:
        """Whoever gets the datagrams of an accepted flow of ours does not know it: it begins again, with an exchange.

        Anybody can ask for that; it costs one exchange a second at most.
        """
        pod, now_ns = turn.pod, turn.now.mono_ns
        messages.check_header_untrusted(message, MessageType.AGAIN, wire.HEADER.size)
        live = pod.live_datagrams.get(turn.tuple5)
        if (
            live is None
            or live.cut
            or live.direction is not Direction.EGRESS
            or pod.datagrams.renewed.get(turn.tuple5) == DatagramTables.RENEWED
        ):
            raise BadPacket(DropReason.UNEXPECTED, "a flow that is not ours, or that was begun anew already")
        if not datagram.sealed or datagram.payload:
            raise BadPacket(DropReason.UNEXPECTED, "AGAIN with data")
        pod.datagrams.renewed.put(turn.tuple5, DatagramTables.RENEWED, now_ns)
        pod.datagrams.clients.pop(turn.tuple5)
        pod.datagrams.warm.pop((turn.tuple5[3], turn.tuple5[4] or 0))
        peer, port = turn.packet.source, turn.packet.source_port
        if pod.policy.decide(Direction.EGRESS, None, peer, turn.packet.protocol, port).allowed:
            pod.live_datagrams.pop(turn.tuple5)
            return unmark(self._shared, turn)
        # Not forgotten, and asked at once who is there: else an answer of theirs begins a flow that ours would follow.
        live.cut = True
        flow = self._new_flow(turn, towards_sender(turn.packet), waits=True)
        flow.anew = True
        return unmark(self._shared, turn, send=(self._hello(flow),))

    def net_answer(self, turn: Turn, flow: ClientDatagrams, message: bytes) -> Result:
        """The server says who it is: believe it, judge it, and prove ourselves."""
        if flow.proof:
            # A proof for a CONFIRM does for the answer to a later HELLO of the same flow, too: the server knows both.
            # But that HELLO must be ours: whoever has seen a RESUME can send the server the one inside.
            answer = messages.decode_syn_ack_untrusted(message, MessageType.ANSWER)
            if answer.fixed != flow.answer_fixed and (flow.answer_fixed or not flow.hellos):
                raise BadPacket(DropReason.UNEXPECTED, "another answer than the one that was proven for")
            return self._consumed(send=(self._proof_alone(flow),))
        shared, pod = self._shared, turn.pod
        answer = messages.decode_syn_ack_untrusted(message, MessageType.ANSWER)
        hello_fixed = flow.hello[: wire.SYN.size]
        peer = shared.identities.resolve_untrusted(turn.now, pod.number, answer.id, answer.assertion)
        key = shared.identities.pair_key(flow.local, peer, local_is_client=True)
        messages.check_mac(messages.syn_ack_mac(key, hello_fixed, answer.fixed[: wire.SYN_ACK_MAC_OFFSET]), answer.mac)
        # Whoever answers lacks the ticket or is somebody else: what was known of this destination is over.
        pod.datagrams.warm.pop(self._target(flow))
        self._check_ends(turn, flow, answer.server, answer.client)
        flow.peer, flow.actual = peer, answer.server
        decision = self._judge_server(turn, flow)
        if not decision.allowed:
            # Not remembered: behind a Service, the next flow may meet another server.
            self._give_up(turn, flow)
            raise BadPacket(DropReason.POLICY)
        counter = shared.counter()
        warm = Warm(peer, flow.local, key, answer.nonce, answer.server, answer.client[0], counter)
        pod.datagrams.warm.put(self._target(flow), warm, turn.now.mono_ns)
        self._teach(turn, flow, peer, decision)
        flow.answer_fixed = answer.fixed
        flow.proof = messages.encode_ack(hello_fixed, answer.fixed, key, kind=MessageType.PROOF)
        send, release = self._proven(turn, flow)
        return self._consumed(send=send, release=release)

    def _give_up(self, turn: Turn, flow: ClientDatagrams) -> None:
        drop_held(self._shared, turn.pod, flow.held, DropReason.POLICY)
        drop_held(self._shared, turn.pod, flow.replies, DropReason.POLICY)
        turn.pod.datagrams.clients.pop(flow.key)

    def _proven(self, turn: Turn, flow: ClientDatagrams) -> tuple[tuple[bytes, ...], tuple[Release, ...]]:
        """The server is known: what waits may go, with the proof on the first of it. Returns sends and releases."""
        flow.stage = Stage.PROVEN
        self._remember_live(turn, flow)
        replies = release_held(turn.pod, flow.replies, accept_last=False)
        first = flow.held.packets[0][1] if flow.held.packets else None
        released = release_held(turn.pod, flow.held, accept_last=True)
        if first is not None:
            datagram = read_datagram_untrusted(first)
            if _carries(first, datagram, len(flow.proof)):
                with_proof = with_message(first, datagram.payload, flow.proof)
                return (), (*replies, replace(released[0], packet=with_proof), *released[1:])
        return (self._proof_alone(flow),), (*replies, *released)

    def net_confirm(self, turn: Turn, flow: ClientDatagrams, message: bytes, datagram: Datagram) -> Result:
        """The server confirms that it is still the one: its answer may be read."""
        confirm = decode_confirm_untrusted(message)
        warm = self._check_confirm(turn, flow, confirm)
        first = not flow.proof
        if first:
            flow.peer, flow.actual = warm.peer, confirm.server
        decision = self._judge_server(turn, flow, announce_allow=first)
        if not decision.allowed:
            self._give_up(turn, flow)
            raise BadPacket(DropReason.POLICY)
        pod = turn.pod
        pod.datagrams.warm.put(self._target(flow), warm, turn.now.mono_ns)
        self._teach(turn, flow, warm.peer, decision)
        pod.datagrams.clients.put(flow.key, flow, turn.now.mono_ns)
        flow.confirmed += 1
        if first:
            flow.proof = messages.encode_ack(
                flow.hello[: wire.SYN.size], confirmed_ends(confirm.fixed), warm.key, kind=MessageType.PROOF
            )
        send: tuple[bytes, ...] = ()
        release: tuple[Release, ...] = ()
        if flow.stage is Stage.PROVEN:
            if datagram.sealed:  # the server still lacks the proof
                send = (self._proof_alone(flow),)
        elif flow.confirmed > 1 or flow.held.packets:
            # The flow goes on: have both kernels take it over.
            send, release = self._proven(turn, flow)
        if flow.replies.packets:
            release = (*release_held(pod, flow.replies, accept_last=False), *release)
        if datagram.sealed:
            return self._consumed(send=send, release=release)
        plain = without_message(turn.packet, datagram.payload)
        if release:  # what came before it goes first
            return Result(Verdict.HOLD, send=send, release=(*release, Release(turn.ticket, Verdict.PASS, packet=plain)))
        return Result(turn.accept if flow.stage is Stage.PROVEN else Verdict.PASS, packet=plain, send=send)

    def _check_confirm(self, turn: Turn, flow: ClientDatagrams, confirm: Confirm) -> Warm:
        warm, resume_fixed = flow.warm, flow.resumes.get(confirm.counter)
        if warm is None or resume_fixed is None or confirm.ticket != warm.ticket:
            raise BadPacket(DropReason.UNEXPECTED, "nothing to confirm")
        expected = confirm_mac(
            warm.key, resume_fixed, flow.hello[: wire.SYN.size], confirm.fixed[: wire.CONFIRM_MAC_OFFSET]
        )
        messages.check_mac(expected, confirm.mac)
        self._check_ends(turn, flow, confirm.server, confirm.client)
        return warm

    def net_plain(self, turn: Turn, flow: ClientDatagrams) -> Result:
        """An answer without a message arrives."""
        if flow.stage is Stage.PROVEN or not flow.waits:
            return self._accept(turn, flow)
        if flow.proof:
            return Result(Verdict.PASS)
        if flow.resumes or flow.anew:
            # An answer too large for a message: its confirmation comes right behind. Or the ANSWER does.
            hold(self._shared, turn, flow.replies)
            return Result(Verdict.HOLD)
        raise BadPacket(DropReason.UNPROVEN, "before the server was known")

    def _prove(self, turn: Turn, flow: ClientDatagrams, datagram: Datagram) -> Result:
        """The flow goes on after a confirmation: prove it, so that both kernels can take it over."""
        if not self._judge_server(turn, flow, announce_allow=False).allowed:
            self._give_up(turn, flow)
            raise BadPacket(DropReason.POLICY)
        flow.stage = Stage.PROVEN
        self._remember_live(turn, flow)
        if _carries(turn.packet, datagram, len(flow.proof)):
            return Result(turn.accept, packet=with_message(turn.packet, datagram.payload, flow.proof))
        return Result(turn.accept, send=(self._proof_alone(flow),))

    def _proof_alone(self, flow: ClientDatagrams) -> bytes:
        return with_message(flow.first, b"", flow.proof, sealed=True)

    def _check_ends(self, turn: Turn, flow: ClientDatagrams, server: End, client: End) -> None:
        evident = check_ends(self._shared, turn.pod, flow.key, server, client)
        if evident:
            return
        if self._shared.settings.require_translation_evidence:
            turn.pod.datagrams.silent.put(self._target(flow), True, turn.now.mono_ns)
            raise BadPacket(DropReason.UNEXPLAINED_TRANSLATION, "nothing shows who translates")
        self._shared.unproven_translations += 1

    def _judge_server(self, turn: Turn, flow: ClientDatagrams, *, announce_allow: bool = True) -> Decision:
        address, port = flow.actual or self._target(flow)
        identity = flow.peer.identity if flow.peer else None
        return judge(
            self._shared, turn, Direction.EGRESS, flow.key, identity=identity, address=address, port=port,
            proven=identity is not None, announce_allow=announce_allow,
        )  # fmt: skip

    def _teach(self, turn: Turn, flow: ClientDatagrams, peer: Peer, decision: Decision) -> None:
        """The server at the flow's destination is known: flows there may go on from that."""
        address, port = flow.actual or self._target(flow)
        lesson = Acceptance(
            turn.pod.number, Direction.EGRESS, flow.local, peer, address, port, decision, self._target(flow),
            turn.packet.protocol,
        )  # fmt: skip
        self._shared.teach(lesson)

    def _accept(self, turn: Turn, flow: ClientDatagrams) -> Result:
        """Mark the flow, whose server is known or need not be, if policy still allows it."""
        if not self._judge_server(turn, flow, announce_allow=flow.stage is not Stage.PROVEN).allowed:
            self._give_up(turn, flow)
            raise BadPacket(DropReason.POLICY)
        flow.stage = Stage.PROVEN
        self._remember_live(turn, flow)
        return Result(turn.accept)

    def _remember_live(self, turn: Turn, flow: ClientDatagrams) -> None:
        address, port = flow.actual or self._target(flow)
        identity = flow.peer.identity if flow.peer else None
        live = Live(Direction.EGRESS, identity, address, port, turn.pod.policy)
        turn.pod.live_datagrams.put(flow.key, live, turn.now.mono_ns)

    @staticmethod
    def _target(flow: ClientDatagrams) -> End:
        return flow.key[3], flow.key[4] or 0

    def _consumed(self, *, send: tuple[bytes, ...] = (), release: tuple[Release, ...] = ()) -> Result:
        self._shared.drops[DropReason.CONSUMED] += 1
        return Result(Verdict.DROP, DropReason.CONSUMED, send=send, release=release)


def _carries(packet: Packet, datagram: Datagram, message: int) -> bool:
    """Tell whether a datagram can carry a message of so many octets; its own surplus is never touched."""
    return not packet.truncated and not datagram.surplus and room_for(len(datagram.payload), packet.transport, message)
