"""What known identities get of Python's time: copies of their SYNs, and what is sent behind those, get no more."""

from __future__ import annotations

import pytest

from tests.harness import world
from tests.harness.segments import ACK, SYN, read, tcp
from tests.harness.shop import CLIENT, Shop
from tests.harness.standin_policy import only_from
from tests.harness.world import kind_of
from trireme_py.fast import FastDatapath
from trireme_py.messages import encode_ack, encode_syn
from trireme_py.model import Hook

OWNED, KNOWN, PLAIN, STRANGER = range(4)
PASS, PASS_CLEAR, ACCEPT, DROP, PARK = range(5)
SHARE = 1024
"""Packets of one identity that are known at once (TR_SHARE)."""
PROOF = 28
SERVER_ISN = 5000


class Copyist:
    """A warm client and a warm server, and somebody who has seen the client's SYN."""

    def __init__(self) -> None:
        self.shop = Shop()
        self.shop.assert_works()
        self.server = self.shop.server

    def offer(self, hook: Hook, data: bytes) -> tuple[int, int]:
        """Show the server's engine a packet; whatever it parks goes nowhere."""
        now = self.shop.world.now
        engine = self.fast.engine_endpoint(0)
        engine.add_entropy(self.shop.world.random.randbytes(16))
        return engine.receive(now.mono_ns, now.wall_s, int(hook is Hook.APPLICATION), data, False)[:2]

    @property
    def fast(self) -> FastDatapath:
        assert isinstance(self.server.datapath, FastDatapath)
        return self.server.datapath

    def syn(self, sport: int, isn: int) -> bytes:
        identity = self.shop.client.identity
        assert identity is not None
        message = encode_syn(identity.id, isn.to_bytes(16, "big"), identity.assertion)
        return self.segment(sport, isn, 0, SYN, message)

    def ask_python(self, sport: int, isn: int) -> None:
        """Have Python answer a copied SYN, and nobody hear it."""
        self.shop.world.on_wire = lambda _: ()
        self.server.set_policy(only_from(CLIENT))  # the verdicts are forgotten
        self.server.arrive(self.syn(sport, isn))

    def segment(self, sport: int, sequence: int, acknowledgement: int, flags: int, payload: bytes = b"") -> bytes:
        ends = (self.shop.client.address(), sport), (self.server.address(), 80)
        return tcp(*ends, sequence, acknowledgement, flags, payload)

    def half_open(self, sport: int, isn: int) -> None:
        """Have C answer a copied SYN, for nothing."""
        assert self.offer(Hook.NETWORK, self.syn(sport, isn))[0] == PASS
        ends = (self.server.address(), 80), (self.shop.client.address(), sport)
        assert self.offer(Hook.APPLICATION, tcp(*ends, SERVER_ISN, isn + 1, SYN | ACK))[0] == PASS_CLEAR


@pytest.fixture
def copyist(monkeypatch: pytest.MonkeyPatch) -> Copyist:
    monkeypatch.setattr(world, "IMPLEMENTATION", "c")
    return Copyist()


def claim_of_proof(isn: int) -> tuple[int, bytes]:
    """A sequence number and a payload: a proof with another key."""
    return isn + 1 - PROOF, encode_ack(bytes(44), bytes(96), bytes(32))


@pytest.mark.parametrize("behind", ["data", "proof"])
def test_segments_behind_copied_syns_come_out_of_the_identity_s_share(copyist: Copyist, behind: str) -> None:
    """A SYN that C answers costs nothing. What is sent behind it does, so no other identity waits for it."""
    found = []
    for number in range(SHARE + 100):
        sport, isn = 1024 + number, 100_000 + number
        copyist.half_open(sport, isn)
        sequence, payload = (isn + 1, b"x") if behind == "data" else claim_of_proof(isn)
        data = copyist.segment(sport, sequence, SERVER_ISN + 1, ACK, payload)
        verdict, park = copyist.offer(Hook.NETWORK, data)
        assert verdict == PARK
        found.append(park)
    assert found == [KNOWN] * SHARE + [PLAIN] * 100
    copyist.shop.world.run(1)
    copyist.half_open(1, 7)
    assert copyist.offer(Hook.NETWORK, copyist.segment(1, 8, SERVER_ISN + 1, ACK, b"x")) == (PARK, KNOWN)


