"""What known identities get of Python's time: copies of their SYNs, and what is sent behind those, get no more."""

from __future__ import annotations

import pytest

from tests.harness import world
from tests.harness.segments import ACK, SYN, tcp
from tests.harness.shop import Shop
from trireme_py.fast import FastDatapath
from trireme_py.messages import encode_syn
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
    """A sequence number and a payload: all of a proof but its MAC."""
    return isn + 1 - PROOF, b"\xf7TRM\x01\x03\x00\x00\x00\x1c\x00\x00" + bytes(16)


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
