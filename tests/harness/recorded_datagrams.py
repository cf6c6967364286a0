"""Two flows of UDP with everything about them fixed: the source of the golden vectors of the exchange on UDP."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Final

from tests.harness import assertions
from tests.harness.recorded import ADDRESSES, CLIENT_NONCE, INSTANT, SERVER_NONCE, identities
from tests.harness.segments import udp
from tests.harness.standin_policy import only_from, only_to
from trireme_py.datapath import Caught, Datapath
from trireme_py.endpoint import DatapathSettings
from trireme_py.fast import FastDatapath
from trireme_py.identities import Identities, LocalIdentity
from trireme_py.model import Hook, PolicyView
from trireme_py.networks import NetworkSet

PORT: Final = 53
FIRST, SECOND = 40_000, 40_001
"""The client's ports: a first flow, and one that goes on from it."""
ASKED, ANSWERED, GOES_ON = b"question", b"answer", b"and now"
NAMES: Final = ("hello", "answer", "proof", "resume", "confirm", "proof_of_confirm")
SECOND_NONCE: Final = bytes(range(0x30, 0x40))


def _datapath(
    name: str, address: bytes, identity: LocalIdentity, nonces: list[bytes], policy: PolicyView, *, fast: bool
) -> Datapath:
    scope = NetworkSet(["10.1.0.0/16", "fd00:1::/64"])
    verifier, settings = Identities(assertions.psk_authenticator()), DatapathSettings(scope, scope)

    def entropy(octets: int) -> bytes:
        return nonces.pop(0)[:octets]

    datapath = (
        FastDatapath(verifier, settings, seed=bytes(16), entropy=entropy, translate=lambda *_: None)
        if fast
        else Datapath(verifier, settings, entropy=entropy, translate=lambda *_: None)
    )
    datapath.add_endpoint(0, name, (address,), identity, policy)
    return datapath


def datagrams(family: int, *, fast: bool = False) -> Iterator[bytes]:
    """HELLO, ANSWER and PROOF of one flow, RESUME, CONFIRM and PROOF of the next, as they are on the wire.

    ``fast``: the second flow's are the engine's in C.
    """
    here, there = ADDRESSES[family]
    client, server = identities()
    asks = _datapath("shop/frontend", here, client, [CLIENT_NONCE, SECOND_NONCE], only_to("shop/backend-0"), fast=fast)
    answers = _datapath(
        "shop/backend",
        there,
        server,
        [SERVER_NONCE],
        only_from(assertions.CLAIMS.namespace + "/" + assertions.CLAIMS.pod),
        fast=fast,
    )
    tickets = count()

    def leaves(datapath: Datapath, data: bytes) -> bytes:
        [result] = datapath.receive(INSTANT, 0, Hook.APPLICATION, [Caught(next(tickets), data)])
        sent = result.send[0] if result.send else result.packet
        assert sent is not None
        return sent

    def arrives(datapath: Datapath, data: bytes) -> bytes:
        [result] = datapath.receive(INSTANT, 0, Hook.NETWORK, [Caught(next(tickets), data)])
        let_go = [release.packet for release in result.release]
        got = result.send[0] if result.send else let_go[0] if let_go else result.packet
        assert got is not None
        return got

    hello = leaves(asks, udp((here, FIRST), (there, PORT), ASKED))
    answer = arrives(answers, hello)
    proof = arrives(asks, answer)
    resume = leaves(asks, udp((here, SECOND), (there, PORT), ASKED))
    yield from (hello, answer, proof)
    assert arrives(answers, proof) == udp((here, FIRST), (there, PORT), ASKED)
    # The ticket exists once the proof has arrived; the client had no need to wait for that.
    parked = [sum(end.counters(0).parked) for end in (asks, answers) if isinstance(end, FastDatapath)]
    yield resume
    assert arrives(answers, resume) == udp((here, SECOND), (there, PORT), ASKED)
    confirm = leaves(answers, udp((there, PORT), (here, SECOND), ANSWERED))
    yield confirm
    assert arrives(asks, confirm) == udp((there, PORT), (here, SECOND), ANSWERED)
    second = leaves(asks, udp((here, SECOND), (there, PORT), GOES_ON))
    yield second
    assert arrives(answers, second) == udp((here, SECOND), (there, PORT), GOES_ON)
    assert parked == [sum(end.counters(0).parked) for end in (asks, answers) if isinstance(end, FastDatapath)]
