"""The engine: one packet in, exactly one verdict out.

This file says which part of the data path a packet belongs to, and nothing else. The shell (agent/nfqueue.py) reads
packets from the pods' queues, calls :meth:`Datapath.receive`, and carries out the results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from trireme_py.client import ClientSide
from trireme_py.datagrams import Datagrams
from trireme_py.endpoint import (
    DatapathSettings,
    Endpoint,
    Shared,
    Translate,
    Turn,
    drop_held,
    explain,
    note_identity,
    tuple_of,
)
from trireme_py.errors import BadPacket, InvalidToken
from trireme_py.established import Established
from trireme_py.flows import Live, Tuple5
from trireme_py.handshake import AWAITING_ACK, AWAITING_SYN_ACK, OPENED
from trireme_py.identities import Identities, LocalIdentity
from trireme_py.messages import is_message
from trireme_py.model import (
    Address,
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
from trireme_py.packet import (
    ACK,
    FIN,
    RST,
    SEQUENCE_SPACE,
    SYN,
    Packet,
    only_acknowledges_untrusted,
    parse_packet_untrusted,
)
from trireme_py.server import ServerSide


class Caught(NamedTuple):
    """A packet as the shell caught it."""

    ticket: int
    """The shell's own number for it, by which a held packet is released later."""
    data: bytes


class Gauges(NamedTuple):
    """Sizes of the data path's tables, for the metrics."""

    opening: int
    half_open: int
    live: int
    identities: int


