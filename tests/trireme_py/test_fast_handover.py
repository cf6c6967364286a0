"""What Python takes over from C: nothing of it outlives its place in a table, and nothing else is lost with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.harness import world
from tests.harness.fastpath import fast
from tests.harness.segments import ACK, SYN, Segment, packed, read, tcp
from tests.harness.shop import CLIENT, Shop
from tests.harness.standin_policy import only_from
from tests.trireme_py.test_fast_edges import ISN, SERVER_ISN, Ends
from trireme_py.auth_psk import PskAuthenticator
from trireme_py.datapath import Caught
from trireme_py.endpoint import Endpoint
from trireme_py.fast import FastDatapath, Parked
from trireme_py.handover import Reader
from trireme_py.messages import encode_syn
from trireme_py.model import DropReason, Hook, Instant, Release, Result, Verdict

PARK = 4
OWN_PORT = slice(36, 38)
"""In a record of handover.c."""


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A warm client and a warm server."""
    monkeypatch.setattr(world, "IMPLEMENTATION", "c")
    scene = Shop()
    scene.world.audit = False
    scene.assert_works()
    return scene


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    monkeypatch.setattr(world, "IMPLEMENTATION", "c")
    return Ends()


def tables(shop: Shop) -> Endpoint:
    """Python's own, without those of the engine."""
    return fast(shop.server)._endpoints[0]


def half_open(shop: Shop, sport: int, isn: int) -> Segment:
    """A copied SYN is answered in C; returns what comes next, without a proof."""
    token, client, server = shop.client.identity, shop.client.address(), shop.server.address()
    assert token is not None
    before = shop.world.on_wire
    shop.world.on_wire = lambda data: ()
    message = encode_syn(token.id, isn.to_bytes(16, "big"), token.assertion)
    shop.server.arrive(tcp((client, sport), (server, 80), isn, 0, SYN, message))
    shop.world.on_wire = before
    syn_ack = read(shop.world.captured[-1])
    assert syn_ack is not None
    shop.server.host.connections.clear()
    return Segment(client, sport, server, 80, isn + 1, syn_ack.sequence + 1, ACK, b"no proof")


def parked(shop: Shop, segment: Segment, ticket: int = 1) -> Parked:
    """What the thread in C hands to Python."""
    engine, now, data = fast(shop.server).engine_endpoint(0), shop.world.now, segment.build()
    assert engine.receive(now.mono_ns, now.wall_s, 0, data, False)[0] == PARK
    return Parked(ticket, data, engine.hand_over(0, data))


def judge(shop: Shop, *batch: Parked) -> list[Result]:
    return fast(shop.server).receive_parked(shop.world.now, 0, Hook.NETWORK, batch)


# -- what makes room --------------------------------------------------------------------------------------------------


def test_what_makes_room_for_an_adopted_exchange_is_forgotten_in_every_table(shop: Shop) -> None:
    pod = tables(shop)
    pod.servers.limit = 4
    for n in range(10):
        (result,) = judge(shop, parked(shop, half_open(shop, 1024 + n, 5_000_000 + n), n))
        assert result.verdict is Verdict.HOLD
        full = [(0, Release(n - 4, Verdict.DROP, DropReason.TABLE_FULL))] if n >= 4 else []
        assert fast(shop.server).take_releases() == full
    assert {flow.key for flow in pod.answered.values()} == set(pod.servers)
    shop.world.mono_ns += 10**12
    fast(shop.server).expire(shop.world.now)
    assert (len(pod.servers), len(pod.answered), pod.held_packets) == (0, 0, 0)


def test_a_later_connection_on_the_same_ports_is_judged_as_its_own(shop: Shop) -> None:
    """A forgotten exchange that still stood among the answered ones would be asked for a proof for good."""
    tables(shop).servers.limit = 4
    first = shop.client.host._next_port
    for n in range(10):
        judge(shop, parked(shop, replace(half_open(shop, first + n, 5_000_000 + n), payload=b"")))
    shop.world.run(200)
    connection = shop.assert_works(b"honest")
    assert connection.key[1] == first
    shop.server.set_policy(only_from(CLIENT))
    connection.write(b", still")
    shop.world.run(1)
    assert bytes(connection.received) == b"honest, still"


