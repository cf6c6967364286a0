"""Applications for tests: sockets inside lab namespaces, served from threads of this process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType

from agent.lab import LabNamespace

IP = IPv4Address | IPv6Address

_TCP_TIME_WAIT, _TCP_LISTEN = 6, 10  # include/net/tcp_states.h

PATIENCE_S = 5.0
"""How long a connection that should work may take; one that should not is given REFUSAL_S."""
REFUSAL_S = 1.2
"""Longer than the first retransmission of a SYN, so that a refusal holds for that as well."""


def family_of(address: IP) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def open_socket(namespace: LabNamespace, address: IP, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket of ``address``'s family that lives in a namespace."""
    return namespace.run(lambda: socket.socket(family_of(address), kind))


class Server:
    """A TCP server in a namespace, on both families and one port. Each connection is given to ``talk`` on a thread."""

    def __init__(
        self,
        namespace: LabNamespace,
        port: int,
        talk: Callable[[socket.socket], None] | None = None,
        prepare: Callable[[socket.socket], None] = lambda _: None,
    ) -> None:
        self.received: list[bytes] = []
        """What each connection has sent, by the order of acceptance."""
        self.peers: list[tuple[str, int]] = []
        self._namespace = namespace
        self._talk = talk or self._echo
        self._listeners = [
            namespace.run(lambda family=family: _listen(family, port, prepare))  # type: ignore[misc]
            for family in (socket.AF_INET, socket.AF_INET6)
        ]
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve, args=(one,), daemon=True) for one in self._listeners]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for one in (*self._listeners, *self._connections):
            with contextlib.suppress(OSError):  # never connected, or over already
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def wait_until_over(self) -> None:
        """Wait until the kernel, too, is through with every connection.

        The client's last ACK may come after the client has read all. Under a policy that has changed meanwhile it is
        judged again, and reported.
        """
        deadline = time.monotonic() + PATIENCE_S
        while self._namespace.run(_open_connections):
            assert time.monotonic() < deadline, "a connection does not end"
            time.sleep(0.005)

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, peer = listener.accept()
            except OSError:
                return
            self.peers.append(peer[:2])
            self._connections.append(connection)
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:  # the other side went away: the client's end of the test tells
            self._talk(connection)

    def _echo(self, connection: socket.socket) -> None:
        index = len(self.received)
        self.received.append(b"")
        while data := connection.recv(65536):
            self.received[index] += data
            connection.sendall(data)


def _open_connections() -> int:
    """Count this thread's namespace's TCP sockets that are neither listening nor in TIME-WAIT."""
    tables = (Path(f"/proc/thread-self/net/{name}").read_text(encoding="ascii") for name in ("tcp", "tcp6"))
    states = [int(line.split()[3], 16) for table in tables for line in table.splitlines()[1:]]
    return sum(state not in (_TCP_LISTEN, _TCP_TIME_WAIT) for state in states)


def _listen(family: socket.AddressFamily, port: int, prepare: Callable[[socket.socket], None]) -> socket.socket:
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    prepare(listener)
    listener.bind(("", port))
    listener.listen(1024)
    return listener


def ask(
    namespace: LabNamespace, address: IP, port: int, message: bytes = b"hello", *, source_port: int = 0,
    timeout: float = PATIENCE_S,
) -> bytes:  # fmt: skip
    """Connect, send, half-close, and return all of the answer. Raises OSError as the application would see it."""
    with open_socket(namespace, address) as client:
        client.settimeout(timeout)
        if source_port:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind(("", source_port))
        client.connect((str(address), port))
        client.sendall(message)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while data := client.recv(65536):
            answer += data
        return answer


def refused(namespace: LabNamespace, address: IP, port: int, timeout: float = REFUSAL_S) -> bool:
    """Tell whether a connection gets nowhere (silence, as policy denials are)."""
    try:
        ask(namespace, address, port, timeout=timeout)
    except TimeoutError:
        return True
    return False
