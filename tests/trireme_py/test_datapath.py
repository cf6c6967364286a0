"""The whole exchange between two pods, over a network that behaves, loses, repeats and reorders."""

from __future__ import annotations

import pytest

from tests.harness import assertions
from tests.harness.segments import ACK, SYN, packed, tcp
from tests.harness.shop import CLIENT, SERVER, Shop, delay, lose, repeat
from tests.harness.standin_policy import OPEN, only_from, only_to
from tests.harness.tcp import SECOND, Stage
from tests.harness.world import POD_RANGES, SCOPE, World
from trireme_py.datapath import Caught, Datapath, Gauges
from trireme_py.endpoint import DatapathSettings
from trireme_py.identities import Identities
from trireme_py.model import Direction, DropReason, Hook, Instant, Verdict
from trireme_py.networks import NetworkSet
from trireme_py.wire import PATH_MTU

MODES = pytest.mark.parametrize("mode", ["psk", "pki"])
FAMILIES = pytest.mark.parametrize("family", [4, 6])


# -- a network that behaves -------------------------------------------------------------------------------------------


@MODES
@FAMILIES
def test_exchange_rides_on_the_three_packets_and_nothing_follows(mode: str, family: int) -> None:
    shop = Shop(mode=mode)
    connection = shop.connect(b"one beer", family=family)
    connection.on_data = lambda connection: connection.close()
    shop.world.run(1)
    shop.world.assert_transcript("""
         0 ms  client: SYN + syn token
        10 ms  server: SYN|ACK + syn-ack token
        20 ms  client: ACK + proof + 8 octets
        30 ms  server: ACK
        30 ms  server: ACK + 8 octets
        40 ms  client: ACK
        40 ms  client: FIN|ACK
        50 ms  server: ACK
        50 ms  server: FIN|ACK
        60 ms  client: ACK
    """)
    assert bytes(connection.received) == b"one beer"
    for pod in (shop.client, shop.server):
        assert not pod.drops
        assert pod.bypassed == 7  # of ten packets, three met the agent
    [egress], [ingress] = shop.client.events, shop.server.events
    assert (egress.direction, ingress.direction) == (Direction.EGRESS, Direction.INGRESS)
    for event, peer in ((egress, SERVER), (ingress, CLIENT)):
        assert event.decision.allowed
        assert event.peer is not None
        assert (event.peer.name, event.peer_proven) == (peer, True)
        assert (event.source, event.destination) == (shop.client.address(family), shop.server.address(family))
        assert (event.source_port, event.destination_port) == (40_000, 80)
    shop.world.run(200)
    for pod in (shop.client, shop.server):
        pod.sweep()
        assert pod.datapath is not None
        assert pod.datapath.gauges() == Gauges(0, 0, 0, 1)
        assert pod.datapath.next_deadline() is None


def test_second_connection_verifies_no_signature() -> None:
    shop = Shop(mode="pki")
    shop.assert_works()
    assert shop.server.datapath is not None
    identities = shop.server.datapath._shared.identities
    before = identities.verified
    for _ in range(10):
        shop.assert_works()
    assert (identities.verified, len(identities)) == (before, 1)


@FAMILIES
def test_first_ack_without_data_carries_the_proof(family: int) -> None:
    shop = Shop()
    shop.listener.on_accept = lambda connection: connection.write(b"welcome")
    connection = shop.connect(b"", family=family)
    shop.world.run(0.05)
    assert [line.split("  ")[-1] for line in shop.world.transcript][2] == "client: ACK + proof"
    assert bytes(connection.received) == b"welcome"


@FAMILIES
def test_first_ack_with_more_data_than_fits_sends_the_proof_ahead(family: int) -> None:
    shop = Shop()
    connection = shop.client.host.connect(shop.client.address(family), shop.server.address(family), 80)
    connection.mss = 1400
    connection.sent += bytes(3000)
    shop.world.run(0.1)
    assert [line.split(": ")[1] for line in shop.world.transcript[2:6]] == [
        "ACK + proof",
        "ACK + 1400 octets",
        "ACK + 1400 octets",
        "ACK + 200 octets",
    ]
    assert bytes(connection.received) == bytes(3000)
    assert not shop.client.drops
    assert not shop.server.drops


@FAMILIES
def test_fin_with_the_first_ack_loses_nothing(family: int) -> None:
    shop = Shop()
    connection = shop.connect(b"the end", family=family, close=True)
    shop.world.run(1)
    assert "ACK + proof + 7 octets" in shop.world.transcript[2]
    assert bytes(connection.received) == b"the end"
    assert connection.stage is Stage.TIME_WAIT
    assert [one.outcome for one in shop.server.host.over] == ["connected"]


