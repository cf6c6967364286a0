"""Beyond the handshake: live connections under a new policy, segments of no known connection, and other protocols."""

from __future__ import annotations

from struct import pack

import pytest

from tests.harness.segments import ACK, FIN, RST, Segment, icmp, ip, packed, udp
from tests.harness.shop import CLIENT, SERVER, Shop, lose
from tests.harness.standin_policy import OPEN, StandInPolicy, only_from, only_to
from tests.harness.world import Pod
from trireme_py.model import Direction, DropReason, Verdict

FAMILIES = pytest.mark.parametrize("family", [4, 6])
SIDES = pytest.mark.parametrize("side", ["client", "server"])


# -- a policy that changes under a live connection --------------------------------------------------------------------


@FAMILIES
@SIDES
def test_live_connection_that_is_still_allowed_goes_on(side: str, family: int) -> None:
    shop = Shop()
    connection = shop.assert_works(b"one", family)
    pod: Pod = getattr(shop, side)
    pod.set_policy(only_to(SERVER, "shop/other") if side == "client" else only_from(CLIENT, "shop/other"))
    assert not pod.accepted()
    with shop.counts():
        connection.write(b", two")
        shop.world.run(0.1)
    assert bytes(connection.received) == b"one, two"
    assert len(pod.accepted()) == 1  # under the new epoch: nothing more of it meets the agent
    met = pod.verdicts.total()
    connection.write(b", three")
    shop.world.run(0.1)
    assert pod.verdicts.total() == met
    assert bytes(connection.received) == b"one, two, three"


@FAMILIES
@SIDES
@pytest.mark.parametrize("speaker", ["client", "server"])
def test_live_connection_that_is_denied_is_cut_at_both_ends(speaker: str, side: str, family: int) -> None:
    shop = Shop()
    connection = shop.assert_works(b"one", family)
    [other] = shop.server.host.connections.values()
    pod: Pod = getattr(shop, side)
    pod.events.clear()
    pod.set_policy(only_to("shop/other") if side == "client" else only_from("shop/other"))
    with shop.counts(**{side: {DropReason.CUT: 1}}):
        (connection if speaker == "client" else other).write(b"secret")
        shop.world.run(0.1)
    assert (connection.outcome, other.outcome) == ("reset", "reset")
    assert b"secret" not in (bytes(connection.received) + bytes(other.received))
    [event] = pod.events
    assert not event.decision.allowed
    assert event.peer is not None
    assert event.peer.name == (SERVER if side == "client" else CLIENT)
    assert event.peer_proven


def test_end_of_a_denied_connection_passes() -> None:
    """A reset is all that could be wanted of it."""
    shop = Shop()
    connection = shop.assert_works()
    shop.server.set_policy(only_from())
    own, port, other, other_port = connection.key
    reset = Segment(own, port, other, other_port, connection.next_sent, 0, RST, b"")
    with shop.counts():
        shop.world.inject(reset.build())
        shop.world.run(0.1)
    assert [one.outcome for one in shop.server.host.over] == ["reset"]


def test_bare_connection_is_judged_again_by_its_address() -> None:
    address = packed("10.1.0.2")
    shop = Shop(client_agent=False, server_policy=only_from(addresses=frozenset({address})))
    connection = shop.connect(b"one")
    shop.world.run(0.1)
    shop.server.set_policy(only_from(CLIENT, addresses=frozenset({address})))
    connection.write(b", two")
    shop.world.run(0.1)
    assert bytes(connection.received) == b"one, two"
    shop.server.set_policy(only_from(CLIENT))
    connection.write(b", three")
    shop.world.run(0.1)
    assert connection.outcome == "reset"
    assert shop.server.drops == {DropReason.CUT: 1}


def test_denial_is_reported_once_for_all_repetitions() -> None:
    shop = Shop(server_policy=only_from())
    shop.connect()
    shop.world.run(20)
    assert shop.server.drops[DropReason.POLICY] > 3
    assert sum(event.peer is not None for event in shop.server.events) == 1


