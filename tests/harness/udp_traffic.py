"""UDP applications for tests: plain sockets inside lab namespaces."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from agent.lab import LabNamespace
from tests.harness.traffic import IP, open_socket

IPV6_V6ONLY = socket.IPV6_V6ONLY


@dataclass(slots=True)
class Echo:
    """A UDP server on both families of a namespace that answers every datagram with ``re:`` and the same octets."""

    namespace: LabNamespace
    port: int
    answers: Callable[[bytes], bytes | None] = lambda data: b"re:" + data
    ipv4: str = ""
    """The address it is bound to, and answers from; the IPv6 one is always the namespace's choice."""
    received: list[bytes] = field(default_factory=list)
    peers: list[tuple[str, int]] = field(default_factory=list)
    _sockets: list[socket.socket] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Echo:
        for family in (socket.AF_INET, socket.AF_INET6):
            listening = self.namespace.run(lambda family=family: socket.socket(family, socket.SOCK_DGRAM))  # type: ignore[misc]
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            listening.bind((self.ipv4 if family == socket.AF_INET else "", self.port))
            self._sockets.append(listening)
            self._threads.append(threading.Thread(target=self._serve, args=(listening,), daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):  # it was never connected
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(1)

    def _serve(self, listening: socket.socket) -> None:
        while True:
            try:
                data, peer = listening.recvfrom(1 << 16)
            except OSError:
                return
            if not data and not peer:
                return  # shut down
            self.received.append(data)
            self.peers.append(peer[:2])
            answer = self.answers(data)
            if answer is not None:
                with contextlib.suppress(OSError):  # the asking pod may be gone
                    listening.sendto(answer, peer)


def query(
    namespace: LabNamespace, address: IP, port: int, message: bytes = b"question", *, timeout: float = 15.0,
    source_port: int = 0, prepare: Callable[[socket.socket], None] = lambda _: None,
) -> bytes:  # fmt: skip
    """Ask once from a socket of its own and return the answer. Raises TimeoutError."""
    with open_socket(namespace, address, socket.SOCK_DGRAM) as asking:
        prepare(asking)
        asking.settimeout(timeout)
        if source_port:
            asking.bind(("", source_port))
        asking.sendto(message, (str(address), port))
        return asking.recv(1 << 16)


def unanswered(namespace: LabNamespace, address: IP, port: int, message: bytes = b"question") -> bool:
    """Tell whether nobody answers for longer than four HELLOs take."""
    try:
        query(namespace, address, port, message, timeout=0.6)
    except TimeoutError:
        return True
    return False
