"""Accepted connections that conntrack no longer has are forgotten: those, and none that is accepted meanwhile."""

from __future__ import annotations

from tests.harness.shop import Shop
from tests.harness.tcp import Connection
from tests.harness.world import Pod
from trireme_py.datapath import Datapath
from trireme_py.flows import Tuple5


def datapath(pod: Pod) -> Datapath:
    assert pod.datapath is not None
    return pod.datapath


def at_the_server(connection: Connection) -> Tuple5:
    own, port, other, other_port = connection.key
    return 6, other, other_port, own, port


def stranger(shop: Shop, port: int | None = None) -> Connection:
    """A connection of ends that need not have met: the fast path leaves it to Python. Not before it is accepted."""
    shop.client.host._next_port = port or shop.client.host._next_port
    connection = shop.client.host.connect(shop.client.address(), shop.server.address(), 80, b"one beer")
    shop.world.run(1, until=lambda: bytes(connection.received) == b"one beer")
    assert bytes(connection.received) == b"one beer"
    shop.world.run(0.1)
    return connection


def end(shop: Shop, connection: Connection) -> None:
    """Both kernels know nothing of it any more, and conntrack neither."""
    for one in (connection, *list(shop.server.host.connections.values())):
        one.end("over")
    shop.world.run(200)  # nor is the server asking for anything again


def test_what_is_accepted_while_conntrack_is_read_is_remembered() -> None:
    shop = Shop()
    old = shop.assert_works()
    gone = datapath(shop.server).remembered(0)
    young = shop.assert_works()
    assert datapath(shop.server).forget(0, gone) == 1
    assert set(datapath(shop.server).remembered(0)) == {at_the_server(young)} != {at_the_server(old)}


def test_a_connection_on_the_ports_of_one_that_is_gone_is_remembered() -> None:
    """As far as that can be told: of one that the fast path alone knows it cannot, see FastDatapath.forget."""
    shop = Shop()
    old = stranger(shop)
    gone = datapath(shop.server).remembered(0)
    end(shop, old)
    young = stranger(shop, old.key[1])
    assert old.key == young.key
    assert datapath(shop.server).forget(0, gone) == 0
    assert set(datapath(shop.server).remembered(0)) == {at_the_server(young)}
    assert datapath(shop.server).forget(0, datapath(shop.server).remembered(0)) == 1
    assert not datapath(shop.server).remembered(0)
