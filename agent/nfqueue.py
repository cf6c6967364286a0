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
from agent.ruleset import DEFAULT_QUEUE
from trireme_py.datapath import Caught
from trireme_py.errors import KernelError
from trireme_py.model import FlowEvent, Hook, Instant, Release, Result, Verdict

log = logging.getLogger(__name__)

QUEUE_LENGTH: Final = 8192
"""Packets that may wait for a verdict, held ones included; the kernel drops what comes on top, and counts it."""
RECEIVE_BUFFER: Final = 16 << 20
"""Octets. An exchange's packet takes about 2.5 kB of it while it waits to be read."""
SEND_BUFFER: Final = 8 << 20
"""Octets. What we send waits in the pod's own queue, a kilobyte each, and there may be as much of it as of anything
else: a thousand connections that are cut at once are a thousand resets. The usual buffer takes two hundred."""
PATIENCE: Final = 20
"""How often in a row a connection's mark is put off because more of it waits: an initial window of ten segments and
what its acknowledgements let follow. A sender that fills any queue would else stay in it for ever; it is overtaken once
instead, which costs it some retransmissions. More patience (64) let 200 streams on a starved machine fill the queue."""
HOLD_LIMIT_NS: Final = 10_000_000_000
"""The data path releases what it holds after a second. What it forgot (it crashed) must not fill the kernel's queue."""

_IPV6_HDRINCL: Final = 36  # include/uapi/linux/in6.h
_SO_SNDBUFFORCE: Final = 32  # include/uapi/asm-generic/socket.h
_SO_RCVBUFFORCE: Final = 33
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


@dataclass(frozen=True, slots=True)
class KernelCounters:
    """What the kernel counts of one queue (net/netfilter/nfnetlink_queue.c, seq_show)."""

    waiting: int
    """Packets waiting for a verdict, held ones included."""
    queue_dropped: int
    """Dropped because QUEUE_LENGTH packets were waiting."""
    user_dropped: int
    """Dropped because the receive buffer was full."""
    total: int
    """Packets that ever went into the queue."""


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


class _Arrival(NamedTuple):
    """A packet that was read from the queue."""

    packet: Any
    """NetfilterQueue's handle, through which it is answered."""
    data: bytes
    connection: bytes