@FAMILIES
@pytest.mark.parametrize("agent", [True, False])
def test_closed_port_is_refused_at_once(agent: bool, family: int) -> None:
    """A host without an agent acknowledges the token, too; the client's kernel must not notice."""
    shop = Shop(server_agent=agent, client_policy=OPEN)
    connection = shop.client.connect(shop.server, 81, family=family)
    shop.world.run(0.021)
    assert connection.outcome == "refused"


@FAMILIES
@pytest.mark.parametrize(("mode", "count"), [("psk", 60), ("pki", 30)])
def test_many_labels_fit_into_the_smallest_path(mode: str, count: int, family: int) -> None:
    shop = Shop(mode=mode)
    labels = assertions.realistic_labels(count)
    for pod in (shop.client, shop.server):
        assert pod.datapath is not None
        assert pod.authenticator is not None
        identity = shop.world.local_identity(pod.name, pod.authenticator, labels=labels)
        pod.datapath.set_identity(0, identity)
    shop.assert_works(family=family)
    assert max(map(len, shop.world.captured)) <= PATH_MTU
    [event] = shop.server.events
    assert event.peer is not None
    assert all(event.peer.labels.has_value(key, value) for key, value in labels.items.items())
    assert not event.peer.labels.has_key("another")


# -- peers that take no part ------------------------------------------------------------------------------------------


@FAMILIES
def test_server_without_an_agent_is_reached_where_policy_allows_its_address(family: int) -> None:
    shop = Shop(server_agent=False)
    server = shop.server.address(family)
    shop.client.set_policy(only_to(SERVER, addresses=frozenset({server})))
    shop.assert_works(family=family)
    [event] = shop.client.events
    assert event.peer is None
    shop.client.set_policy(only_to(SERVER))
    connection = shop.connect(family=family)
    shop.world.run(0.5)
    assert connection.stage is Stage.SYN_SENT
    assert shop.client.drops == {DropReason.POLICY: 1}
    assert not shop.server.host.connections or len(shop.accepted()) == 1


@FAMILIES
def test_client_without_an_agent_is_let_in_where_policy_allows_its_address(family: int) -> None:
    shop = Shop(client_agent=False)
    client = shop.client.address(family)
    assert shop.server.datapath is not None
    shop.server.set_policy(only_from(CLIENT, addresses=frozenset({client})))
    connection = shop.connect(family=family)
    shop.world.run(0.1)
    assert bytes(connection.received) == b"one beer"
    shop.server.set_policy(only_from(CLIENT))
    shop.connect(family=family)
    shop.world.run(0.5)
    assert shop.server.drops == {DropReason.POLICY: 1}
    assert len(shop.accepted()) == 1


def test_pod_without_an_identity_is_judged_by_address() -> None:
    shop = Shop(server_policy=only_from(addresses=frozenset({packed("10.1.0.2")})), client_policy=OPEN)
    assert shop.client.datapath is not None
    assert shop.client.identity is not None
    shop.client.datapath.remove_endpoint(0)
    shop.client.datapath.add_endpoint(0, CLIENT, shop.client.addresses, None, OPEN)
    shop.assert_works()
    assert "token" not in "".join(shop.world.transcript)


# -- a network that loses, repeats and reorders -----------------------------------------------------------------------

KINDS = ["syn", "syn-ack", "proof"]


@MODES
@FAMILIES
@pytest.mark.parametrize("kind", KINDS)
def test_each_packet_of_the_exchange_may_be_lost(kind: str, family: int, mode: str) -> None:
    shop = Shop(mode=mode)
    lose(shop.world, kind)
    connection = shop.connect(family=family)
    shop.world.run(1.2)
    assert bytes(connection.received) == b"one beer"
    assert len(shop.accepted()) == 1


@FAMILIES
@pytest.mark.parametrize("kind", KINDS)
def test_each_packet_of_the_exchange_may_come_twice(kind: str, family: int) -> None:
    shop = Shop()
    repeat(shop.world, kind)
    connection = shop.connect(family=family)
    shop.world.run(0.2)
    assert bytes(connection.received) == b"one beer"
    connection.write(b", and another")
    shop.world.run(0.2)
    assert bytes(connection.received) == b"one beer, and another"
    assert len(shop.accepted()) == 1


@FAMILIES
@pytest.mark.parametrize("kind", KINDS)
def test_each_packet_of_the_exchange_may_be_overtaken(kind: str, family: int) -> None:
    """By its own retransmission, or by the data behind it."""
    shop = Shop()
    delay(shop.world, kind, 1_050_000_000 if kind != "proof" else 30_000_000)
    connection = shop.connect(b"", family=family)
    shop.world.after(21_000_000, lambda: connection.write(b"one beer"))
    shop.world.run(3)
    assert bytes(connection.received) == b"one beer"
    connection.write(b", and another")
    shop.world.run(0.2)
    assert bytes(connection.received) == b"one beer, and another"
    assert len(shop.accepted()) == 1


