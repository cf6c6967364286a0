"""One exchange with everything about it fixed: the source of the golden vectors of the three messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Final

from tests.harness import assertions
from tests.harness.segments import ACK, SYN, packed, read, tcp
from tests.harness.standin_policy import OPEN
from trireme_py.assertion import identity_id
from trireme_py.datapath import Caught, Datapath
from trireme_py.endpoint import Acceptance, DatapathSettings
from trireme_py.fast import FastDatapath
from trireme_py.identities import Identities, LocalIdentity
from trireme_py.model import Direction, Hook, Instant, PlainLabels
from trireme_py.networks import NetworkSet
from trireme_py.pairing import AgreementKey

ADDRESSES: Final = {
    4: (packed("10.1.0.2"), packed("10.1.0.3")),
    6: (packed("fd00:1::2"), packed("fd00:1::3")),
}
PORTS: Final = (40_000, 8080)
CLIENT_ISN, SERVER_ISN = 0x11111111, 0xAAAAAAAA
CLIENT_NONCE, SERVER_NONCE = bytes(range(0x10, 0x20)), bytes(range(0x20, 0x30))
OPTIONS: Final = bytes.fromhex("020405b4")
"""Maximum segment size 1460."""
DATA: Final = b"GET"
SERVER_KEY: Final = AgreementKey(sha256(b"agreement key of the server").digest())
INSTANT: Final = Instant(1_000_000_000, float(assertions.NOW))


def identities() -> tuple[LocalIdentity, LocalIdentity]:
    """The client's and the server's."""
    authenticator = assertions.psk_authenticator()
    server = assertions.claims(
        service_account="backend", pod="backend-0", labels=PlainLabels({"app": "backend"}),
        agreement_key=SERVER_KEY.public, named_ports=(),
    )  # fmt: skip
    pair = []
    for claims, key in ((assertions.CLAIMS, assertions.AGREEMENT), (server, SERVER_KEY)):
        assertion = authenticator.issue(claims, assertions.SALT)
        pair.append(LocalIdentity(identity_id(assertion), assertion, key, claims.not_after))
    return pair[0], pair[1]


def _datapath(name: str, address: bytes, identity: LocalIdentity, nonce: bytes, *, fast: bool) -> Datapath:
    scope = NetworkSet(["10.1.0.0/16", "fd00:1::/64"])
    verifier, settings = Identities(assertions.psk_authenticator()), DatapathSettings(scope, scope)

    def entropy(octets: int) -> bytes:
        return nonce[:octets]

    datapath = (
        FastDatapath(verifier, settings, seed=bytes(16), entropy=entropy, translate=lambda *_: None)
        if fast
        else Datapath(verifier, settings, entropy=entropy, translate=lambda *_: None)
    )
    datapath.add_endpoint(0, name, (address,), identity, OPEN)
    return datapath


def _introduce(one: Datapath, other: LocalIdentity, address: bytes, direction: Direction) -> None:
    """Teach a fast path what it would know of the other end, had they met before."""
    pod, port = one._endpoints[0], PORTS[1]
    assert pod.identity is not None
    peer = one._shared.identities.resolve_untrusted(INSTANT, 0, other.id, other.assertion)
    decision = OPEN.decide(direction, peer.identity, address, 6, port)
    dialled = (address, port) if direction is Direction.EGRESS else None
    one._shared.teach(Acceptance(0, direction, pod.identity, peer, address, port, decision, dialled))


def exchange(family: int, *, fast: bool = False) -> Iterator[bytes]:
    """SYN, SYN-ACK and ACK as they are on the wire; ``fast``: from the engine in C, to which everything is known."""
    here, there = ((address, port) for address, port in zip(ADDRESSES[family], PORTS, strict=True))
    client, server = identities()
    client_end = _datapath("shop/frontend", here[0], client, CLIENT_NONCE, fast=fast)
    server_end = _datapath("shop/backend", there[0], server, SERVER_NONCE, fast=fast)
    if fast:
        _introduce(client_end, server, there[0], Direction.EGRESS)
        _introduce(server_end, client, here[0], Direction.INGRESS)
    kernel = (
        (client_end, server_end, tcp(here, there, CLIENT_ISN, 0, SYN, options=OPTIONS)),
        (server_end, client_end, tcp(there, here, SERVER_ISN, CLIENT_ISN + 1, SYN | ACK, options=OPTIONS)),
        (client_end, server_end, tcp(here, there, CLIENT_ISN + 1, SERVER_ISN + 1, ACK, DATA)),
    )
    for sender, receiver, packet in kernel:
        [left] = sender.receive(INSTANT, 0, Hook.APPLICATION, [Caught(0, packet)])
        assert left.packet is not None
        yield left.packet
        [arrived] = receiver.receive(INSTANT, 0, Hook.NETWORK, [Caught(0, left.packet)])
        before, after = read(packet), read(arrived.packet or b"")
        assert before is not None
        # The other kernel sees what this one has sent, but for the fields that the data path renews.
        assert after == replace(before)
    for end in (client_end, server_end):
        assert not isinstance(end, FastDatapath) or not sum(end.counters(0).parked)
