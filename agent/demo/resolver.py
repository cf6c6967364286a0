"""A resolver: a small DNS server (RFC 1035) that knows one name, and what its clients ask it."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from socketserver import BaseRequestHandler, UDPServer
from typing import Final

from agent.demo.ledger import Ask, Ledger, Seat
from agent.lab import LabPod

PORT: Final = 53
NAME: Final = "tap.beer.example"
TIMEOUT_S: Final = 0.8
"""What a client gives an answer; the exchange before a first query takes a hundredth of it."""
MAX_MESSAGE: Final = 512  # RFC 1035, section 2.3.4

_HEADER: Final = struct.Struct("!HHHHHH")
_RECORD: Final = struct.Struct("!HHIH")
_TYPES: Final[Mapping[int, int]] = {4: 1, 6: 28}
"""Address family to record type: A, and AAAA of RFC 3596."""
_INTERNET: Final = 1
_QUERY: Final = 0x0100
_ANSWER: Final = 0x8580
_NO_SUCH_NAME: Final = 3
_LIFETIME_S: Final = 5
_POINTER_TO_QUESTION: Final = b"\xc0\x0c"

Address = IPv4Address | IPv6Address


def _question(family: int) -> bytes:
    labels = b"".join(bytes((len(label),)) + label.encode() for label in NAME.split("."))
    return labels + struct.pack("!BHH", 0, _TYPES[family], _INTERNET)


def encode_query(number: int, family: int) -> bytes:
    """Return the question for NAME's address of one family."""
    return _HEADER.pack(number, _QUERY, 1, 0, 0, 0) + _question(family)


def encode_answer(query: bytes, addresses: Mapping[int, Address]) -> bytes:
    """Return the answer to a query: NAME's address, or that there is no such name. Raises ValueError for no query."""
    if not _HEADER.size < len(query) <= MAX_MESSAGE:
        raise ValueError("not a query")
    number, flags, questions, *_ = _HEADER.unpack_from(query)
    if flags & 0x8000 or questions != 1:
        raise ValueError("not a query with one question")
    for family, address in addresses.items():
        question = _question(family)
        if query[_HEADER.size :].startswith(question):
            record = _RECORD.pack(_TYPES[family], _INTERNET, _LIFETIME_S, len(address.packed))
            return _HEADER.pack(number, _ANSWER, 1, 1, 0, 0) + question + _POINTER_TO_QUESTION + record + address.packed
    return _HEADER.pack(number, _ANSWER | _NO_SUCH_NAME, 1, 0, 0, 0) + query[_HEADER.size :]


def decode_answer(data: bytes, number: int, family: int) -> Address:
    """Return the address in an answer to :func:`encode_query`. Raises ValueError for anything else."""
    packed = {4: 4, 6: 16}[family]
    head = _HEADER.pack(number, _ANSWER, 1, 1, 0, 0) + _question(family) + _POINTER_TO_QUESTION
    if not data.startswith(head) or len(data) != len(head) + _RECORD.size + packed:
        raise ValueError("not the answer to this query")
    return ip_address(data[-packed:])


def look_up(seat: Seat, server: Address) -> Ask:
    """Ask once, from a port of its own as resolvers' clients do, and report what came of it; raises nothing."""
    number = int.from_bytes(os.urandom(2), "big")
    family = socket.AF_INET if seat.family == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(TIMEOUT_S)
            client.connect((str(server), PORT))
            client.send(encode_query(number, seat.family))
            return Ask(seat, str(decode_answer(client.recv(MAX_MESSAGE), number, seat.family)))
    except (OSError, ValueError) as error:
        return Ask(seat, "", str(error) or type(error).__name__)


class _Handler(BaseRequestHandler):
    def handle(self) -> None:
        query, server = self.request
        assert isinstance(self.server, _Server)
        self.server.ledger.resolved(self.server.name)
        try:
            server.sendto(encode_answer(query, self.server.addresses), self.client_address)
        except (OSError, ValueError):
            return  # a client that is gone, or that asked nonsense


class _Server(UDPServer):
    address_family = socket.AF_INET6
    max_packet_size = MAX_MESSAGE

    def __init__(self, name: str, addresses: Mapping[int, Address], ledger: Ledger) -> None:
        self.name, self.addresses, self.ledger = name, addresses, ledger
        super().__init__(("::", PORT), _Handler)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # one socket for both families
        super().server_bind()


class Resolver:
    """Answers inside ``pod`` that NAME has ``addresses``, by family, from construction until :meth:`close`."""

    def __init__(self, pod: LabPod, name: str, addresses: Mapping[int, Address], ledger: Ledger) -> None:
        """``name``: under which the ledger keeps the queries that arrived."""
        self._server = pod.run(lambda: _Server(name, addresses, ledger))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