class Datapath:
    """The data path of all local pods. Not thread-safe: one thread owns it."""

    __slots__ = (
        "_client", "_datagrams", "_endpoints", "_established", "_on_failure", "_server", "_shared", "_winding_up",
    )  # fmt: skip

    def __init__(
        self,
        identities: Identities,
        settings: DatapathSettings,
        *,
        entropy: Callable[[int], bytes],
        translate: Translate,
        on_failure: Callable[[Exception], Verdict] = lambda _: Verdict.DROP,
    ) -> None:
        """``entropy(n)`` returns n octets of the kernel's CSPRNG. ``on_failure`` decides for a packet that made this
        code fail: the one catch-all of the data path asks it, so that no packet ends the process."""
        self._shared = Shared(identities, settings, entropy, translate)
        self._client = ClientSide(self._shared)
        self._server = ServerSide(self._shared)
        self._established = Established(self._shared)
        self._datagrams = Datagrams(self._shared, self._established)
        self._endpoints: dict[int, Endpoint] = {}
        self._on_failure = on_failure
        self._winding_up = False

    # -- pods ---------------------------------------------------------------------------------------------------------

    def add_endpoint(
        self,
        endpoint: int,
        pod: str,
        addresses: tuple[Address, ...],
        identity: LocalIdentity | None,
        policy: PolicyView,
    ) -> None:
        """Take on a local pod. ``endpoint`` is the shell's own number for its queue.

        A pod without an identity shows none and asks for none: policy judges it, and its peers, by address.
        """
        self._endpoints[endpoint] = Endpoint(endpoint, pod, frozenset(addresses), identity, policy)
        self._shared.pod_addresses.update(addresses)

    def remove_endpoint(self, endpoint: int) -> list[Release]:
        """Let a pod go; returns the releases of what it had held."""
        gone = self._endpoints.pop(endpoint, None)
        if gone is None:
            return []
        self._shared.pod_addresses -= Counter(gone.addresses)
        self._shared.identities.forget_endpoint(endpoint)
        for held in gone.holds.clear():
            drop_held(self._shared, gone, held, DropReason.NOT_READY)
        orphans = self._take_orphans()
        self._shared.orphans = [(number, release) for number, release in orphans if number != endpoint]
        return [release for number, release in orphans if number == endpoint]

    def forget_peers(self) -> None:
        """Other keys are in use: believe nobody for having been believed. Connections stay as they were judged."""
        self._shared.identities.forget_peers()

    def set_node_addresses(self, addresses: frozenset[Address]) -> None:
        """The node has other addresses than it had; connections under way stay as they were judged."""
        self._shared.settings = replace(self._shared.settings, node_addresses=addresses)

    def set_identity(self, endpoint: int, identity: LocalIdentity | None) -> None:
        """Use another assertion, or none, for the pod's next connections; those under way finish with theirs."""
        self._endpoints[endpoint].identity = identity

    def set_policy(self, endpoint: int, policy: PolicyView) -> None:
        """Swap the pod's policy. Live connections are judged again as their packets come back to the queue."""
        pod = self._endpoints[endpoint]
        pod.policy = policy
        pod.datagrams.silent.clear()  # who was refused for what he is may be somebody else to the new policy

    # -- packets ------------------------------------------------------------------------------------------------------

    def receive(self, now: Instant, endpoint: int, hook: Hook, batch: Sequence[Caught]) -> list[Result]:
        """Judge the packets of one pod that were waiting in its queue at one hook, in their order.

        Returns one result for each. While more packets of one connection wait, none of them is marked: a packet that
        came later would overtake those still in the queue. Only mere acknowledgements may be overtaken.
        """
        pod = self._endpoints.get(endpoint)
        leaving = hook is Hook.APPLICATION
        parsed: list[tuple[Packet, Tuple5] | BadPacket] = []
        last: dict[Tuple5, int] = {}
        for index, caught in enumerate(batch):
            try:
                packet = parse_packet_untrusted(caught.data)
            except BadPacket as bad:
                parsed.append(bad)
                continue
            tuple5 = tuple_of(packet, leaving=leaving)
            parsed.append((packet, tuple5))
            if not only_acknowledges_untrusted(caught.data):
                last[tuple5] = index
        results = []
        for index, item in enumerate(parsed):
            if isinstance(item, BadPacket):
                results.append(self._drop(item.reason))
            elif pod is None:
                results.append(self._drop(DropReason.NOT_READY))
            else:
                packet, tuple5 = item
                turn = Turn(now, pod, hook, batch[index].ticket, packet, tuple5, last.get(tuple5, 0) > index)
                results.append(self._receive_one(turn))
        return results

    def receive_one(self, now: Instant, endpoint: int, hook: Hook, caught: Caught, more: bool) -> Result:
        """Judge one packet; ``more``: whether more of its connection wait behind it."""
        pod = self._endpoints.get(endpoint)
        if pod is None:
            return self._drop(DropReason.NOT_READY)
        try:
            packet = parse_packet_untrusted(caught.data)
        except BadPacket as bad:
            return self._drop(bad.reason)
        tuple5 = tuple_of(packet, leaving=hook is Hook.APPLICATION)
        return self._receive_one(Turn(now, pod, hook, caught.ticket, packet, tuple5, more))

    def _receive_one(self, turn: Turn) -> Result:
        try:
            if turn.packet.protocol == Protocol.UDP:
                return self._datagrams.receive(turn)
            if turn.packet.protocol != Protocol.TCP:
                return self._established.datagram(turn)
            if turn.packet.flags & SYN and turn.packet.flags & (RST | FIN):
                raise BadPacket(DropReason.MALFORMED_PACKET, "SYN with RST or FIN")
            if turn.hook is Hook.APPLICATION:
                return self._application_packet(turn)
            return self._network_packet(turn)
        except (BadPacket, InvalidToken) as bad:
            explain(self._shared, turn, bad)
            return self._drop(bad.reason)
        except Exception as failure:  # the one catch-all: no packet may end the process
            return self._fail(failure)

    def _fail(self, failure: Exception) -> Result:
        """Answer for a packet that made this code fail."""
        verdict = self._on_failure(failure)
        self._shared.drops[DropReason.INTERNAL_ERROR] += 1
        return Result(verdict, DropReason.INTERNAL_ERROR if verdict is Verdict.DROP else None)

    def _application_packet(self, turn: Turn) -> Result:
        """A TCP packet leaves the pod."""
        pod, packet = turn.pod, turn.packet
        if packet.flags & SYN:
            if packet.flags & ACK:
                return self._server.app_syn_ack(turn)
            self._check_opening(turn.tuple5 in pod.clients)
            return self._client.app_syn(turn)
        client, live = pod.clients.get(turn.tuple5), pod.live.get(turn.tuple5)
        # A connection of ours that was accepted and then lost its standing, to a new policy or by being forgotten, is
        # judged again below.
        standing = live is not None and client is not None and live.isn == client.isn and live.policy is pod.policy
        if client is not None and (standing or client.state not in OPENED):
            return self._client.app_segment(turn, client)
        if turn.tuple5 in pod.answered:
            return self._server.app_segment(turn)
        if live is not None:
            return self._established.judge_again(turn, live)
        if packet.flags & RST:
            syn = (packet.destination, packet.destination_port or 0, (packet.acknowledgement - 1) % SEQUENCE_SPACE)
            if syn in pod.servers:
                return Result(Verdict.PASS)  # a closed port refuses a SYN that policy let in
        return self._established.unknown_segment(turn)

    def _network_packet(self, turn: Turn) -> Result:
        """A TCP packet arrives at the pod."""
        pod, packet = turn.pod, turn.packet
        client = pod.clients.get(turn.tuple5)
        if packet.flags & SYN:
            if is_message(packet.payload):
                note_identity(self._shared, turn, packet.source, packet.source_port)
            if packet.flags & ACK:
                if client is None:
                    raise BadPacket(DropReason.NO_STATE, "SYN-ACK without a SYN")
                return self._client.net_syn_ack(turn, client)
            if client is not None and client.state in AWAITING_SYN_ACK:
                raise BadPacket(DropReason.SIMULTANEOUS_OPEN)
            self._check_opening((packet.source, packet.source_port or 0, packet.sequence) in pod.servers)
            return self._server.net_syn(turn)
        if client is not None and client.state in AWAITING_SYN_ACK | AWAITING_ACK:
            return self._client.net_segment(turn, client)
        proven = self._server.find_by_proof(turn)
        if proven is not None:
            return self._server.net_proof(turn, proven)
        half_open = pod.answered.get(turn.tuple5)
        if half_open is not None:
            return self._server.net_segment(turn, half_open)
        live = pod.live.get(turn.tuple5)
        if live is not None:
            return self._established.judge_again(turn, live)
        return self._established.unknown_segment(turn)

    def _check_opening(self, under_way: bool) -> None:
        """Let no connection begin when this agent is about to go: it would not see the end of the exchange."""
        if self._winding_up and not under_way:
            raise BadPacket(DropReason.NOT_READY, "the agent is stopping; the SYN comes again")

    def _drop(self, reason: DropReason) -> Result:
        self._shared.drops[reason] += 1
        return Result(Verdict.DROP, reason)

    # -- the end ------------------------------------------------------------------------------------------------------

    def wind_up(self) -> None:
        """Let no TCP connection begin any more: its SYN is for the next agent. What is under way goes on."""
        self._winding_up = True

    def unproven(self) -> int:
        """Count the exchanges that the next agent could not take up, and one end of which counts as made already."""
        pods = self._endpoints.values()
        clients = (pod.clients.get(key) for pod in pods for key in pod.clients)
        waiting = sum(flow is not None and flow.state in AWAITING_ACK for flow in clients)
        return waiting + sum(len(pod.servers) for pod in pods)

    # -- time and reports ---------------------------------------------------------------------------------------------

    def next_deadline(self) -> int | None:
        """Monotonic nanoseconds at which :meth:`expire` has something to do, or None."""
        deadlines = [deadline for pod in self._endpoints.values() for deadline in pod.deadlines()]
        return min(deadlines, default=None)

    def expire(self, now: Instant) -> list[tuple[int, Release]]:
        """Forget what is past its time; returns (endpoint, release) for each packet that was held too long."""
        self._shared.identified.expire(now.mono_ns)
        for pod in self._endpoints.values():
            for held in pod.holds.expire(now.mono_ns):
                drop_held(self._shared, pod, held, DropReason.HOLD_TIMEOUT)
            for server in pod.servers.expire(now.mono_ns):
                self._server.forget(pod, server, DropReason.HOLD_TIMEOUT)
            for client in pod.clients.expire(now.mono_ns):
                drop_held(self._shared, pod, client.held, DropReason.HOLD_TIMEOUT)
            self._datagrams.expire(now, pod)
            pod.denials.expire(now.mono_ns)
            pod.unanswered.expire(now.mono_ns)
            pod.minds_payload.expire(now.mono_ns)
        return self._take_orphans()

    def remembered(self, endpoint: int) -> dict[Tuple5, Live | None]:
        """Return the accepted connections that are remembered, each with what is known of it.

        That tells it from a later one on the same ports. None: only the fast path knows it.
        """
        pod = self._endpoints[endpoint]
        return {tuple5: table.get(tuple5) for table in (pod.live, pod.live_datagrams) for tuple5 in table}

    def take_releases(self) -> list[tuple[int, Release]]:
        """Return (endpoint, release) of held packets whose connection had to make room since the last call."""
        return self._take_orphans()

    def take_sends(self) -> list[tuple[int, bytes]]:
        """Return (endpoint, packet) of our own to be sent since the last call, because of time and not of a packet."""
        sends, self._shared.sends = self._shared.sends, []
        return sends

    def forget(self, endpoint: int, gone: Mapping[Tuple5, Live | None]) -> int:
        """Drop the memory of those of the :meth:`remembered` connections that conntrack no longer has.

        A connection that was accepted on the same ports since then stays. Returns how many were dropped.
        """
        pod = self._endpoints[endpoint]
        tables = (pod.live, pod.live_datagrams)
        dead = [(table, key) for table in tables for key, live in gone.items() if live and table.get(key) is live]
        for table, tuple5 in dead:
            table.pop(tuple5)
        return len(dead)

    def drain_events(self) -> list[FlowEvent]:
        """Return what was judged since the last call."""
        events, self._shared.events = self._shared.events, []
        return events

    @property
    def drops(self) -> Counter[DropReason]:
        """Packets dropped, by reason."""
        return self._shared.drops

    @property
    def unproven_translations(self) -> int:
        """Servers accepted behind an outside address whose translation this node could not see."""
        return self._shared.unproven_translations

    def unrecorded(self) -> Counter[tuple[Direction, Reason]]:
        """Count accepted connections that became no event; here each does."""
        return Counter()

    def gauges(self) -> Gauges:
        """Count what is remembered."""
        pods = self._endpoints.values()
        return Gauges(
            sum(len(pod.clients) for pod in pods),
            sum(len(pod.servers) for pod in pods),
            sum(len(pod.live) + len(pod.live_datagrams) for pod in pods),
            len(self._shared.identities),
        )

    def lookups(self) -> dict[str, int]:
        """Count the assertions that peers presented here, by what became of them."""
        identities = self._shared.identities
        return {"known": identities.known, "verified": identities.verified, "refused": identities.refused}

    def _take_orphans(self) -> list[tuple[int, Release]]:
        orphans, self._shared.orphans = self._shared.orphans, []
        return orphans