def test_an_exchange_whose_syn_comes_again_under_another_tuple_is_forgotten(shop: Shop) -> None:
    """The engine leaves SYNs alone that Python remembers. The tables must not depend on it."""
    pod = tables(shop)
    one = parked(shop, half_open(shop, 1024, 5_000_000), 1)
    judge(shop, one)
    (old,) = pod.answered.values()
    moved = bytearray(one.handover)
    assert moved[OWN_PORT] == (80).to_bytes(2, "big")
    moved[OWN_PORT] = (81).to_bytes(2, "big")
    judge(shop, Parked(2, one.data, bytes(moved)))
    (new,) = pod.answered.values()
    assert pod.servers.get(new.key) is new is not old
    assert old.key == new.key
    assert fast(shop.server).take_releases() == [(0, Release(1, Verdict.DROP, DropReason.UNPROVEN))]


def test_what_a_client_holds_is_dropped_when_it_makes_room(ends: Ends) -> None:
    datapath = ends.client.datapath
    assert isinstance(datapath, FastDatapath)
    datapath._endpoints[0].clients.limit = 1
    for ticket, wanted in ((1, []), (2, [(0, Release(1, Verdict.DROP, DropReason.TABLE_FULL))])):
        ends.answered(ISN + ticket)
        too_large = ends.from_client(ACK, ISN + ticket + 1, SERVER_ISN + 1, bytes(1280)).build()
        caught = Caught(ticket, too_large)
        (result,) = datapath.receive(ends.shop.world.now, 0, Hook.APPLICATION, [caught])
        assert result.verdict is Verdict.HOLD
        assert datapath.take_releases() == wanted
        ends.sport += 1


# -- what cannot be put together again --------------------------------------------------------------------------------


def withdraw_keys(datapath: FastDatapath) -> None:
    """What the pre-shared key of now vouches for is not believed any more."""
    identities = datapath._shared.identities
    identities.authenticator = PskAuthenticator(b"n" * 32, identities.authenticator.trust_domain)
    datapath.forget_peers()


def test_an_exchange_whose_keys_were_withdrawn_is_left_out_and_nothing_else(shop: Shop) -> None:
    live = shop.assert_works()
    unproven = half_open(shop, 1024, 5_000_000)
    withdraw_keys(fast(shop.server))
    shop.server.set_policy(only_from(CLIENT))
    own, port, other, other_port = live.key
    accepted = Segment(own, port, other, other_port, 9, 9, ACK, b"data")
    stranger = Segment(packed("10.1.0.99"), 1, other, 80, 9, 0, SYN, b"")
    batch = [parked(shop, one, ticket) for ticket, one in enumerate((unproven, accepted, stranger))]
    shop.server.host.connections.clear()
    results = judge(shop, *batch)
    assert [(one.verdict, one.reason) for one in results] == [
        (Verdict.DROP, DropReason.NO_STATE),
        (Verdict.ACCEPT, None),
        (Verdict.DROP, DropReason.POLICY),
    ]
    assert set(tables(shop).live) == {(6, other, 80, own, port)}
    assert not tables(shop).servers
    assert fast(shop.server).counters(0).owned == 1, "the accepted connection, and nothing for having been in hand"


def test_a_failure_of_ours_costs_the_packet_that_met_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    adopt = Reader.adopt

    def failing(reader: Reader, octets: bytes, now: Instant) -> None:
        if octets == batch[0].handover:
            raise RuntimeError
        adopt(reader, octets, now)

    monkeypatch.setattr(Reader, "adopt", failing)
    fast(shop.server)._on_failure = lambda _: Verdict.DROP
    batch = [parked(shop, half_open(shop, 1024 + n, 5_000_000 + n), n) for n in range(3)]
    results = judge(shop, *batch)
    assert results[0] == Result(Verdict.DROP, DropReason.INTERNAL_ERROR)
    assert [one.verdict for one in results[1:]] == [Verdict.HOLD] * 2
    assert len(tables(shop).servers) == 2
    assert fast(shop.server).counters(0).owned == 4, "the SYN and the ports of each"


@pytest.mark.parametrize("side", ["client", "server"])
def test_an_exchange_ends_as_it_began_though_nothing_can_be_learned_from_it(ends: Ends, side: str) -> None:
    """As with Python alone, which needs the key no more by then."""
    if side == "client":
        ends.answered()
        pod, hook, last = ends.client, Hook.APPLICATION, ends.from_client(ACK, ISN + 1, SERVER_ISN + 1, b"data")
    else:
        pod, hook, last = ends.server, Hook.NETWORK, ends.proof(b"data")
    assert isinstance(pod.datapath, FastDatapath)
    pod.datapath.take_over(0, ends.shop.world.now)
    withdraw_keys(pod.datapath)
    (result,) = pod.datapath.receive(ends.shop.world.now, 0, hook, [Caught(1, last.build())])
    assert (result.verdict, result.reason) == (Verdict.ACCEPT, None)
    assert pod.datapath.counters(0).verdicts == 1, "what it was taught before"
