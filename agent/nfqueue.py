"""The shell around the data path: one pod's NFQUEUE, both address families, both hooks.

The queue's socket is opened inside the pod's network namespace and served from wherever the agent lives, so *which*
socket a packet came from says which pod it belongs to. A verdict that lets a packet through is always "repeat, with
this packet mark": the packet meets our own rules once more, which carry the answer out (:mod:`agent.ruleset`).
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from netfilterqueue import COPY_PACKET, NetfilterQueue

from agent import netns
from agent.failmode import FailMode, FailureCause, verdict_for_failure
from agent.logs import fields
from agent.marks import Marks
from agent.podsockets import KernelCounters, PodSockets, set_buffer
from agent.ruleset import DEFAULT_QUEUE
from trireme_py.datapath import Caught
from trireme_py.errors import KernelError
from trireme_py.model import FlowEvent, Hook, Instant, Release, Result, Verdict
from trireme_py.packet import only_acknowledges_untrusted

log = logging.getLogger(__name__)

QUEUE_LENGTH: Final = 8192
"""Packets that may wait for a verdict, held ones included; the kernel drops what comes on top, and counts it."""
RECEIVE_BUFFER: Final = 16 << 20
"""Octets. An exchange's packet takes about 2.5 kB of it while it waits to be read."""
PATIENCE: Final = 20
"""How often in a row a connection's mark is put off because more of it waits: an initial window of ten segments and
what its acknowledgements let follow. A sender that fills any queue would else stay in it for ever; it is overtaken once
instead, which costs it some retransmissions. More patience (64) let 200 streams on a starved machine fill the queue."""
HOLD_LIMIT_NS: Final = 10_000_000_000
"""The data path releases what it holds after a second. What it forgot (it crashed) must not fill the kernel's queue."""

_SO_RCVBUFFORCE: Final = 33  # include/uapi/asm-generic/socket.h
_PRE_ROUTING: Final = 0  # include/uapi/linux/netfilter.h
_POST_ROUTING: Final = 4
_HOOKS: Final = {_PRE_ROUTING: Hook.NETWORK, _POST_ROUTING: Hook.APPLICATION}

T = TypeVar("T")


class DataPath(Protocol):
    """What the shell needs of :class:`trireme_py.datapath.Datapath`."""

    def receive(self, now: Instant, endpoint: int, hook: Hook, batch: Sequence[Caught]) -> Sequence[Result]:
        """Judge packets of one endpoint; one result each, in the same order."""

    def next_deadline(self) -> int | None:
        """Return when :meth:`expire` must be called at the latest (monotonic ns), or None."""

    def expire(self, now: Instant) -> Sequence[tuple[int, Release]]:
        """Return the releases, by endpoint, whose deadline has come."""

    def take_releases(self) -> Sequence[tuple[int, Release]]:
        """Return the releases, by endpoint, of packets that had to make room since the last call."""

    def take_sends(self) -> Sequence[tuple[int, bytes]]:
        """Return the packets of our own, by endpoint, that it is time to send."""

    def drain_events(self) -> Sequence[FlowEvent]:
        """Return what was judged since the last call."""


@dataclass(slots=True)
class QueueCounters:
    """What the shell of one pod's queue counts; nothing is lost in silence."""

    packets: Counter[Hook] = field(default_factory=Counter)
    truncated: int = 0
    """Packets longer than the queue's copies; judged by their beginning, delivered whole."""
    failures: Counter[FailureCause] = field(default_factory=Counter)
    """Packets that the fail mode answered for, by cause."""
    verdict_failures: int = 0
    """Verdicts that could not be given: the queue was closed, or the packet had one already."""
    send_failures: int = 0
    """Packets of our own that the kernel would not take."""
    lost_tickets: int = 0
    """Releases of packets that are not held."""
    forgotten: int = 0
    """Held packets that the data path never released, dropped after HOLD_LIMIT_NS."""


class CrashGuard:
    """The one catch-all: whatever the data path raises ends here, counted and logged, and the process lives on."""

    __slots__ = ("crashes",)

    def __init__(self) -> None:
        self.crashes = 0

    def __call__(self, function: Callable[[], T]) -> T | None:
        """Return what ``function`` returns, or None if it raised."""
        try:
            return function()
        except Exception as error:
            self.crashes += 1
            # A warning, because the log limits its rate: hostile packets must not be able to fill a disk.
            log.warning("the data path failed", exc_info=True, extra=fields(error=type(error).__name__))
            return None


class Arrival(NamedTuple):
    """A packet that was read from the queue."""

    packet: Any
    """What it is answered through: NetfilterQueue's handle."""
    data: bytes
    connection: bytes
    counts: bool
    """Whether later packets of its connection must not overtake it."""


