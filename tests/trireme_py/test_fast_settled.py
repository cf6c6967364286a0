"""Connections that nothing keeps in Python are the engine's again, so that the next one on their ports is warm."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.harness import world
from tests.harness.fastpath import counters, fast
from tests.harness.segments import ACK, SYN, Segment, tcp
from tests.harness.shop import CLIENT, SERVER, Shop, lose
from tests.harness.standin_policy import only_from, only_to
from tests.harness.tcp import SECOND, Connection
from trireme_py.handover import is_settled
from trireme_py.messages import encode_syn
from trireme_py.model import DropReason, Verdict

PORT = 40_500
FAST_OPEN = b"\x02\x04\x05\xb4\x22\x02\x01\x01"
SETTLED = 1.2
"""Seconds (SETTLED_NS), and what many are waited for."""


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Two ends that have not met."""
    monkeypatch.setattr(world, "IMPLEMENTATION", "c")
    return Shop()


def connect(shop: Shop, port: int = PORT) -> Connection:
    """Open a connection from a port; the first one is Python's at both ends, which learn from it."""
    ends = shop.client.address(), shop.server.address()
    connection = shop.client.host.connect(*ends, 80, b"one beer", port=port)
    shop.world.run(0.5)
    assert bytes(connection.received) == b"one beer"
    return connection


def end(shop: Shop) -> None:
    """Both kernels forget all connections."""
    for pod in (shop.client, shop.server):
        for one in list(pod.host.connections.values()):
            one.end("over")


def syn_of_client(shop: Shop, isn: int, options: bytes = b"") -> Segment:
    identity = shop.client.identity
    assert identity is not None
    message = encode_syn(identity.id, isn.to_bytes(16, "big"), identity.assertion)
    return Segment(shop.client.address(), PORT, shop.server.address(), 80, isn, 0, SYN, message, options=options)


def test_python_keeps_a_first_connection_for_a_moment_only(shop: Shop) -> None:
    connection = connect(shop)
    for pod in (shop.client, shop.server):
        assert (counters(pod).owned > 0, counters(pod).live) == (True, 0)
    shop.world.run(SETTLED)
    for pod in (shop.client, shop.server):
        assert (counters(pod).owned, counters(pod).live) == (0, 1)
        assert len(fast(pod).remembered(0)) == fast(pod).gauges().live == 1
        assert len(pod.events) == 1
    connection.write(b", please")
    shop.world.run(0.1)
    assert bytes(connection.received) == b"one beer, please"
    assert not shop.client.drops + shop.server.drops


def test_ports_that_were_python_s_are_warm_again(shop: Shop) -> None:
    connect(shop)
    shop.world.run(SETTLED)
    end(shop)
    before = [counters(pod).parked for pod in (shop.client, shop.server)]
    connect(shop)
    assert [counters(pod).parked for pod in (shop.client, shop.server)] == before
    for pod in (shop.client, shop.server):
        assert len(pod.events) == 2
        assert fast(pod).gauges().live == 1
    end(shop)
    for pod in (shop.client, shop.server):
        assert pod.sweep() == 1


@pytest.mark.parametrize("sidecar", [False, True])
@pytest.mark.parametrize("family", [4, 6])
def test_what_comes_back_is_what_was_handed_over(shop: Shop, family: int, sidecar: bool) -> None:
    if sidecar:
        shop.server.redirects[80] = 15_006
        shop.server.host.listeners[15_006] = shop.server.host.listeners.pop(80)
    shop.assert_works(family=family)
    for pod, flows in ((shop.client, 2), (shop.server, 1 + sidecar)):
        engine = fast(pod).engine_endpoint(0)
        before = engine.export(False)
        assert len(before) == flows
        fast(pod).take_over(0, shop.world.now)
        assert engine.export(False) == []
        shop.world.wake(pod)
        shop.world.run(SETTLED)
        assert engine.export(False) == before
        assert counters(pod).owned == 0


@pytest.mark.parametrize("changed", ["client", "server"])
def test_a_replaced_policy_cuts_what_came_back(shop: Shop, changed: str) -> None:
    connection = connect(shop)
    shop.world.run(SETTLED)
    if changed == "client":
        shop.client.set_policy(only_to("shop/another"))
    else:
        shop.server.set_policy(only_from("shop/another"))
    connection.write(b"still there?")
    shop.world.run(0.1)
    assert connection.outcome == "reset"