# -- segments of no known connection ----------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (OPEN, None),
        (only_from(CLIENT), DropReason.NO_STATE),
        (only_to(CLIENT), DropReason.NO_STATE),
        (only_from(addresses=frozenset({packed("10.1.0.9"), packed("fd00:1::9")})), None),
        (only_to(addresses=frozenset({packed("10.1.0.9"), packed("fd00:1::9")})), None),
    ],
    ids=["open", "isolated in", "isolated out", "let in by address", "let out by address"],
)
def test_unknown_connection_passes_as_an_unidentified_one_would(
    policy: StandInPolicy, reason: DropReason | None, family: int
) -> None:
    """It is as old as the agent, or it is an attempt: nobody can say who opened it, or from which side."""
    shop = Shop(server_policy=policy)
    stranger = packed("10.1.0.9" if family == 4 else "fd00:1::9")
    own = shop.server.address(family)
    with shop.counts(server={reason: 2} if reason else {}):
        shop.world.inject(Segment(stranger, 1, own, 2, 5, 6, ACK, b"old").build())
        shop.world.run(0.011)
        shop.server.leave(Segment(own, 3, stranger, 4, 5, 6, ACK, b"old").build())
    assert shop.server.verdicts[Verdict.ACCEPT] == (0 if reason else 2)


@pytest.mark.parametrize("flags", [RST, RST | ACK, FIN | ACK, 0, FIN])
def test_flags_open_no_door(flags: int) -> None:
    shop = Shop()
    segment = Segment(packed("10.1.0.9"), 1, shop.server.address(), 80, 5, 6, flags, b"x")
    with shop.counts(server={DropReason.NO_STATE: 1}):
        shop.world.inject(segment.build())
        shop.world.run(0.1)
    assert not shop.server.segments


# -- other protocols --------------------------------------------------------------------------------------------------


@FAMILIES
def test_datagrams_are_judged_by_address_alone(family: int) -> None:
    shop = Shop()
    known = shop.client.address(family)
    mallory = shop.mallory(agent=False).address(family)
    shop.server.set_policy(only_from(CLIENT, addresses=frozenset({mallory})))
    own = shop.server.address(family)
    # Being allowed by identity helps nobody who cannot show it.
    with shop.counts(server={DropReason.POLICY: 1}):
        shop.world.inject(udp((known, 53), (own, 53)))
        shop.world.run(0.1)
    with shop.counts():
        shop.world.inject(udp((mallory, 53), (own, 53)))
        shop.world.run(0.1)
        shop.server.leave(udp((own, 53), (mallory, 53)))  # its answer
    assert len(shop.server.raw) == 1
    assert [event.decision.allowed for event in shop.server.events] == [False, True]


@FAMILIES
def test_datagrams_leaving_for_somebody_silent_are_judged_by_address(family: int) -> None:
    shop = Shop(server_agent=False)
    server, mallory = shop.server.address(family), shop.mallory(agent=False).address(family)
    shop.client.set_policy(only_to(SERVER, addresses=frozenset({mallory})))
    own = shop.client.address(family)
    shop.client.leave(udp((own, 53), (server, 53)))
    shop.client.leave(udp((own, 53), (mallory, 53)))
    shop.world.run(1)
    assert shop.client.drops == {DropReason.POLICY: 1}
    by_destination = {event.destination: event for event in shop.client.events}
    assert by_destination[server].direction is Direction.EGRESS
    assert not by_destination[server].decision.allowed


def test_flow_of_datagrams_is_judged_again_when_policy_changes() -> None:
    shop = Shop(server_policy=only_from(addresses=frozenset({packed("10.1.0.9")})))
    datagram = udp((packed("10.1.0.9"), 53), (shop.server.address(), 53))
    shop.world.inject(datagram)
    shop.world.run(0.1)
    shop.server.set_policy(only_from(addresses=frozenset({packed("10.1.0.9"), packed("10.1.0.8")})))
    shop.world.inject(datagram)
    shop.world.run(0.1)
    assert len(shop.server.raw) == 2
    shop.server.set_policy(only_from())
    for _ in range(2):
        with shop.counts(server={DropReason.CUT: 1}):
            shop.world.inject(datagram)
            shop.world.run(0.1)
    shop.server.set_policy(OPEN)
    shop.world.inject(datagram)
    shop.world.run(0.1)
    assert len(shop.server.raw) == 3


