"""While agents are being installed: whose node may have none yet is let in, and nobody else is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.harness.segments import Segment, packed
from tests.harness.shop import CLIENT, MALLORY, SERVER, Shop, alter, echo
from tests.harness.standin_policy import OPEN, StandInPolicy, only_from, only_to
from tests.harness.world import Pod
from trireme_py.model import Direction, DropReason, Reason
from trireme_py.networks import NetworkSet

FAMILIES = pytest.mark.parametrize("family", [4, 6])
MINUTES = 120
"""Longer than a client goes on repeating its SYN."""


def installing(policy: StandInPolicy) -> StandInPolicy:
    return replace(policy, installing=True)


def reasons(pod: Pod) -> list[Reason | DropReason]:
    return [event.decision.reason for event in pod.events]


@FAMILIES
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_peer_whose_node_has_no_agent_yet_is_let_in_and_reported(side: str, family: int) -> None:
    shop = Shop(
        client_policy=installing(only_to(SERVER)),
        server_policy=installing(only_from(CLIENT)),
        client_agent=side == "client",
        server_agent=side == "server",
    )
    shop.assert_works(family=family)
    pod: Pod = getattr(shop, side)
    [event] = pod.events
    assert event.decision.allowed
    assert event.decision.reason is Reason.NOT_YET_IDENTIFIED
    assert event.direction is (Direction.EGRESS if side == "client" else Direction.INGRESS)
    assert event.peer is None
    pod.set_policy(only_to(SERVER) if side == "client" else only_from(CLIENT))
    connection = shop.connect(family=family)
    shop.world.run(MINUTES)
    assert not connection.received, "once every node has its agent, an identity is asked for"


@FAMILIES
def test_identities_are_asked_for_where_they_can_be_had(family: int) -> None:
    shop = Shop(client_policy=installing(only_to(SERVER)), server_policy=installing(only_from(CLIENT)))
    shop.assert_works(family=family)
    assert [*reasons(shop.client), *reasons(shop.server)] == [Reason.POLICY] * 2
    assert all(event.peer_proven for event in (*shop.client.events, *shop.server.events))


@FAMILIES
def test_who_has_an_identity_is_not_let_in_for_leaving_it_out(family: int) -> None:
    """A refused client's kernel goes on asking, and its agent leaves the token out of every other SYN."""
    shop = Shop(server_policy=installing(only_from(CLIENT)))
    mallory = shop.mallory()
    connection = mallory.connect(shop.server, family=family, data=b"let me in")
    shop.world.run(MINUTES)
    assert not shop.accepted()
    assert not connection.received
    assert set(reasons(shop.server)) == {Reason.NO_MATCH}


@FAMILIES
def test_the_same_for_a_server(family: int) -> None:
    shop = Shop(client_policy=installing(only_to("shop/other")), server_policy=OPEN)
    connection = shop.connect(family=family)
    shop.world.run(MINUTES)
    assert not connection.received
    assert not shop.delivered()


def test_a_bad_token_is_refused_and_its_sender_with_it() -> None:
    shop = Shop(client_policy=OPEN, server_policy=installing(only_from(CLIENT)))

    def forged(segment: Segment) -> Segment:
        return replace(segment, payload=segment.payload[:-1] + bytes([segment.payload[-1] ^ 1]))

    alter(shop.world, "syn", forged, count=100)
    connection = shop.connect()
    shop.world.run(MINUTES)
    assert not connection.received
    assert not shop.accepted()


def test_a_local_pod_has_an_agent() -> None:
    shop = Shop(server_policy=installing(only_from(CLIENT)), client_agent=False)
    assert shop.server.datapath is not None
    shop.server.datapath._shared.pod_addresses.update(shop.client.addresses)
    connection = shop.connect()
    shop.world.run(MINUTES)
    assert not connection.received


@pytest.mark.parametrize(("address", "accepted"), [("10.1.0.99", True), ("203.0.113.9", False), ("192.168.0.9", False)])
def test_only_an_address_of_pods_may_lack_an_agent(address: str, accepted: bool) -> None:
    shop = Shop(server_policy=installing(only_from(CLIENT)))
    stranger = shop.world.pod("shop/stranger", address, policy=OPEN, agent=False)
    connection = stranger.connect(shop.server, data=b"hello")
    shop.world.run(10, until=lambda: bool(connection.received))
    assert bytes(connection.received) == (b"hello" if accepted else b"")


@pytest.mark.parametrize(("address", "accepted"), [("192.0.2.9", True), ("203.0.113.9", False)])
def test_where_nobody_says_which_those_are_it_is_one_that_may_see_identities(address: str, accepted: bool) -> None:
    shop = Shop(server_policy=installing(only_from(CLIENT)))
    assert shop.server.datapath is not None
    shared = shop.server.datapath._shared
    shared.settings = replace(shared.settings, pod_ranges=NetworkSet(()))
    stranger = shop.world.pod("shop/stranger", address, policy=OPEN, agent=False)
    connection = stranger.connect(shop.server, data=b"hello")
    shop.world.run(10, until=lambda: bool(connection.received))
    assert bytes(connection.received) == (b"hello" if accepted else b"")


@pytest.mark.parametrize(
    "policy", [only_from(), StandInPolicy(ingress=frozenset({CLIENT}), ports=frozenset({443}))], ids=["nobody", "port"]
)
def test_what_policy_allows_to_nobody_is_refused(policy: StandInPolicy) -> None:
    shop = Shop(server_policy=installing(policy), client_agent=False)
    connection = shop.connect()
    shop.world.run(10)
    assert not connection.received
    assert not shop.accepted()


