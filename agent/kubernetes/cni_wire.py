"""The messages between the CNI plugin and the agent, as ``agent/cni/trireme_cni.c`` describes them."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MAGIC: Final = b"TRC1"
REQUEST: Final = struct.Struct("!4sIII")
"""Magic, milliseconds left, length of the environment, length of the input."""
ANSWER: Final = struct.Struct("!4sII")
"""Magic, exit code, length of the output."""
MAX_ENVIRONMENT: Final = 1 << 16
MAX_INPUT: Final = 1 << 20
"""The plugin's own bounds."""
READ_PATIENCE_S: Final = 10.0
"""The plugin writes its whole request at once."""
MAX_PATIENCE_S: Final = 600.0
"""The most that ``timeoutSeconds`` can be."""
VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Of the CNI specification. All have ``prevResult`` and ``ips`` in the form that is read here."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the container runtime said."""

    environment: Mapping[str, str]
    input: bytes
    deadline: float
    """On the monotonic clock: when the plugin gives up."""


def receive(connection: socket.socket) -> Request:
    """Read one request. Raises ValueError if it is not one of the plugin's, OSError if it does not come."""
    deadline = time.monotonic() + READ_PATIENCE_S
    magic, left_ms, environment_length, input_length = REQUEST.unpack(_exactly(connection, REQUEST.size, deadline))
    if magic != MAGIC or environment_length > MAX_ENVIRONMENT or input_length > MAX_INPUT:
        raise ValueError("not a request of trireme-cni")
    environment = _exactly(connection, environment_length, deadline).decode(errors="surrogateescape")
    pairs = (pair.partition("=") for pair in environment.split("\0") if pair)
    return Request(
        environment={name: value for name, _, value in pairs},
        input=_exactly(connection, input_length, deadline),
        deadline=time.monotonic() + min(left_ms / 1000, MAX_PATIENCE_S),
    )


def _exactly(connection: socket.socket, length: int, deadline: float) -> bytes:
    got = bytearray()
    while len(got) < length:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        part = connection.recv(min(length - len(got), 65536))
        if not part:
            raise ValueError(f"the request ended after {len(got)} of {length} octets")
        got += part
    return bytes(got)


def answer(code: int, output: bytes) -> bytes:
    """Return an answer: the plugin's exit code, and what it is to print."""
    return ANSWER.pack(MAGIC, code, len(output)) + output
