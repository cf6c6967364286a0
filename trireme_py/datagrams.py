"""UDP: which part of the exchange a datagram belongs to."""

from __future__ import annotations

from trireme_py import messages
from trireme_py.datagram_client import DatagramClient
from trireme_py.datagram_flows import DatagramTables, Stage
from trireme_py.datagram_messages import message_type_untrusted
from trireme_py.datagram_server import DatagramServer, again_towards_sender
from trireme_py.endpoint import Endpoint, Shared, Turn, drop_held, is_pod_address, note_identity
from trireme_py.errors import BadPacket
from trireme_py.established import Established
from trireme_py.model import Address, Direction, DropReason, Hook, Instant, Result
from trireme_py.surplus import Datagram, read_datagram_untrusted
from trireme_py.wire import MessageType


class Datagrams:
    """The UDP side of the data path. Methods raise BadPacket or InvalidToken for what is to be dropped."""

    __slots__ = ("_client", "_established", "_server", "_shared")

    def __init__(self, shared: Shared, established: Established) -> None:
        self._shared = shared
        self._client = DatagramClient(shared)
        self._server = DatagramServer(shared)
        self._established = established

    def receive(self, turn: Turn) -> Result:
        """Judge one UDP packet."""
        datagram = read_datagram_untrusted(turn.packet)
        judge = self._leaving if turn.hook is Hook.APPLICATION else self._arriving
        result = judge(turn, datagram)
        for data in result.send:
            self.sent(turn.now, turn.pod, data)
        return result

    def sent(self, now: Instant, pod: Endpoint, data: bytes) -> None:
        """Remember a datagram of ours: it has yet to pass the pod's rules, like anything that leaves the pod."""
        own, name = pod.datagrams.own, _name(data)
        own.put(name, (own.get(name) or 0) + 1, now.mono_ns)

    def _leaving(self, turn: Turn, datagram: Datagram) -> Result:
        pod, packet = turn.pod, turn.packet
        tables = pod.datagrams
        if datagram.message is not None:
            if self._is_own(turn):
                return self._client.own_left(turn)
            raise BadPacket(DropReason.UNEXPECTED, "a message of the exchange from the pod itself")
        live = pod.live_datagrams.get(turn.tuple5)
        # A flow of our own that was cut may begin again, with an exchange.
        if live is not None and (not live.cut or live.direction is Direction.INGRESS):
            return self._established.judge_again(turn, live)
        server = tables.servers.get(turn.tuple5)
        if server is not None and server.confirm and server.stage is not Stage.PROVEN:
            return self._server.app_reply(turn, server, datagram)
        anybody = pod.policy.decide(Direction.EGRESS, None, *_judged(turn)).allowed
        client = tables.clients.get(turn.tuple5)
        if client is not None and client.stage is not Stage.PROVEN:
            return self._client.go_on(turn, client, datagram, waits=not anybody)
        target = (packet.destination, packet.destination_port or 0)
        silent = not anybody and tables.silent.get(target)
        if silent or not self._may_ask(turn) or not (anybody or pod.policy.may_open(packet.protocol)):
            return self._established.datagram(turn)
        return self._client.begin(turn, datagram, waits=not anybody)

    @staticmethod
    def _is_own(turn: Turn) -> bool:
        own, name = turn.pod.datagrams.own, _name(turn.packet.data)
        count = own.pop(name) or 0
        if count > 1:  # we have sent the same more than once, as one answers a repetition
            own.put(name, count - 1, turn.now.mono_ns)
        return count > 0

    def _may_ask(self, turn: Turn) -> bool:
        """Tell whether an exchange makes sense: we have an identity, and one single pod may have one there."""
        packet = turn.packet
        if turn.pod.identity is None or packet.destination in turn.pod.addresses:
            return False
        return packet.destination in self._shared.settings.identity_scope and not _is_multicast(packet.destination)

    def _arriving(self, turn: Turn, datagram: Datagram) -> Result:
        pod = turn.pod
        tables = pod.datagrams
        if datagram.message is not None:
            note_identity(self._shared, turn, turn.packet.source, turn.packet.source_port)
            if pod.identity is not None and turn.packet.source in self._shared.settings.identity_scope:
                return self._message(turn, datagram, datagram.message)
            if datagram.sealed:
                raise BadPacket(DropReason.UNEXPECTED, "a message to nobody, or from outside the identity scope")
        live = pod.live_datagrams.get(turn.tuple5)
        if live is not None and (not live.cut or live.direction is Direction.INGRESS):
            return self._established.judge_again(turn, live)
        client = tables.clients.get(turn.tuple5)
        if live is not None and (client is None or client.stage is Stage.PROVEN):
            raise BadPacket(DropReason.CUT)
        if client is not None:
            return self._client.net_plain(turn, client)
        server = tables.servers.get(turn.tuple5)
        if server is not None:
            return self._server.net_plain(turn, server)
        self._ask_to_begin_anew(turn)
        return self._established.datagram(turn)

    def _ask_to_begin_anew(self, turn: Turn) -> None:
        """A pod sends on a flow that never began here. If its agent takes the flow for accepted, a Service that leads
        elsewhere now has brought it here, or we were somebody else a moment ago."""
        pod, packet = turn.pod, turn.packet
        single = packet.destination in pod.addresses and not _is_multicast(packet.source)
        if pod.identity is None or not single or not is_pod_address(self._shared, packet.source):
            return
        again, renewed = again_towards_sender(packet), pod.datagrams.renewed
        heard = renewed.get(turn.tuple5) or 0
        if heard == DatagramTables.RENEWED:
            return
        heard += packet.length
        enough = len(again) <= heard  # never more octets to an address that has proved nothing than came from it
        renewed.put(turn.tuple5, DatagramTables.RENEWED if enough else heard, turn.now.mono_ns)
        if not enough:
            return
        self._shared.sends.append((pod.number, again))
        self.sent(turn.now, pod, again)

    def _message(self, turn: Turn, datagram: Datagram, message: bytes) -> Result:
        tables = turn.pod.datagrams
        kind = message_type_untrusted(message)
        if kind is MessageType.HELLO:
            hello = messages.decode_syn_untrusted(message, MessageType.HELLO)
            return self._server.net_hello(turn, hello, datagram)
        if kind is MessageType.RESUME:
            return self._server.net_resume(turn, message, datagram)
        if kind is MessageType.PROOF:
            server = tables.servers.get(turn.tuple5)
            if server is None:
                raise BadPacket(DropReason.NO_STATE, "proof without a HELLO")
            return self._server.net_proof(turn, server, message, datagram)
        client = tables.clients.get(turn.tuple5)
        if kind is MessageType.AGAIN and (client is None or client.settled):
            return self._client.begin_anew(turn, message, datagram)
        if client is None:
            raise BadPacket(DropReason.NO_STATE, "answer without a HELLO")
        if kind is MessageType.ANSWER:
            return self._client.net_answer(turn, client, message)
        if kind is MessageType.CONFIRM:
            return self._client.net_confirm(turn, client, message, datagram)
        if kind is MessageType.AGAIN:
            return self._client.net_again(turn, client, message)
        raise BadPacket(DropReason.MALFORMED_MESSAGE, "a message of TCP's")

    def expire(self, now: Instant, pod: Endpoint) -> None:
        """Ask again where nobody has answered, and forget what is past its time."""
        tables = pod.datagrams
        before = len(self._shared.sends)
        for flow in tables.asking.expire(now.mono_ns):
            self._client.ask_again(now, pod, flow)
        for number, data in self._shared.sends[before:]:
            assert number == pod.number
            self.sent(now, pod, data)
        for client in tables.clients.expire(now.mono_ns):
            drop_held(self._shared, pod, client.held, DropReason.HOLD_TIMEOUT)
            drop_held(self._shared, pod, client.replies, DropReason.HOLD_TIMEOUT)
        for server in tables.servers.expire(now.mono_ns):
            drop_held(self._shared, pod, server.held, DropReason.HOLD_TIMEOUT)
        for table in (tables.warm, tables.tickets, tables.silent, tables.renewed, tables.own):
            table.expire(now.mono_ns)


def _judged(turn: Turn) -> tuple[Address, int, int | None]:
    return turn.packet.destination, turn.packet.protocol, turn.packet.destination_port


def _is_multicast(address: Address) -> bool:
    """Tell multicast and the limited broadcast; a subnet's own broadcast address is not known here."""
    if len(address) == 16:
        return address[0] == 0xFF
    return address[0] & 0xF0 == 0xE0 or address == b"\xff\xff\xff\xff"


def _name(data: bytes) -> bytes:
    """Name a packet by all of it that the kernel leaves as it was sent: not IPv4's identification and checksum."""
    if data[0] >> 4 == 4:
        return data[:4] + data[6:10] + data[12:]
    return data