def test_what_was_judged_again_comes_back_under_the_policy_that_allowed_it(shop: Shop) -> None:
    connection = connect(shop)
    shop.world.run(SETTLED)
    shop.server.set_policy(only_from(CLIENT))
    shop.client.set_policy(only_to(SERVER))
    connection.write(b", please")
    shop.world.run(SETTLED)
    assert bytes(connection.received) == b"one beer, please"
    for pod in (shop.client, shop.server):
        assert (counters(pod).owned, counters(pod).live) == (0, 1)


def test_a_server_that_asks_once_more_gets_the_same_proof(shop: Shop) -> None:
    connect(shop)
    shop.world.run(SETTLED)
    syn_ack, proof = shop.world.last("syn-ack"), shop.world.last("proof")
    shop.world.captured.clear()
    shop.client.arrive(syn_ack.build())
    shop.world.run(0.005)
    again = shop.world.last("proof")
    assert (again.sequence, again.payload) == (proof.sequence, proof.payload[:28])
    assert shop.client.drops == {DropReason.REPEATED: 1}


def test_a_connection_whose_proof_was_lost_comes_back(shop: Shop) -> None:
    lose(shop.world, "proof")
    connect(shop)
    shop.world.run(SETTLED)
    for pod in (shop.client, shop.server):
        assert (counters(pod).owned, counters(pod).live) == (0, 1)


def test_a_connection_that_a_new_policy_has_let_through_comes_back(shop: Shop) -> None:
    """A policy that came before it had settled must not keep its ports in Python."""
    connection = connect(shop)
    shop.client.set_policy(only_to(SERVER))
    shop.server.set_policy(only_from(CLIENT))
    shop.world.run(3)
    assert (counters(shop.server).owned > 0, counters(shop.server).live) == (True, 0), (
        "nothing has asked the policy yet"
    )
    connection.write(b", please")
    shop.world.run(SETTLED)
    assert bytes(connection.received) == b"one beer, please"
    for pod in (shop.client, shop.server):
        assert (counters(pod).owned, counters(pod).live) == (0, 1)


# -- what must not come back ------------------------------------------------------------------------------------------


def test_what_is_on_its_way_to_python_keeps_its_connection_there(shop: Shop) -> None:
    """It would find nothing, and be dropped."""
    connect(shop)
    engine = fast(shop.server).engine_endpoint(0)
    segment = tcp((shop.client.address(), PORT), (shop.server.address(), 80), 5, 6, ACK, b"data")
    assert engine.hand_over(0, segment) == b""
    shop.world.run(3)
    assert (counters(shop.server).owned > 0, counters(shop.server).live) == (True, 0)
    engine.returned(0, segment)
    shop.world.run(SETTLED)
    assert (counters(shop.server).owned, counters(shop.server).live) == (0, 1)


def test_an_exchange_that_begins_in_python_keeps_the_old_connection_there(shop: Shop) -> None:
    """The engine would take its proof, true or not, for a segment of the connection that it knows. Behind a sidecar no
    SYN-ACK of these ports says that there is another."""
    shop.server.redirects[80] = 15_006
    shop.server.host.listeners[15_006] = shop.server.host.listeners.pop(80)
    connect(shop)
    shop.world.run(SETTLED)
    end(shop)
    shop.server.deliver = lambda data: None  # type: ignore[method-assign]
    shop.server.arrive(syn_of_client(shop, 7, FAST_OPEN).build())
    shop.world.run(3)
    tables = fast(shop.server)._endpoints[0]
    assert [flow.tuple5 for key in tables.servers if (flow := tables.servers.get(key))] == [
        (6, shop.server.address(), 80, shop.client.address(), PORT)
    ]
    assert (6, shop.server.address(), 80, shop.client.address(), PORT) in tables.live
    shop.server.leave(tcp((shop.server.address(), 15_006), (shop.client.address(), PORT), 5_000, 8, SYN | ACK))
    shop.server.verdicts.clear()
    forged = b"\xf7TRM\x01\x03\x01\x00\x00\x1c\x00\x00" + bytes(16)
    shop.server.arrive(tcp((shop.client.address(), PORT), (shop.server.address(), 80), 8 - 28, 5_001, ACK, forged))
    assert shop.server.verdicts == {Verdict.DROP: 1}
    shop.world.run(100)  # nobody has proved anything, and the exchange is forgotten
    assert (6, shop.server.address(), 80, shop.client.address(), PORT) not in tables.live
    assert counters(shop.server).owned == 0


