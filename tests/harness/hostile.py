"""What an attacker, and a bad link, can do: see packets, send any packet, and sit in the router's path.

Crafting is scapy's (tests only, for its licence); reading is the project's own parser.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from netfilterqueue import NetfilterQueue
from scapy.layers.inet import IP as ScapyIP
from scapy.layers.inet import TCP as ScapyTCP
from scapy.layers.inet6 import IPv6 as ScapyIPv6
from scapy.packet import Raw

from agent.lab import LabNamespace
from tests.harness.traffic import IP
from trireme_py.errors import BadPacket
from trireme_py.model import Protocol
from trireme_py.packet import Packet, parse_packet_untrusted, with_tcp

_ETH_P_ALL = 3
_IPV6_HDRINCL = 36
_QUEUE = 9


def segment(
    source: IP, source_port: int, destination: IP, port: int, *, sequence: int = 0, acknowledgement: int = 0,
    flags: str = "S", payload: bytes = b"", options: list[Any] | None = None,
) -> bytes:  # fmt: skip
    """Craft one TCP packet, checksums right."""
    network = ScapyIP if source.version == 4 else ScapyIPv6
    tcp = ScapyTCP(
        sport=source_port, dport=port, seq=sequence % 2**32, ack=acknowledgement % 2**32, flags=flags, window=65535,
        options=options or [],
    )  # fmt: skip
    packet = network(src=str(source), dst=str(destination)) / tcp / Raw(payload)
    return bytes(packet)


def altered(packet: Packet, **numbers: Any) -> bytes:
    """Return a captured packet with other addresses or ports (fields of :class:`Packet`), checksums right."""
    changed = replace(packet, **numbers)
    data = bytearray(packet.data)
    if packet.version == 4:
        data[12:16], data[16:20] = changed.source, changed.destination
    else:
        data[8:24], data[24:40] = changed.source, changed.destination
    data[packet.transport : packet.transport + 2] = (changed.source_port or 0).to_bytes(2, "big")
    data[packet.transport + 2 : packet.transport + 4] = (changed.destination_port or 0).to_bytes(2, "big")
    return with_tcp(replace(changed, data=bytes(data)), changed.payload)


def inject(namespace: LabNamespace, data: bytes) -> None:
    """Send a whole IP packet from a namespace, as any pod with CAP_NET_RAW can."""
    family = socket.AF_INET if data[0] >> 4 == 4 else socket.AF_INET6
    with namespace.run(lambda: socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)) as raw:
        if family == socket.AF_INET6:
            raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
        destination = data[16:20] if family == socket.AF_INET else data[24:40]
        raw.sendto(data, (socket.inet_ntop(family, destination), 0))


class Capture:
    """Every TCP packet, or every UDP one, that passes a namespace's ``eth0``, either way, as it is on the wire."""

    def __init__(self, namespace: LabNamespace, interface: str = "eth0", *, protocol: Protocol = Protocol.TCP) -> None:
        self._protocol = protocol

        def listen() -> socket.socket:
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
            sniffer.bind((interface, _ETH_P_ALL))
            return sniffer

        self._socket = namespace.run(listen)
        self.packets: list[Packet] = []

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def wait_for(self, wanted: Callable[[Packet], bool], timeout: float = 15.0) -> Packet:
        """Return the first packet, past or to come, that is wanted. Raises TimeoutError."""
        for packet in self.packets:
            if wanted(packet):
                return packet
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self._socket], [], [], left)[0]:
                break
            with contextlib.suppress(BadPacket):
                packet = parse_packet_untrusted(self._socket.recv(65536))
                if packet.protocol == self._protocol:
                    self.packets.append(packet)
                    if wanted(packet):
                        return packet
        raise TimeoutError("no such packet was seen")

    def collect(self) -> None:
        """Take in what has passed so far."""
        with contextlib.suppress(TimeoutError):
            self.wait_for(lambda _: False, timeout=0.1)


@dataclass(frozen=True, slots=True)
class Pass:
    """Let the packet through, altered if ``data`` is given, after ``delay_s``, ``copies`` times."""

    data: bytes | None = None
    delay_s: float = 0.0
    copies: int = 1


DROP = Pass(copies=0)


class Shim:
    """A link with a mind of its own: what the router forwards passes through ``decide`` first.

    netem is not there on every kernel; a queue in the router is, and sees every packet.
    """

    def __init__(self, router: LabNamespace, decide: Callable[[Packet], Pass]) -> None:
        self._router = router
        self._decide = decide
        self._later: list[tuple[float, Any]] = []
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.seen: list[Packet] = []
        self.failure: BaseException | None = None

    def __enter__(self) -> Shim:
        self._queue = self._router.run(NetfilterQueue)
        self._queue.bind(_QUEUE, self._handle, 4096)
        for iptables in ("iptables", "ip6tables"):
            self._router.command(iptables, "-A", "FORWARD", "-p", "tcp", "-j", "NFQUEUE", "--queue-num", str(_QUEUE))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for iptables in ("iptables", "ip6tables"):
            self._router.command(iptables, "-D", "FORWARD", "-p", "tcp", "-j", "NFQUEUE", "--queue-num", str(_QUEUE))
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._queue.unbind()
        os.close(self._stop)
        if self.failure is not None and error is None:
            raise self.failure

    def _run(self) -> None:
        while True:
            due = min((when for when, _ in self._later), default=None)
            timeout = None if due is None else max(0.0, due - time.monotonic())
            ready, _, _ = select.select([self._queue.get_fd(), self._stop], [], [], timeout)
            if self._stop in ready:
                return
            now = time.monotonic()
            for entry in [entry for entry in self._later if entry[0] <= now]:
                self._later.remove(entry)
                entry[1].accept()
            if ready:
                self._queue.run(block=False)

    def _handle(self, queued: Any) -> None:
        try:
            packet = parse_packet_untrusted(queued.get_payload())
            self.seen.append(packet)
            answer = self._decide(packet)
        except BaseException as failure:
            self.failure = failure
            queued.accept()
            return
        if answer.data is not None:
            queued.set_payload(answer.data)
        for _ in range(answer.copies - 1):
            inject(self._router, answer.data or packet.data)
        if answer.copies == 0:
            queued.drop()
        elif answer.delay_s:
            queued.retain()
            self._later.append((time.monotonic() + answer.delay_s, queued))
        else:
            queued.accept()


@contextlib.contextmanager
def silenced_kernel(namespace: LabNamespace) -> Iterator[None]:
    """Keep a namespace's kernel from answering for connections that its attacker makes by hand."""
    for iptables in ("iptables", "ip6tables"):
        namespace.command(iptables, "-A", "INPUT", "-p", "tcp", "-j", "DROP")
    try:
        yield
    finally:
        for iptables in ("iptables", "ip6tables"):
            namespace.command(iptables, "-D", "INPUT", "-p", "tcp", "-j", "DROP")