@FAMILIES
def test_lost_ack_is_made_good_within_two_round_trips_of_the_data(family: int) -> None:
    shop = Shop()
    lose(shop.world, "proof")
    connection = shop.connect(b"", family=family)
    shop.world.run(0.1)
    assert not shop.accepted()
    connection.write(b"one beer")
    arrival = shop.world.ms + 10
    shop.world.run(0.2, until=lambda: shop.delivered() == b"one beer")
    assert shop.delivered() == b"one beer"
    assert shop.world.ms - arrival <= 40
    assert shop.client.drops == {DropReason.REPEATED: 1}


def test_proof_that_a_path_keeps_taking_away_lets_nothing_through() -> None:
    shop = Shop()
    lose(shop.world, "proof", count=10_000)
    connection = shop.connect()
    shop.world.run(100)
    assert not shop.accepted()
    assert shop.delivered() == b""
    assert connection.outcome in ("timeout", "reset", "connected")
    assert shop.server.drops[DropReason.HOLD_TIMEOUT]


# -- the engine's own book-keeping ------------------------------------------------------------------------------------


def batch(shop: Shop, hook: Hook, *packets: bytes) -> list[Verdict]:
    assert shop.client.datapath is not None
    caught = [Caught(number, data) for number, data in enumerate(packets)]
    return [result.verdict for result in shop.client.datapath.receive(shop.world.now, 0, hook, caught)]


def test_mark_goes_on_the_last_packet_that_waits() -> None:
    """The others would be overtaken by what needs the queue no more."""
    shop = Shop(client_policy=OPEN)
    one, other = (packed("10.1.0.2"), 1), (packed("10.1.0.9"), 2)
    segments = [tcp(one, other, number, 1, ACK, b"old") for number in range(3)]
    elsewhere = tcp((one[0], 7), other, 1, 1, ACK, b"old")
    assert batch(shop, Hook.APPLICATION, segments[0], segments[1], elsewhere, segments[2]) == [
        Verdict.PASS,
        Verdict.PASS,
        Verdict.ACCEPT,
        Verdict.ACCEPT,
    ]


def test_pod_that_is_not_known_is_not_ready() -> None:
    shop = Shop()
    assert shop.client.datapath is not None
    [result] = shop.client.datapath.receive(
        shop.world.now, 9, Hook.NETWORK, [Caught(1, tcp((bytes(4), 1), (bytes(4), 2), 0, 0, SYN))]
    )
    assert (result.verdict, result.reason) == (Verdict.DROP, DropReason.NOT_READY)


def test_removed_pod_lets_go_of_what_it_held() -> None:
    shop = Shop()
    lose(shop.world, "proof", count=100)
    shop.connect()
    shop.world.run(0.02)
    connection = next(iter(shop.client.host.connections.values()))
    connection.write(b", please")
    shop.world.run(0.02)
    held = set(shop.server.held)
    assert held
    assert shop.server.datapath is not None
    releases = shop.server.datapath.remove_endpoint(0)
    assert {release.ticket for release in releases} == held
    assert {(release.verdict, release.reason) for release in releases} == {(Verdict.DROP, DropReason.NOT_READY)}
    assert shop.server.datapath.gauges()[:3] == (0, 0, 0)
    assert shop.server.datapath.remove_endpoint(0) == []


@pytest.mark.parametrize("verdict", [Verdict.DROP, Verdict.PASS])
def test_failure_of_our_own_is_answered_by_the_fail_mode_and_counted(verdict: Verdict) -> None:
    world = World()
    authenticator = world.authenticator("worker-1")
    seen: list[Exception] = []

    def on_failure(failure: Exception) -> Verdict:
        seen.append(failure)
        return verdict

    def broken(octets: int) -> bytes:
        raise RuntimeError("no entropy")

    datapath = Datapath(
        Identities(authenticator),
        DatapathSettings(NetworkSet(SCOPE), NetworkSet(POD_RANGES)),
        entropy=broken,
        translate=lambda *_: None,
        on_failure=on_failure,
    )
    own = packed("10.1.0.2")
    datapath.add_endpoint(0, CLIENT, (own,), world.local_identity(CLIENT, authenticator), OPEN)
    syn = tcp((own, 1), (packed("10.1.0.3"), 2), 0, 0, SYN)
    [result] = datapath.receive(Instant(SECOND, 0.0), 0, Hook.APPLICATION, [Caught(1, syn)])
    assert result.verdict is verdict
    assert result.reason is (DropReason.INTERNAL_ERROR if verdict is Verdict.DROP else None)
    assert datapath.drops == {DropReason.INTERNAL_ERROR: 1}
    assert [str(failure) for failure in seen] == ["no entropy"]
