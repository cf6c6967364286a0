"""Packets beyond the handshake: connections judged again, packets of unknown connections, and other protocols."""

from __future__ import annotations

from trireme_py.endpoint import Endpoint, Shared, Turn, cut, judge, tolerate_unknown, tuple_of
from trireme_py.errors import BadPacket
from trireme_py.flows import Live
from trireme_py.model import Direction, DropReason, Hook, Protocol, Reason, Result, Verdict
from trireme_py.packet import RST, Packet, icmp_error_subject_untrusted


class Established:
    """Judges what is not part of a handshake. Methods raise BadPacket for what is to be dropped."""

    __slots__ = ("_shared",)

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def judge_again(self, turn: Turn, live: Live) -> Result:
        """A packet of an accepted connection without a current mark: policy has changed, or the mark is on its way."""
        endpoint, packet = turn.pod, turn.packet
        # A TCP connection that was cut is over. Nobody told the ends of any other flow: it may go on one day.
        if live.cut and (packet.protocol == Protocol.TCP or live.policy is endpoint.policy):
            return self._cut(packet)
        if live.policy is not endpoint.policy:
            decision = judge(
                self._shared, turn, live.direction, turn.tuple5, identity=live.identity, address=live.address,
                port=live.port, isn=live.isn, proven=live.identity is not None, tolerated=live.tolerated,
            )  # fmt: skip
            if packet.protocol != Protocol.TCP or decision.allowed:
                live.policy = endpoint.policy
            live.cut = not decision.allowed
            if live.cut:
                return self._cut(packet)
            if packet.protocol == Protocol.TCP:
                endpoint.live.put(turn.tuple5, live, turn.now.mono_ns)  # accepted as if it were new
        return Result(turn.accept)

    def _cut(self, packet: Packet) -> Result:
        if packet.protocol != Protocol.TCP:
            raise BadPacket(DropReason.CUT)
        if packet.flags & RST:
            return Result(Verdict.PASS)  # an end of it is what is wanted
        return cut(self._shared, packet)

    def unknown_segment(self, turn: Turn) -> Result:
        """A TCP segment of a connection we have not seen begin: it is as old as the agent, or it is an attempt.

        Nobody can say who opened it, so it passes only if an unidentified peer could have opened it either way.
        """
        endpoint, tuple5 = turn.pod, turn.tuple5
        ports = {Direction.INGRESS: tuple5[2], Direction.EGRESS: tuple5[4]}
        if all(
            not endpoint.policy.isolated(direction)
            or endpoint.policy.decide(direction, None, tuple5[3], tuple5[0], port).allowed
            for direction, port in ports.items()
        ):
            return Result(turn.accept)
        # While agents are being installed it may go on if it could have been opened one way. Whose port is the lower
        # one is the more likely server.
        if endpoint.policy.installing:
            for direction in sorted(Direction, key=lambda one: ports[one] or 0):
                address, port = tuple5[3], ports[direction]
                if direction is Direction.EGRESS:  # maybe through a Service
                    protocol, own, own_port, _, _ = tuple5
                    shown = self._shared.translate(endpoint.number, protocol, own, own_port or 0, address, port or 0)
                    address, port = shown or (address, port)
                if tolerate_unknown(self._shared, turn, direction, address, port):
                    live = Live(direction, None, address, port, endpoint.policy, tolerated=True)
                    endpoint.live.put(tuple5, live, turn.now.mono_ns)
                    return Result(turn.accept)
        raise BadPacket(DropReason.NO_STATE)

    def datagram(self, turn: Turn) -> Result:
        """A packet of another protocol: judged by address, as nobody can be identified on it."""
        endpoint, packet, tuple5 = turn.pod, turn.packet, turn.tuple5
        leaving = turn.hook is Hook.APPLICATION
        if packet.protocol in (Protocol.ICMP, Protocol.ICMPV6):
            passed = self._control(endpoint, packet, leaving)
            if passed is not None:
                return passed
        live = endpoint.live_datagrams.get(tuple5)
        if live is not None and not live.cut:
            return self.judge_again(turn, live)
        direction = Direction.EGRESS if leaving else Direction.INGRESS
        port = packet.destination_port
        decision = judge(
            self._shared, turn, direction, tuple5, identity=None, address=tuple5[3], port=port,
            announce_allow=True,
        )  # fmt: skip
        if not decision.allowed:
            raise BadPacket(DropReason.POLICY)
        tolerated = decision.reason is Reason.NOT_YET_IDENTIFIED
        live = Live(direction, None, tuple5[3], port, endpoint.policy, tolerated=tolerated)
        endpoint.live_datagrams.put(tuple5, live, turn.now.mono_ns)
        return Result(turn.accept)

    def _control(self, endpoint: Endpoint, packet: Packet, leaving: bool) -> Result | None:
        if len(packet.data) - packet.transport < 4:
            raise BadPacket(DropReason.MALFORMED_PACKET, "ICMP header cut short")
        subject = icmp_error_subject_untrusted(packet)
        # An error goes to whoever sent the packet it quotes; any other destination would be a way out for data.
        if subject is None or subject.source != packet.destination:
            return None
        # An error about a connection whose handshake is under way follows it. (One about an accepted connection never
        # comes here: conntrack relates it, and it carries that connection's mark.)
        tuple5 = tuple_of(subject, leaving=not leaving)
        half_open = tuple5 in endpoint.clients or tuple5 in endpoint.answered
        if half_open or tuple5 in endpoint.live or tuple5 in endpoint.live_datagrams:
            return Result(Verdict.PASS)
        return None
