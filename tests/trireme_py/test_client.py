"""The client's end: what it sends, what it believes, and what it makes of the path."""

from __future__ import annotations

from tests.harness.shop import CLIENT, SERVER, Shop, alter, delay, lose, repeat
from tests.harness.standin_policy import only_to
from trireme_py.model import DropReason, Verdict


def test_refused_egress_leaves_nothing_half_open_at_the_server() -> None:
    shop = Shop(client_policy=only_to("shop/other"))
    shop.connect()
    shop.world.run(0.1)
    assert shop.client.drops == {DropReason.POLICY: 1}
    assert not shop.server.host.connections
    assert shop.server.host.over[0].outcome == "reset"


def test_policy_that_changes_between_syn_ack_and_ack_is_obeyed() -> None:
    shop = Shop()
    deliver = shop.client.deliver

    def meanwhile(data: bytes) -> None:
        shop.client.set_policy(only_to("shop/other"))
        shop.client.deliver = deliver  # type: ignore[method-assign]
        deliver(data)

    shop.client.deliver = meanwhile  # type: ignore[method-assign]
    shop.connect()
    shop.world.run(0.5)
    assert not shop.client.accepted()
    assert shop.delivered() == b""
    assert shop.client.drops == {DropReason.CUT: 1}
    assert [one.outcome for one in shop.client.host.over] == ["reset"]
    assert [one.outcome for one in shop.server.host.over] == ["reset"]


def test_forgotten_connection_is_not_accepted_under_a_new_policy() -> None:
    shop = Shop()
    connection = shop.connect()
    shop.world.run(0.1)
    assert bytes(connection.received) == b"one beer"
    shop.client.set_policy(only_to("shop/other"))
    assert shop.client.datapath is not None
    shop.client.datapath.forget_dead(0, set())
    connection.write(b"more")
    shop.world.run(0.05)
    assert not shop.client.accepted()
    assert shop.delivered() == b"one beer"