@FAMILIES
def test_its_connection_outlives_the_installation_and_not_the_policy(family: int) -> None:
    shop = Shop(server_policy=installing(only_from(CLIENT)), client_agent=False)
    connection = shop.assert_works(b"one", family=family)
    for policy in (only_from(CLIENT), only_from(CLIENT, MALLORY)):
        shop.server.set_policy(policy)
        shop.server.events.clear()
        connection.write(b", more")
        shop.world.run(0.1)
        assert shop.server.accepted(), "judged anew, and accepted"
    assert bytes(connection.received) == b"one, more, more"
    shop.server.set_policy(only_from())
    connection.write(b"secret")
    shop.world.run(0.1)
    assert connection.outcome == "reset"
    assert b"secret" not in shop.delivered()


@FAMILIES
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_connection_that_is_older_than_the_agent_goes_on(side: str, family: int) -> None:
    """Also where policy says something about the direction in which it was not opened."""
    shop = Shop(client_policy=OPEN, server_policy=OPEN, client_agent=side == "client", server_agent=side == "server")
    connection = shop.assert_works(b"one", family=family)
    pod: Pod = getattr(shop, side)
    pod.forget_accepted()
    pod.endpoint.clients.clear()
    pod.events.clear()
    other = frozenset({"shop/other"})
    if side == "client":
        strict = StandInPolicy(ingress=other, egress=frozenset({SERVER}), ports=frozenset({80}))
    else:
        strict = StandInPolicy(ingress=frozenset({CLIENT}), egress=other, ports=frozenset({80}))
    pod.set_policy(installing(strict))
    connection.write(b", two")
    shop.world.run(0.1)
    assert bytes(connection.received) == b"one, two"
    assert reasons(pod) == [Reason.NOT_YET_IDENTIFIED]
    pod.set_policy(strict)
    connection.write(b", three")
    shop.world.run(0.1)
    assert bytes(connection.received) == b"one, two, three"
    pod.set_policy(StandInPolicy(ingress=frozenset(), egress=frozenset()))
    connection.write(b"secret")
    shop.world.run(0.1)
    assert connection.outcome == "reset"


@pytest.mark.parametrize("other", ["identified", "local"])
def test_it_goes_on_although_its_other_end_has_an_agent_by_now(other: str) -> None:
    shop = Shop(client_policy=OPEN, server_policy=OPEN)
    connection = shop.assert_works(b"one")
    assert shop.server.datapath is not None
    shop.server.forget_accepted()
    shop.server.set_policy(installing(only_from(CLIENT)))
    if other == "local":
        shop.server.datapath._shared.pod_addresses.update(shop.client.addresses)
    else:
        shop.assert_works(b"new")
    connection.write(b", two")
    shop.world.run(0.1)
    assert bytes(connection.received) == b"one, two"


@pytest.mark.parametrize(("port", "goes_on"), [(8080, True), (80, False)])
def test_it_is_judged_by_where_a_service_has_taken_it(port: int, goes_on: bool) -> None:
    shop = Shop(client_policy=OPEN, server_agent=False)
    shop.server.listen(8080, on_data=echo)
    service = packed("10.96.0.1")
    shop.world.router.services[service, 80] = [(shop.server.address(), 8080)]
    connection = shop.client.connect(service, 80, b"one")
    shop.world.run(5, until=lambda: bool(connection.received))
    shop.client.forget_accepted()
    shop.client.endpoint.clients.clear()
    shop.client.set_policy(installing(StandInPolicy(egress=frozenset({SERVER}), ports=frozenset({port}))))
    connection.write(b", two")
    shop.world.run(1)
    assert bytes(connection.received) == (b"one, two" if goes_on else b"one")


def test_without_an_installation_it_ends() -> None:
    shop = Shop(client_agent=False, server_policy=OPEN)
    connection = shop.assert_works(b"one")
    shop.server.forget_accepted()
    shop.server.set_policy(only_from(CLIENT))
    connection.write(b", two")
    shop.world.run(0.1)
    assert bytes(connection.received) == b"one"


@FAMILIES
@pytest.mark.parametrize("side", ["client", "server"])
def test_datagrams(side: str, family: int) -> None:
    shop = Shop(
        client_policy=installing(only_to(SERVER)),
        server_policy=installing(only_from(CLIENT)),
        client_agent=side == "client",
        server_agent=side == "server",
    )
    shop.client.say(shop.server, family=family)
    shop.world.run(10, until=lambda: bool(shop.server.heard))
    assert [one.payload for one in shop.server.heard] == [b"question"]
    shop.server.say(shop.client, b"answer", sport=53, port=40_000, family=family)
    shop.world.run(1)
    assert [one.payload for one in shop.client.heard] == [b"answer"]
    pod: Pod = getattr(shop, side)
    assert reasons(pod) == [Reason.NOT_YET_IDENTIFIED]


def test_datagrams_of_who_has_an_identity() -> None:
    shop = Shop(server_policy=installing(only_from(CLIENT)))
    mallory = shop.mallory()
    for sport in range(40_000, 40_010):
        mallory.say(shop.server, sport=sport)
        shop.world.run(5)
    assert not shop.server.heard