# -- proofs of exchanges that Python has ------------------------------------------------------------------------------


def test_the_proof_of_a_known_identity_is_known_while_python_has_its_exchange(copyist: Copyist) -> None:
    """Policy has changed, so Python judges the SYN. A flood of what nobody knows must not keep the proof out."""
    shop = copyist.shop
    shop.server.set_policy(only_from(CLIENT))
    seen = []
    arrive = shop.server.arrive

    def watched(data: bytes) -> None:
        segment = read(data)
        assert segment is not None
        seen.append((kind_of(segment), *copyist.offer(Hook.NETWORK, data)))
        arrive(data)

    shop.server.arrive = watched  # type: ignore[method-assign]
    connection = shop.client.host.connect(shop.client.address(), shop.server.address(), 80, b"one beer")
    shop.world.run(0.2)
    assert bytes(connection.received) == b"one beer"
    assert seen[:2] == [("syn", PARK, KNOWN), ("proof", PARK, KNOWN)]


def test_claims_of_proof_come_out_of_the_identity_s_share(copyist: Copyist) -> None:
    """Who copied a SYN, and so knows its number, gets no more by claiming to prove it."""
    copyist.ask_python(1, 100_000)  # which has cost one of the share
    sequence, payload = claim_of_proof(100_000)
    claim = copyist.segment(1, sequence, 1, ACK, payload)
    found = [copyist.offer(Hook.NETWORK, claim)[1] for _ in range(SHARE + 9)]
    assert found == [KNOWN] * (SHARE - 1) + [PLAIN] * 10
    copyist.shop.world.run(1)
    assert copyist.offer(Hook.NETWORK, claim) == (PARK, KNOWN)
    copyist.fast.engine_endpoint(0).hand_over(0, claim)
    assert copyist.offer(Hook.NETWORK, claim) == (PARK, KNOWN), "as the one before it, which is on its way"


def test_a_claim_of_proof_for_no_exchange_of_python_s_is_plain(copyist: Copyist) -> None:
    """Whoever has not seen the SYN would have to guess its number."""
    copyist.ask_python(1, 100_000)
    sequence, payload = claim_of_proof(100_000)
    for claim in (
        copyist.segment(1, sequence + 1, 1, ACK, payload),
        copyist.segment(2, sequence, 1, ACK, payload),
        copyist.segment(1, sequence, 1, ACK, payload[:-1]),
        copyist.segment(1, sequence, 1, ACK, b"\x00" + payload[1:]),
        copyist.segment(1, 100_001, 1, ACK, b"data"),
        copyist.segment(1, sequence, 1, SYN | ACK, payload),
    ):
        assert copyist.offer(Hook.NETWORK, claim) == (PARK, PLAIN)
    assert copyist.offer(Hook.NETWORK, copyist.segment(1, sequence, 1, ACK, payload)) == (PARK, KNOWN)
    copyist.shop.world.run(200)
    assert copyist.offer(Hook.NETWORK, copyist.segment(1, sequence, 1, ACK, payload)) == (PARK, PLAIN), "it is over"


def test_a_claim_of_proof_of_somebody_the_engine_does_not_know_is_plain(copyist: Copyist) -> None:
    """Nothing would bound them: his share is one of a known identity."""
    copyist.fast.set_identity(0, copyist.server.identity)  # the engine forgets all peers
    copyist.ask_python(1, 100_000)
    copyist.server.arrive(copyist.segment(2, 200_000, 0, SYN))  # without identity
    assert copyist.fast.gauges().half_open == 1, "policy refuses the latter"
    for sport, isn in ((1, 100_000), (2, 200_000)):
        sequence, payload = claim_of_proof(isn)
        assert copyist.offer(Hook.NETWORK, copyist.segment(sport, sequence, 1, ACK, payload)) == (PARK, PLAIN)