class PodQueue:
    """One pod's queue. All methods belong to the data path's thread."""

    __slots__ = (
        "_arrived", "_datapath", "_guard", "_held", "_marks", "_mode", "_own_counters", "_put_off", "_queue",
        "_sockets", "_tickets", "_waiting", "endpoint", "epoch",
    )  # fmt: skip

    def __init__(
        self,
        namespace: Path,
        endpoint: int,
        datapath: DataPath,
        guard: CrashGuard,
        *,
        marks: Marks,
        epoch: int,
        mode: FailMode = FailMode.CLOSED,
        queue: int = DEFAULT_QUEUE,
    ) -> None:
        """Open queue number ``queue`` inside ``namespace``; rules may send packets to it before and after.

        Raises :class:`KernelError` if the namespace cannot be entered, somebody else holds the queue, or this process
        may open no more files.
        """
        self.endpoint = endpoint
        self.epoch = epoch
        """The epoch that accepted connections are marked with. Set it together with the endpoint's policy, before the
        rules are told: a decision of the old policy under the new epoch would never be judged again."""
        self._own_counters = QueueCounters()
        self._datapath = datapath
        self._guard = guard
        self._marks = marks
        self._mode = mode
        self._arrived: dict[int, list[Arrival]] = {}
        """What was read and not yet judged, by the kernel's number of the hook."""
        self._waiting: Counter[bytes] = Counter()
        """How many packets of each connection that must not be overtaken were read and have no answer yet, held ones
        apart."""
        self._put_off: Counter[bytes] = Counter()
        """How often the mark was put off for a connection since none of it waited."""
        self._held: dict[int, tuple[Arrival, int]] = {}
        """ticket -> (packet, when it was held, monotonic ns); oldest first"""
        self._tickets = itertools.count(1)
        self._queue: Any = None
        self._sockets = PodSockets(namespace, queue)
        try:
            self._open(namespace, queue)
        except KernelError:
            self._sockets.close()
            raise
        except OSError as error:
            self._sockets.close()
            raise KernelError(
                f"queue {queue} of network namespace {namespace}: {error}; is another agent running there? "
                f"See /proc/net/netfilter/nfnetlink_queue inside it"
            ) from error

    def _open(self, namespace: Path, queue: int) -> None:
        # Made inside, so that the kernel chooses a port id that is free there. NetfilterQueue(sockfd=…) would ask for
        # the one it got outside, and whoever is first to bind that one inside, the pod included, locks us out.
        self._queue = netns.run_inside(namespace, NetfilterQueue)
        # A buffer that any user may have; NetfilterQueue warns if it gets another size than it asked for.
        self._queue.bind(queue, self._arrive, QUEUE_LENGTH, COPY_PACKET, 0xFFFF, 1 << 16)
        _enlarge_buffer(self._queue.get_fd())

    def start(self) -> None:
        """Have packets read from now on. Called once, when the data path knows the endpoint."""

    def fileno(self) -> int:
        descriptor: int = self._queue.get_fd()
        return descriptor

    def close(self) -> None:
        """Close the queue and let go of the namespace. The kernel drops the packets that still wait in it."""
        self._queue.unbind()
        self._let_go()

    def _let_go(self) -> None:
        self._queue = None
        # Each packet holds on to its queue, and the queue's socket to the namespace.
        self._arrived.clear()
        self._held.clear()
        self._sockets.close()

    @property
    def counters(self) -> QueueCounters:
        return self._own_counters

    def kernel_counters(self) -> KernelCounters:
        """Read the kernel's own counters of this queue; all zero if it is not there."""
        return self._sockets.kernel_counters()

    def service(self, now: Instant) -> None:
        """Answer what waits, and read what has come meanwhile; never blocks. See :attr:`pending`.

        What was caught at one hook is judged together and in its order, so that the data path sees which connections
        have more packets waiting. Between the hooks order says nothing: a packet that answers another cannot exist
        before that one has its verdict. A batch is bounded by QUEUE_LENGTH for the same reason.
        """
        self._read()
        arrived, self._arrived = self._arrived, {}
        for number, batch in arrived.items():
            self._judge(now, number, batch)

    @property
    def pending(self) -> bool:
        """Whether packets were read that :meth:`service` has not answered; the socket will not announce those."""
        return bool(self._arrived)

    def _read(self) -> None:
        """Read what has come, and let :meth:`_arrive` have it."""
        self._queue.run(block=False)

    def _arrive(self, packet: Any) -> None:
        # The octets are copied here because NetfilterQueue reuses its buffer for the next packet.
        data = packet.get_payload()
        connection = _connection_untrusted(packet.hook, data)
        counts = not only_acknowledges_untrusted(data)
        self._waiting[connection] += counts
        self._arrived.setdefault(packet.hook, []).append(Arrival(packet, data, connection, counts))

    def _judge(self, now: Instant, number: int, run: list[Arrival]) -> None:
        hook = _HOOKS.get(number)
        if hook is None:  # a rule of somebody else's sends packets here from another hook; it is not ours to judge
            self._fail(FailureCause.RULE_ERROR, run)
            return
        self._own_counters.packets[hook] += len(run)
        self._own_counters.truncated += sum(_is_truncated_untrusted(arrival.data) for arrival in run)
        tickets = [next(self._tickets) for _ in run]
        results = self._guard(lambda: self._ask(now, hook, tickets, run))
        if results is None or len(results) != len(run):
            self._fail(FailureCause.CRASH, run)
            return
        for ticket, arrival, result in zip(tickets, run, results, strict=True):
            self._waiting[arrival.connection] -= arrival.counts
            if result.verdict is Verdict.HOLD:
                self._held[ticket] = (arrival, now.mono_ns)
            else:
                self._answer(arrival, result.verdict, result.packet)
            self._forget_idle(arrival.connection)
            for data in result.send:
                self.send(data)
            self.release(result.release)

    def _ask(self, now: Instant, hook: Hook, tickets: list[int], run: list[Arrival]) -> Sequence[Result]:
        batch = [Caught(ticket, arrival.data) for ticket, arrival in zip(tickets, run, strict=True)]
        return self._datapath.receive(now, self.endpoint, hook, batch)

    def _forget_idle(self, connection: bytes) -> None:
        if not self._waiting[connection]:
            del self._waiting[connection]
            self._put_off.pop(connection, None)

    def release(self, releases: Sequence[Release]) -> None:
        """Give held packets their verdict, in this order."""
        for release in releases:
            arrival, _ = self._held.pop(release.ticket, (None, 0))
            if arrival is None:
                self._own_counters.lost_tickets += 1
            else:
                self._answer(arrival, release.verdict, release.packet)

    def drop_forgotten(self, now: Instant) -> None:
        """Drop the packets that have been held for longer than the data path ever holds one."""
        while self._held:
            ticket, (arrival, since) = next(iter(self._held.items()))
            if now.mono_ns - since < HOLD_LIMIT_NS:
                return
            del self._held[ticket]
            self._own_counters.forgotten += 1
            self._answer(arrival, Verdict.DROP, None)

    @property
    def held(self) -> int:
        """How many packets are held."""
        return len(self._held)

    def _fail(self, cause: FailureCause, run: Sequence[Arrival]) -> None:
        self._own_counters.failures[cause] += len(run)
        for arrival in run:
            self._waiting[arrival.connection] -= arrival.counts
            self._answer(arrival, verdict_for_failure(self._mode, cause), None)
            self._forget_idle(arrival.connection)

    def _answer(self, arrival: Arrival, verdict: Verdict, data: bytes | None) -> None:
        packet = arrival.packet
        try:
            if verdict is Verdict.DROP:
                packet.drop()
                return
            if verdict is Verdict.ACCEPT and self._must_wait(arrival.connection):
                verdict = Verdict.PASS
            packet.set_mark(self._marks.answer(verdict, packet.mark, self.epoch))
            if data is not None:
                packet.set_payload(data)
            packet.repeat()
        except (OSError, RuntimeError):
            self._own_counters.verdict_failures += 1

    def _must_wait(self, connection: bytes) -> bool:
        """Tell whether a connection's mark should wait for a later packet, because some wait in the queue right now.

        Once the mark is there the connection's next packets pass in the kernel and would overtake those. The data path
        judges what was read at once, which for a thousand connections is tens of milliseconds ago, so look again.
        """
        self._read_on()
        if not self._waiting[connection]:
            return False
        self._put_off[connection] += 1
        return self._put_off[connection] <= PATIENCE

    def _read_on(self) -> None:
        """Read what has come by now, wherever it waits."""
        self._read()

    def send(self, data: bytes) -> None:
        """Send a whole IP packet of our own from inside the pod's namespace.

        It passes the pod's rules like any packet of the pod, because nothing that a pod could not forge tells the two
        apart there. So it comes back through the queue, and the data path judges it as if the pod had sent it.
        """
        try:
            self._sockets.send(data)
        except OSError as error:
            self._own_counters.send_failures += 1
            log.warning("cannot send a packet of our own", extra=fields(endpoint=self.endpoint, error=error))


def _enlarge_buffer(descriptor: int) -> None:
    with socket.socket(fileno=os.dup(descriptor)) as netlink:
        set_buffer(netlink, _SO_RCVBUFFORCE, socket.SO_RCVBUF, RECEIVE_BUFFER)


def _connection_untrusted(hook: int, data: bytes) -> bytes:
    """Return a name for the packet's connection, the same in both directions.

    Only the order of packets depends on it, so whatever is where ports usually are will do for those that have none.
    """
    if data[:1] < b"\x60":  # IPv4
        ports = (data[0] & 0x0F) * 4 if data else 0
        source, destination = data[12:16], data[16:20]
    else:
        ports = 40
        source, destination = data[8:24], data[24:40]
    source += data[ports : ports + 2]
    destination += data[ports + 2 : ports + 4]
    return source + destination if hook == _POST_ROUTING else destination + source


def _is_truncated_untrusted(data: bytes) -> bool:
    """Tell whether the IP header promises more octets than were copied."""
    if len(data) < 20:
        return False
    if data[0] >> 4 == 4:
        return int.from_bytes(data[2:4], "big") > len(data)
    return int.from_bytes(data[4:6], "big") + 40 > len(data)
