"""A million SYNs of an identity that is known and allowed, each with a nonce of its own, and an honest client."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice

import pytest

from tests.harness.segments import SYN, Segment, read
from tests.harness.shop import Shop
from tests.harness.tcp import Connection
from trireme_py.datapath import Caught
from trireme_py.endpoint import MAX_HALF_OPEN
from trireme_py.messages import encode_syn
from trireme_py.model import Hook, Verdict

FLOOD = 1_000_000
PER_SECOND = 100_000
BATCH = 500
PORT_AT, SEQUENCE_AT, NONCE_AT = 20, 24, 40 + 28
RETRANSMISSION_MS = 1_000 + 100
"""The first SYN's timer and a few round trips."""


def flood(shop: Shop) -> Iterator[bytes]:
    """The client's captured SYN with fresh ports, sequence numbers and nonces.

    What is fresh stands once more as its complement in the nonce, so that every packet has the checksum of the first.
    """
    assert shop.client.identity is not None
    syn = shop.world.last("syn")
    payload = encode_syn(shop.client.identity.id, b"\xff" * 6 + bytes(10), shop.client.identity.assertion)
    data = Segment(syn.source, 0, syn.destination, 80, 0, 0, SYN, payload).build()
    head, middle, tail = data[:PORT_AT], data[PORT_AT + 2 : SEQUENCE_AT], data[SEQUENCE_AT + 4 : NONCE_AT]
    end = data[NONCE_AT + 6 :]
    for number in range(FLOOD):
        fresh = number.to_bytes(4, "big")
        port = (1024 + number % 60_000).to_bytes(2, "big")
        opposite = ((1 << 48) - 1 - int.from_bytes(port + fresh, "big")).to_bytes(6, "big")
        yield b"".join((head, port, middle, fresh, tail, opposite, end))


@pytest.mark.slow
def test_flood_of_known_assertions_holds_the_limit_and_lets_an_honest_peer_in() -> None:
    """Slow because a million packets are judged in Python."""
    shop = Shop()
    shop.assert_works()
    shop.world.audit = False
    world, server = shop.world, shop.server
    assert server.datapath is not None
    packets = flood(shop)
    honest: list[tuple[int, Connection]] = []
    blocks = 0
    for judged in range(0, FLOOD, BATCH):
        batch = [Caught(judged + index, data) for index, data in enumerate(islice(packets, BATCH))]
        assert judged or read(batch[-1].data) is not None
        for result in server.datapath.receive(world.now, 0, Hook.NETWORK, batch):
            assert result.verdict is Verdict.PASS
        world.run(BATCH / PER_SECOND)
        assert len(server.endpoint.servers) <= MAX_HALF_OPEN
        assert len(server.endpoint.answered) <= MAX_HALF_OPEN
        if judged == FLOOD // 10:
            blocks = sys.getallocatedblocks()
        if judged % (FLOOD // 20) == 0:
            honest.append((world.ms, shop.connect(b"in spite of it all", close=True)))
        for opened, connection in honest:
            assert world.ms - opened <= RETRANSMISSION_MS or bytes(connection.received) == b"in spite of it all"
    assert sys.getallocatedblocks() - blocks < 0.1 * blocks
    assert len(server.endpoint.servers) == MAX_HALF_OPEN
    world.run(200)
    server.sweep()
    assert not server.endpoint.servers
    assert not server.endpoint.answered
    assert len(shop.accepted()) == len(honest) + 1
    shop.assert_works()
