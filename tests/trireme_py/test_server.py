"""The server's end: what arrives, in which order, and what the pod's kernel makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.harness.segments import ACK, FIN, RST, SYN, Segment, tcp
from tests.harness.shop import CLIENT, Shop, alter, delay, lose, repeat
from tests.harness.standin_policy import OPEN, only_from
from trireme_py.model import DropReason, Verdict


def test_server_first_application_behind_a_full_backlog_is_reached_in_the_end() -> None:
    """Linux ignores the ACK while the accept queue is full and repeats its SYN-ACK; the client stays silent."""
    shop = Shop()
    shop.listener.backlog_full = True
    shop.listener.on_accept = lambda connection: connection.write(b"welcome")
    connection = shop.connect(b"")
    shop.world.run(0.5)
    shop.listener.backlog_full = False
    shop.world.run(4, until=lambda: bytes(connection.received) == b"welcome")
    assert bytes(connection.received) == b"welcome"
    assert shop.world.ms < 1100


def test_same_source_and_number_to_another_port_does_not_disturb() -> None:
    shop = Shop()
    shop.server.listen(22)
    delay(shop.world, "proof", 50_000_000)
    connection = shop.connect()
    shop.world.run(0.025)
    syn = shop.world.last("syn")
    shop.world.inject(replace(syn, dport=22).build())
    shop.world.run(5, until=lambda: bool(connection.received))
    assert bytes(connection.received) == b"one beer"
    assert shop.server.drops == {DropReason.UNEXPECTED: 1}
    assert not shop.server.endpoint.answered