class PodQueue:
    """One pod's queue. All methods belong to the data path's thread."""

    __slots__ = (
        "_arrived", "_datapath", "_guard", "_held", "_ipv4", "_ipv6", "_marks", "_mode", "_proc", "_put_off",
        "_queue", "_tickets", "_waiting", "counters", "endpoint", "epoch", "queue_number",
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
        self.queue_number = queue
        self.counters = QueueCounters()
        self._datapath = datapath
        self._guard = guard
        self._marks = marks
        self._mode = mode
        self._arrived: dict[int, list[_Arrival]] = {}
        """What was read and not yet judged, by the kernel's number of the hook."""
        self._waiting: Counter[bytes] = Counter()
        """How many packets of each connection were read and have no answer yet, held ones apart."""
        self._put_off: Counter[bytes] = Counter()
        """How often the mark was put off for a connection since none of it waited."""
        self._held: dict[int, tuple[_Arrival, int]] = {}
        """ticket -> (packet, when it was held, monotonic ns); oldest first"""
        self._tickets = itertools.count(1)
        try:
            self._queue, self._ipv4, self._ipv6, self._proc = netns.run_inside(namespace, _open_inside)
        except OSError as error:
            raise KernelError(f"network namespace {namespace}: no socket can be opened inside: {error}") from error
        try:
            # A buffer that any user may have; NetfilterQueue warns if it gets another size than it asked for.
            self._queue.bind(queue, self._arrive, QUEUE_LENGTH, COPY_PACKET, 0xFFFF, 1 << 16)
            _enlarge_buffer(self._queue.get_fd())
        except OSError as error:
            self._close_sockets()
            raise KernelError(
                f"queue {queue} of network namespace {namespace}: {error}; is another agent running there? "
                f"See /proc/net/netfilter/nfnetlink_queue inside it"
            ) from error

    def fileno(self) -> int:
        descriptor: int = self._queue.get_fd()
        return descriptor

    def close(self) -> None:
        """Close the queue and let go of the namespace. The kernel drops the packets that still wait in it."""
        self._queue.unbind()
        del self._queue
        # Each packet holds on to its queue, and the queue's socket to the namespace.
        self._arrived.clear()
        self._held.clear()
        self._close_sockets()

    def _close_sockets(self) -> None:
        self._ipv4.close()
        if self._ipv6 is not None:
            self._ipv6.close()
        os.close(self._proc)

    def kernel_counters(self) -> KernelCounters:
        """Read the kernel's own counters of this queue; all zero if it is not there."""
        for line in os.pread(self._proc, 1 << 16, 0).decode("ascii").splitlines():
            # queue number, port id, waiting, copy mode, copy range, queue dropped, user dropped, last packet id, 1
            columns = [int(column) for column in line.split()]
            if columns[0] == self.queue_number:
                return KernelCounters(columns[2], columns[5], columns[6], columns[7])
        return KernelCounters(0, 0, 0, 0)

    def service(self, now: Instant) -> None:
        """Answer what waits, and read what has come meanwhile; never blocks. See :attr:`pending`.

        What was caught at one hook is judged together and in its order, so that the data path sees which connections
        have more packets waiting. Between the hooks order says nothing: a packet that answers another cannot exist
        before that one has its verdict. A batch is bounded by QUEUE_LENGTH for the same reason.
        """
        self._queue.run(block=False)
        arrived, self._arrived = self._arrived, {}
        for number, batch in arrived.items():
            self._judge(now, number, batch)

    @property
    def pending(self) -> bool:
        """Whether packets were read that :meth:`service` has not answered; the socket will not announce those."""
        return bool(self._arrived)

    def _arrive(self, packet: Any) -> None:
        # The octets are copied here because NetfilterQueue reuses its buffer for the next packet.
        data = packet.get_payload()
        connection = _connection_untrusted(packet.hook, data)
        self._waiting[connection] += 1
        self._arrived.setdefault(packet.hook, []).append(_Arrival(packet, data, connection))

    def _judge(self, now: Instant, number: int, run: list[_Arrival]) -> None:
        hook = _HOOKS.get(number)
        if hook is None:  # a rule of somebody else's sends packets here from another hook; it is not ours to judge
            self._fail(FailureCause.RULE_ERROR, run)
            return
        self.counters.packets[hook] += len(run)
        self.counters.truncated += sum(_is_truncated_untrusted(arrival.data) for arrival in run)
        tickets = [next(self._tickets) for _ in run]
        batch = [Caught(ticket, arrival.data) for ticket, arrival in zip(tickets, run, strict=True)]
        results = self._guard(lambda: self._datapath.receive(now, self.endpoint, hook, batch))
        if results is None or len(results) != len(run):
            self._fail(FailureCause.CRASH, run)
            return
        for ticket, arrival, result in zip(tickets, run, results, strict=True):
            self._waiting[arrival.connection] -= 1
            if result.verdict is Verdict.HOLD:
                self._held[ticket] = (arrival, now.mono_ns)
            else:
                self._answer(arrival, result.verdict, result.packet)
            self._forget_idle(arrival.connection)
            for data in result.send:
                self.send(data)
            self.release(result.release)

    def _forget_idle(self, connection: bytes) -> None:
        if not self._waiting[connection]:
            del self._waiting[connection]
            self._put_off.pop(connection, None)

    def release(self, releases: Sequence[Release]) -> None:
        """Give held packets their verdict, in this order."""
        for release in releases:
            arrival, _ = self._held.pop(release.ticket, (None, 0))
            if arrival is None:
                self.counters.lost_tickets += 1
            else:
                self._answer(arrival, release.verdict, release.packet)

    def drop_forgotten(self, now: Instant) -> None:
        """Drop the packets that have been held for longer than the data path ever holds one."""
        while self._held:
            ticket, (arrival, since) = next(iter(self._held.items()))
            if now.mono_ns - since < HOLD_LIMIT_NS:
                return
            del self._held[ticket]
            self.counters.forgotten += 1
            self._answer(arrival, Verdict.DROP, None)

    @property
    def held(self) -> int:
        """How many packets are held."""
        return len(self._held)

    def _fail(self, cause: FailureCause, run: Sequence[_Arrival]) -> None:
        self.counters.failures[cause] += len(run)
        for arrival in run:
            self._waiting[arrival.connection] -= 1
            self._answer(arrival, verdict_for_failure(self._mode, cause), None)
            self._forget_idle(arrival.connection)

    def _answer(self, arrival: _Arrival, verdict: Verdict, data: bytes | None) -> None:
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
        except RuntimeError:
            self.counters.verdict_failures += 1

    def _must_wait(self, connection: bytes) -> bool:
        """Tell whether a connection's mark should wait for a later packet, because some wait in the queue right now.

        Once the mark is there the connection's next packets pass in the kernel and would overtake those. The data path
        judges what was read at once, which for a thousand connections is tens of milliseconds ago, so look again.
        """
        self._queue.run(block=False)
        if not self._waiting[connection]:
            return False
        self._put_off[connection] += 1
        return self._put_off[connection] <= PATIENCE

    def send(self, data: bytes) -> None:
        """Send a whole IP packet of our own from inside the pod's namespace.

        It passes the pod's rules like any packet of the pod, because nothing that a pod could not forge tells the two
        apart there. So it comes back through the queue, and the data path judges it as if the pod had sent it.
        """
        version = data[0] >> 4
        destination = socket.inet_ntop(socket.AF_INET, data[16:20]) if version == 4 else _ipv6_text(data[24:40])
        raw = self._ipv4 if version == 4 else self._ipv6
        try:
            if raw is None:
                raise OSError("no IPv6 here")
            raw.sendto(data, (destination, 0))
        except OSError as error:
            self.counters.send_failures += 1
            log.warning("cannot send a packet of our own", extra=fields(to=destination, error=error))


def _open_inside() -> tuple[Any, socket.socket, socket.socket | None, int]:
    # Made inside, so that the kernel chooses a port id that is free there. NetfilterQueue(sockfd=…) would ask for the
    # one it got outside, and whoever is first to bind that one inside, the pod included, locks us out.
    netlink = NetfilterQueue()
    ipv4 = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
    ipv6 = None
    if Path("/proc/sys/net/ipv6").exists():
        ipv6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
        ipv6.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
    for raw in (ipv4, ipv6):
        if raw is not None:
            _set_buffer(raw, _SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER)
    # An open file of /proc/net shows the namespace it was opened in. It comes last, because nothing closes a plain
    # descriptor when one of the steps fails.
    proc = os.open("/proc/thread-self/net/netfilter/nfnetlink_queue", os.O_RDONLY | os.O_CLOEXEC)
    return netlink, ipv4, ipv6, proc


def _enlarge_buffer(descriptor: int) -> None:
    with socket.socket(fileno=os.dup(descriptor)) as netlink:
        _set_buffer(netlink, _SO_RCVBUFFORCE, socket.SO_RCVBUF, RECEIVE_BUFFER)


def _set_buffer(one: socket.socket, forced: int, asked: int, octets: int) -> None:
    try:
        one.setsockopt(socket.SOL_SOCKET, forced, octets)
    except PermissionError:  # root of a user namespace gets what net.core.rmem_max and wmem_max allow
        one.setsockopt(socket.SOL_SOCKET, asked, octets)


def _ipv6_text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6, address)


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