@FAMILIES
@pytest.mark.parametrize("protocol", [132, 47, 50, 253])
def test_other_protocols_of_an_isolated_pod_do_not_pass_unjudged(protocol: int, family: int) -> None:
    shop = Shop()
    data = ip(shop.client.address(family), shop.server.address(family), protocol, pack("!HHII", 1, 2, 3, 4))
    with shop.counts(server={DropReason.POLICY: 1}):
        shop.world.inject(data)
        shop.world.run(0.1)
    assert not shop.server.raw
    shop.server.set_policy(OPEN)
    shop.world.inject(data)
    shop.world.run(0.1)
    assert shop.server.raw == [data]


@FAMILIES
def test_echo_is_judged_by_address(family: int) -> None:
    shop = Shop()
    echo = icmp(shop.client.address(family), shop.server.address(family), 8 if family == 4 else 128)
    with shop.counts(server={DropReason.POLICY: 1}):
        shop.world.inject(echo)
        shop.world.run(0.1)
    assert not shop.server.raw


# -- ICMP errors ------------------------------------------------------------------------------------------------------

ROUTER = {4: packed("192.0.2.1"), 6: packed("fd00:96::1")}


def unreachable(family: int, to: bytes, about: bytes) -> bytes:
    return icmp(ROUTER[family], to, 3 if family == 4 else 1, body=about[: 28 if family == 4 else 48])


@FAMILIES
@SIDES
def test_error_about_a_handshake_follows_it(side: str, family: int) -> None:
    shop = Shop()
    lose(shop.world, "syn" if side == "client" else "syn-ack")
    shop.connect(family=family)
    shop.world.run(0.015)
    pod: Pod = getattr(shop, side)
    about = shop.world.captured[-1]
    with shop.counts():
        shop.world.inject(unreachable(family, pod.address(family), about))
        shop.world.run(0.015)
    assert len(pod.raw) == 1


@FAMILIES
def test_error_about_nothing_is_judged_by_address(family: int) -> None:
    shop = Shop()
    about = Segment(shop.server.address(family), 80, shop.client.address(family), 9, 1, 1, ACK, b"").build()
    with shop.counts(server={DropReason.POLICY: 1}):
        shop.world.inject(unreachable(family, shop.server.address(family), about))
        shop.world.run(0.1)
    assert not shop.server.raw


def test_error_that_goes_elsewhere_than_to_its_cause_is_no_way_out() -> None:
    """Otherwise a pod could send anything to anybody, inside an error about a connection that it has."""
    shop = Shop()
    mallory = shop.mallory(agent=False)
    shop.assert_works()
    about = Segment(shop.server.address(), 80, shop.client.address(), 40_000, 1, 1, ACK, b"smuggled").build()
    shop.client.set_policy(only_to(SERVER))
    with shop.counts(client={DropReason.POLICY: 1}):
        shop.client.leave(icmp(shop.client.address(), mallory.address(), 3, body=about))


@FAMILIES
@pytest.mark.parametrize("length", [0, 1, 3])
def test_icmp_cut_short_is_malformed(length: int, family: int) -> None:
    shop = Shop()
    data = ip(ROUTER[family], shop.server.address(family), 1 if family == 4 else 58, bytes(length))
    with shop.counts(server={DropReason.MALFORMED_PACKET: 1}):
        shop.world.inject(data)
        shop.world.run(0.1)


@pytest.mark.parametrize("quoted", [b"", b"\x45", bytes(40), b"\x45" + bytes(18), b"\x60" + bytes(30)])
def test_error_that_quotes_rubbish_is_no_error_about_anything(quoted: bytes) -> None:
    shop = Shop()
    with shop.counts(server={DropReason.POLICY: 1}):
        shop.world.inject(icmp(ROUTER[4], shop.server.address(), 3, body=quoted))
        shop.world.run(0.1)