def test_an_exchange_that_python_has_keeps_its_ports_there(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine accepted on them would be that exchange's to Python, as soon as it is handed over."""
    connect(shop, PORT + 1)
    shop.world.run(SETTLED)
    with monkeypatch.context() as patch:
        patch.setattr(shop.world, "on_wire", lambda _: ())
        shop.server.arrive(syn_of_client(shop, 7, FAST_OPEN).build())
    for one in list(shop.server.host.connections.values()):
        if PORT in one.key:
            one.end("over")
    connection = connect(shop)
    shop.world.run(SETTLED)
    shop.server.set_policy(only_from(CLIENT))
    connection.write(b", please")
    shop.world.run(0.5)
    assert bytes(connection.received) == b"one beer, please"
    assert not shop.server.drops


def test_a_copied_syn_does_not_touch_what_came_back(shop: Shop) -> None:
    connection = connect(shop)
    shop.world.run(SETTLED)
    shop.server.arrive(syn_of_client(shop, 99).build())
    assert (counters(shop.server).servers, counters(shop.server).live) == (1, 1)
    connection.write(b", please")
    shop.world.run(0.1)
    assert bytes(connection.received) == b"one beer, please"
    shop.server.set_policy(only_from("shop/another"))
    connection.write(b"still there?")
    shop.world.run(0.1)
    assert connection.outcome == "reset"


def test_bare_peers_stay_python_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "IMPLEMENTATION", "c")
    shop = Shop(client_agent=False)
    shop.server.set_policy(replace(only_from(CLIENT), addresses=frozenset(shop.client.addresses)))
    connect(shop)
    shop.world.run(SETTLED)
    assert (counters(shop.server).owned, counters(shop.server).live) == (1, 0)


def test_only_what_has_nothing_odd_about_it_is_settled(shop: Shop) -> None:
    connect(shop)
    tables = fast(shop.client)._endpoints[0]
    [key] = tables.live
    live, flow = tables.live.get(key), tables.clients.get(key)
    assert live is not None
    assert flow is not None
    policy = tables.policy
    assert is_settled(live, flow, policy)
    assert is_settled(live, None, policy)
    assert not is_settled(live, flow, only_to(SERVER))
    for odd in (replace(live, peer=None), replace(live, cut=True), replace(live, isn=7)):
        assert not is_settled(odd, flow, policy)
    held = replace(flow.held, packets=[(1, flow.syn)])
    for change in ({"repeats": 1}, {"taken_back": 1}, {"resynchronising": True}, {"held": held}, {"peer": None}):
        assert not is_settled(live, replace(flow, **change), policy)
    for name in ("syn", "ack"):
        longer = replace(getattr(flow, name), body=121)
        assert not is_settled(live, replace(flow, **{name: longer}), policy)
    assert not is_settled(live, replace(flow, ack=None), policy)


def test_octets_that_do_not_add_up_are_refused(shop: Shop) -> None:
    shop.assert_works()
    datapath = fast(shop.client)
    engine = datapath.engine_endpoint(0)
    octets = b"".join(engine.export(False))
    assert shop.client.identity is not None
    tables = datapath._endpoints[0]
    own = datapath._token(shop.client.identity)
    [peer] = [known.token for known in datapath._known.values() if known.token is not own]
    assert not engine.take_back(octets, own, peer, 1), "it is there"
    assert engine.export(True)
    for wrong in (octets[:-1], octets + b"\0", b"", *(octets[:size] for size in range(0, len(octets), 7))):
        assert not engine.take_back(wrong, own, peer, 1)
    for at in (0, 40):  # another kind; not proven
        assert not engine.take_back(octets[:at] + b"\x02" + octets[at + 1 :], own, peer, 1)
    for local, other in ((peer, own), (None, peer), (own, own)):
        assert not engine.take_back(octets, local, other, 1)
    assert engine.export(False) == []
    assert not tables.live
    assert engine.take_back(octets, own, peer, shop.world.now.mono_ns)
    assert b"".join(engine.export(False)) == octets
    shop.world.mono_ns += 100 * SECOND
    engine.expire(shop.world.now.mono_ns)
    assert len(engine.export(False)) == 1, "only the accepted connection has no end of its own"
