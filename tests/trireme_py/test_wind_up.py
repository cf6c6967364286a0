"""An agent about to stop: what is under way comes to its end, and what would begin waits for the next agent."""

from __future__ import annotations

import pytest

from tests.harness.shop import Shop, lose
from tests.harness.world import Pod
from trireme_py.datapath import Datapath
from trireme_py.model import DropReason


def datapath(pod: Pod) -> Datapath:
    assert pod.datapath is not None
    return pod.datapath


@pytest.mark.parametrize("who", ["client", "server"])
@pytest.mark.parametrize("known", [False, True], ids=["first", "known"])
def test_an_exchange_under_way_ends_and_a_new_one_waits(who: str, known: bool) -> None:
    shop = Shop()
    if known:
        shop.assert_works()
    stopping = datapath(shop.client if who == "client" else shop.server)
    server = datapath(shop.server)
    assert stopping.unproven() == 0
    lose(shop.world, "proof")
    begun = shop.connect()
    shop.world.run(0.1, until=lambda: server.unproven() > 0)
    assert server.unproven() == 1
    stopping.wind_up()
    waiting = shop.connect(b"another")
    shop.world.run(0.9)
    assert bytes(begun.received) == b"one beer"
    assert (stopping.unproven(), server.unproven()) == (0, 0)
    assert not waiting.opened
    assert stopping.drops[DropReason.NOT_READY] == 1


def test_a_repeated_syn_of_an_exchange_under_way_passes() -> None:
    shop = Shop()
    lose(shop.world, "syn-ack")
    begun = shop.connect()
    shop.world.run(0.1, until=lambda: datapath(shop.server).unproven() > 0)
    datapath(shop.client).wind_up()
    datapath(shop.server).wind_up()
    shop.world.run(3, until=lambda: bytes(begun.received) == b"one beer")
    assert bytes(begun.received) == b"one beer"
