"""Peers for the benchmarks: thousands that a pod knows already, and a flood of ones that nobody knows."""

from __future__ import annotations

import os
import struct
import time
from ipaddress import IPv4Address
from pathlib import Path

from tests.harness.node import TRUST_DOMAIN, HeldPod, Node, make_identity
from trireme_py.auth_psk import PskAuthenticator
from trireme_py.datapath import Datapath
from trireme_py.endpoint import Acceptance
from trireme_py.fast import FastDatapath
from trireme_py.identities import Peer
from trireme_py.messages import encode_syn
from trireme_py.model import Decision, Direction, Protocol, Reason
from trireme_py.wire import NONCE_SIZE

STRANGERS = 1000
"""Identities of a flood; each is met again after as many packets."""
FLOOD_PORTS = range(2000, 22000)


def teach_peers(node: Node, held: HeldPod, count: int) -> None:
    """Have a pod know `count` peers that it has accepted connections of, on port 80."""
    identity = held.identity
    now = time.time()

    def teach(datapath: Datapath) -> None:
        assert isinstance(datapath, FastDatapath)
        for number in range(count):
            other = make_identity(node.authenticator, f"peer-{number}", {"app": f"app-{number % 50}"})
            verified = node.authenticator.verify_untrusted(other.assertion, now)
            peer = Peer(
                verified.identity, verified.agreement_key, verified.not_before, verified.not_after, other.assertion
            )
            address = (0x0A4E0000 + number).to_bytes(4, "big")
            decision = Decision(True, Reason.POLICY)
            datapath._teach(
                Acceptance(held.endpoint, Direction.INGRESS, identity, peer, address, 80, decision, dialled=None)
            )

    node.call(teach)


def write_flood(path: Path, source: IPv4Address, destination: IPv4Address, port: int, *, identified: bool) -> None:
    """Write SYNs for ``load flood``: bare ones, or with well-formed assertions whose issuer nobody here trusts."""
    foreign = PskAuthenticator(os.urandom(32), TRUST_DOMAIN)
    payloads = [b""]
    if identified:
        strangers = [make_identity(foreign, f"stranger-{number}") for number in range(STRANGERS)]
        payloads = [encode_syn(one.id, os.urandom(NONCE_SIZE), one.assertion) for one in strangers]
    with path.open("wb") as file:
        for number, source_port in enumerate(FLOOD_PORTS):
            packet = _syn(source.packed, source_port, destination.packed, port, payloads[number % len(payloads)])
            file.write(len(packet).to_bytes(2, "big") + packet)


def _syn(source: bytes, source_port: int, destination: bytes, port: int, payload: bytes) -> bytes:
    isn = int.from_bytes(os.urandom(4), "big")
    segment = struct.pack(">HHIIBBHHH", source_port, port, isn, 0, 0x50, 0x02, 64240, 0, 0) + payload
    pseudo = source + destination + struct.pack(">BBH", 0, Protocol.TCP, len(segment))
    segment = segment[:16] + struct.pack(">H", _checksum(pseudo + segment)) + segment[18:]
    # The kernel fills in the IP checksum and the length.
    return struct.pack(">BBHHHBBH", 0x45, 0, 0, 1, 0, 64, Protocol.TCP, 0) + source + destination + segment


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
