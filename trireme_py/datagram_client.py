"""The client's end on UDP: the local pod begins a flow.

Where policy must know the server before anything may leave, the pod's datagrams wait behind a HELLO that no socket
reads. Where it need not, a HELLO goes along for the server's sake. Where the server was identified a moment ago, the
datagram carries its own proof, and nothing waits.
"""

from __future__ import annotations

from dataclasses import replace

from trireme_py import messages, wire
from trireme_py.datagram_flows import HELLO_INTERVAL_NS, HELLOS, ClientDatagrams, Stage, Warm
from trireme_py.datagram_messages import Confirm, confirm_mac, decode_confirm_untrusted, encode_resume
from trireme_py.endpoint import Endpoint, Shared, Turn, drop_held, hold, judge, release_held
from trireme_py.errors import BadPacket
from trireme_py.flows import Live
from trireme_py.model import Address, Direction, DropReason, Hook, Instant, Release, Result, Verdict
from trireme_py.relay import check_ends
from trireme_py.surplus import Datagram, room_for, with_message, without_message
from trireme_py.wire import MessageType

End = tuple[Address, int]


class DatagramClient:
    """Each method takes one datagram of a flow that the local pod began. All raise BadPacket or InvalidToken."""

    __slots__ = ("_shared",)

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def begin(self, turn: Turn, datagram: Datagram, *, waits: bool) -> Result:
        """The first datagram of a flow leaves."""
        pod, packet = turn.pod, turn.packet
        local = pod.identity
        assert local is not None
        hello = messages.encode_syn(
            local.id, self._shared.entropy(wire.NONCE_SIZE), local.assertion, kind=MessageType.HELLO,
            flags=wire.ASKS_ANSWER if waits else 0,
        )  # fmt: skip
        flow = ClientDatagrams(
            turn.tuple5, local, hello, packet, waits, Stage.HELLO_SENT, turn.now.mono_ns, warm=self._warm(turn)
        )
        pod.datagrams.clients.put(flow.key, flow, turn.now.mono_ns)
        if flow.warm is not None and self._fits(turn, datagram, flow):
            return self._resume(turn, flow, datagram)
        if waits:
            return self._ask(turn, flow)
        if not packet.truncated and room_for(len(datagram.payload), packet.transport, len(hello)):
            return Result(Verdict.PASS, packet=with_message(packet, datagram.payload, hello))
        return Result(Verdict.PASS, send=(self._hello(flow),))

    def go_on(self, turn: Turn, flow: ClientDatagrams, datagram: Datagram) -> Result:
        """A further datagram of a flow whose exchange is under way leaves."""
        turn.pod.datagrams.clients.put(flow.key, flow, turn.now.mono_ns)
        if flow.proof:
            return self._prove(turn, flow, datagram)
        if flow.stage is Stage.RESUMED and self._fits(turn, datagram, flow):
            return self._resume(turn, flow, datagram)
        if flow.waits:
            return self._ask(turn, flow)
        if turn.now.mono_ns - flow.began_ns >= HELLO_INTERVAL_NS * HELLOS:
            return self._accept(turn, flow)  # a flow in one direction, and nobody has asked
        if flow.stage is Stage.RESUMED:
            flow.stage = Stage.HELLO_SENT
            return Result(Verdict.PASS, send=(self._hello(flow),))
        return Result(Verdict.PASS)

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

    def _fits(self, turn: Turn, datagram: Datagram, flow: ClientDatagrams) -> bool:
        message = wire.RESUME.size + len(flow.hello)
        return not turn.packet.truncated and room_for(len(datagram.payload), turn.packet.transport, message)

    def _resume(self, turn: Turn, flow: ClientDatagrams, datagram: Datagram) -> Result:
        """Send the datagram with a proof of its own, sealed if nobody but the right server may read it."""
        warm = flow.warm
        assert warm is not None
        warm.counter += 1
        flow.stage = Stage.RESUMED
        flow.resume = encode_resume(
            warm.ticket, warm.counter, flow.hello, warm.key, warm.server, warm.client, datagram.payload
        )
        return Result(Verdict.PASS, packet=with_message(turn.packet, datagram.payload, flow.resume, sealed=flow.waits))

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
        pod.datagrams.silent.put((flow.key[3], flow.key[4] or 0), True, now.mono_ns)
        pod.datagrams.clients.pop(flow.key)
        judge(
            self._shared, turn, Direction.EGRESS, flow.key, identity=None, address=flow.key[3], port=flow.key[4]
        )  # fmt: skip
        drop_held(self._shared, pod, flow.held, DropReason.POLICY)

    def net_again(self, turn: Turn, flow: ClientDatagrams, message: bytes) -> Result:
        """The server may not answer with more than it got: give it more."""
        messages.check_header_untrusted(message, MessageType.AGAIN, wire.HEADER.size)
        if flow.proof or flow.hellos >= HELLOS:
            raise BadPacket(DropReason.UNEXPECTED, "asked too often")
        flow.hellos += 1
        turn.pod.datagrams.clients.put(flow.key, flow, turn.now.mono_ns)
        return self._consumed(send=(self._hello(flow),))

    def net_answer(self, turn: Turn, flow: ClientDatagrams, message: bytes) -> Result:
        """The server says who it is: believe it, judge it, and prove ourselves."""
        if flow.proof:
            if not message.startswith(flow.answer_fixed):
                raise BadPacket(DropReason.UNEXPECTED, "another answer than the one that was proven for")
            return self._consumed(send=(self._proof_alone(flow),))
        shared, pod = self._shared, turn.pod
        answer = messages.decode_syn_ack_untrusted(message, MessageType.ANSWER)
        hello_fixed = flow.hello[: wire.SYN.size]
        peer = shared.identities.resolve_untrusted(turn.now, pod.number, answer.id, answer.assertion)
        key = shared.identities.pair_key(flow.local, peer, local_is_client=True)
        messages.check_mac(messages.syn_ack_mac(key, hello_fixed, answer.fixed[: wire.SYN_ACK_MAC_OFFSET]), answer.mac)
        self._check_ends(turn, flow, answer.server, answer.client)
        flow.peer, flow.actual = peer, answer.server
        if not self._judge_server(turn, flow):
            drop_held(shared, pod, flow.held, DropReason.POLICY)
            pod.datagrams.clients.pop(flow.key)
            pod.datagrams.silent.put(self._target(flow), True, turn.now.mono_ns)
            raise BadPacket(DropReason.POLICY)
        warm = Warm(peer, flow.local, key, answer.nonce, answer.server, answer.client[0])
        pod.datagrams.warm.put(self._target(flow), warm, turn.now.mono_ns)
        flow.pair_key, flow.answer_fixed = key, answer.fixed
        flow.proof = messages.encode_ack(hello_fixed, answer.fixed, key, kind=MessageType.PROOF)
        return self._proven(turn, flow)

    def _proven(self, turn: Turn, flow: ClientDatagrams) -> Result:
        """The server is known: what waits may go, with the proof on the first of it."""
        flow.stage = Stage.PROVEN
        self._remember_live(turn, flow)
        waiting = flow.held.packets
        if waiting and not waiting[0][1].truncated:
            first = waiting[0][1]
            payload = first.data[first.transport + 8 :]
            if room_for(len(payload), first.transport, len(flow.proof)):
                released = release_held(turn.pod, flow.held, accept_last=True)
                with_proof = replace(released[0], packet=with_message(first, payload, flow.proof))
                return self._consumed(release=(with_proof, *released[1:]))
        released = release_held(turn.pod, flow.held, accept_last=True)
        return self._consumed(send=(self._proof_alone(flow),), release=released)

    def net_confirm(self, turn: Turn, flow: ClientDatagrams, message: bytes, datagram: Datagram) -> Result:
        """The server confirms that it is still the one: its answer may be read."""
        confirm = decode_confirm_untrusted(message)
        if flow.proof and confirm.fixed == flow.answer_fixed and datagram.sealed:
            return self._consumed(send=(self._proof_alone(flow),))
        self._check_confirm(turn, flow, confirm)
        assert flow.warm is not None
        first = flow.confirmed == 0
        flow.peer, flow.actual, flow.pair_key = flow.warm.peer, confirm.server, flow.warm.key
        if not self._judge_server(turn, flow, announce_allow=first):
            raise BadPacket(DropReason.POLICY)
        turn.pod.datagrams.warm.put(self._target(flow), flow.warm, turn.now.mono_ns)
        turn.pod.datagrams.clients.put(flow.key, flow, turn.now.mono_ns)
        flow.confirmed += 1
        if not flow.proof:
            flow.answer_fixed = confirm.fixed
            flow.proof = messages.encode_ack(
                flow.hello[: wire.SYN.size], confirm.fixed, flow.pair_key, kind=MessageType.PROOF
            )
        send: tuple[bytes, ...] = ()
        verdict = Verdict.PASS
        if flow.confirmed > 1:
            # The flow goes on: have both kernels take it over.
            flow.stage = Stage.PROVEN
            self._remember_live(turn, flow)
            send, verdict = (self._proof_alone(flow),), turn.accept
        released = release_held(turn.pod, flow.held, accept_last=False)
        if datagram.sealed:
            return self._consumed(send=send, release=released)
        plain = without_message(turn.packet, datagram.payload)
        return Result(Verdict.PASS if released else verdict, packet=plain, send=send, release=released)

    def _check_confirm(self, turn: Turn, flow: ClientDatagrams, confirm: Confirm) -> None:
        if flow.warm is None or flow.stage is not Stage.RESUMED or confirm.ticket != flow.warm.ticket:
            raise BadPacket(DropReason.UNEXPECTED, "nothing to confirm")
        resume_fixed = flow.resume[: wire.RESUME.size]
        expected = confirm_mac(
            flow.warm.key, resume_fixed, flow.hello[: wire.SYN.size], confirm.fixed[: wire.CONFIRM_MAC_OFFSET]
        )
        messages.check_mac(expected, confirm.mac)
        self._check_ends(turn, flow, confirm.server, confirm.client)

    def net_plain(self, turn: Turn, flow: ClientDatagrams) -> Result:
        """An answer without a message arrives."""
        if flow.stage is Stage.PROVEN:
            return self._accept(turn, flow)
        if not flow.waits:
            return self._accept(turn, flow)
        if flow.stage is Stage.RESUMED:
            # An answer too large for a message: its confirmation comes right behind.
            hold(self._shared, turn, flow.held)
            return Result(Verdict.HOLD)
        raise BadPacket(DropReason.UNPROVEN, "before the server was known")

    def _prove(self, turn: Turn, flow: ClientDatagrams, datagram: Datagram) -> Result:
        """The flow goes on after a confirmation: prove it, so that both kernels can take it over."""
        packet = turn.packet
        flow.stage = Stage.PROVEN
        self._remember_live(turn, flow)
        if not packet.truncated and room_for(len(datagram.payload), packet.transport, len(flow.proof)):
            return Result(turn.accept, packet=with_message(packet, datagram.payload, flow.proof))
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

    def _judge_server(self, turn: Turn, flow: ClientDatagrams, *, announce_allow: bool = True) -> bool:
        assert flow.actual is not None
        identity = flow.peer.identity if flow.peer else None
        return judge(
            self._shared, turn, Direction.EGRESS, flow.key, identity=identity, address=flow.actual[0],
            port=flow.actual[1], proven=identity is not None, announce_allow=announce_allow,
        ).allowed  # fmt: skip

    def _accept(self, turn: Turn, flow: ClientDatagrams) -> Result:
        if flow.stage is not Stage.PROVEN:
            judge(
                self._shared, turn, Direction.EGRESS, flow.key, identity=None, address=flow.key[3], port=flow.key[4],
                announce_allow=True,
            )  # fmt: skip
        flow.stage = Stage.PROVEN
        self._remember_live(turn, flow)
        return Result(turn.accept)

    def _remember_live(self, turn: Turn, flow: ClientDatagrams) -> None:
        address, port = flow.actual or self._target(flow)
        identity = flow.peer.identity if flow.peer else None
        live = Live(Direction.EGRESS, identity, address, port, turn.pod.policy)
        turn.pod.live.put(flow.key, live, turn.now.mono_ns)

    @staticmethod
    def _target(flow: ClientDatagrams) -> End:
        return flow.key[3], flow.key[4] or 0

    def _consumed(self, *, send: tuple[bytes, ...] = (), release: tuple[Release, ...] = ()) -> Result:
        self._shared.drops[DropReason.CONSUMED] += 1
        return Result(Verdict.DROP, DropReason.CONSUMED, send=send, release=release)
