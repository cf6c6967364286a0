"""The exchange on UDP between two data paths: what is delivered, in which order, how often, and what waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from tests.harness.network import Faults
from tests.harness.resolver import POLICIES, PORT, Resolver, late, meddle, serve
from tests.harness.segments import packed, udp
from tests.harness.shop import CLIENT, SERVER
from tests.harness.standin_policy import OPEN, only_from, only_to
from tests.harness.surplus import read_udp, with_surplus
from trireme_py.datagram_flows import HELLOS, SILENT_NS
from trireme_py.datapath import Caught
from trireme_py.model import Direction, DropReason, Hook, Reason

FAMILIES = pytest.mark.parametrize("family", [4, 6])
ISOLATED = pytest.mark.parametrize("isolated", POLICIES)
ROUND_TRIP_MS = 20


# -- who asks whom ----------------------------------------------------------------------------------------------------


@ISOLATED
@FAMILIES
@pytest.mark.parametrize("mode", ["psk", "pki"])
def test_a_conversation(isolated: str, family: int, mode: str) -> None:
    """Cold, then warm from fresh ports, then one flow that goes on until both kernels have it."""
    scene = Resolver(isolated, mode=mode)
    cold = scene.ask(family=family)
    # The HELLO of an open client rides on a small question, and the server's answer must not be larger than that.
    assert cold == ROUND_TRIP_MS * {"none": 1, "client": 2, "server": 3, "both": 2}[isolated]
    for sport in range(40_001, 40_005):
        took = scene.ask(b"%d" % sport, sport=sport, family=family)
        assert took == ROUND_TRIP_MS, (scene.world.transcript, scene.client.drops, scene.server.drops)
    for number in range(3):
        assert scene.ask(b"on %d" % number, sport=40_001, family=family) == ROUND_TRIP_MS
    passed = (scene.client.verdicts.total(), scene.server.verdicts.total())
    assert scene.ask(b"by the kernels", sport=40_001, family=family) == ROUND_TRIP_MS
    assert (scene.client.verdicts.total(), scene.server.verdicts.total()) == passed
    assert not {*scene.client.drops, *scene.server.drops} - {DropReason.CONSUMED}
    assert not scene.client.held
    assert not scene.server.held


def test_transcript_of_a_cold_flow_and_a_warm_one() -> None:
    scene = Resolver()
    scene.ask(b"12345678")
    scene.ask(b"12345678", sport=40_001)
    scene.ask(b"12345678", sport=40_001)
    scene.world.assert_transcript(
        """
          0 ms  client: sealed HELLO
         10 ms  server: sealed ANSWER
         20 ms  client: 8 octets + PROOF
         30 ms  server: 11 octets
         70 ms  client: sealed 8 octets + RESUME
         80 ms  server: 11 octets + CONFIRM
        120 ms  client: 8 octets + PROOF
        130 ms  server: 11 octets
        """
    )


@FAMILIES
def test_events_name_the_peer_once_for_each_flow(family: int) -> None:
    scene = Resolver()
    for sport in (40_000, 40_001):
        for _ in range(3):
            scene.ask(sport=sport, family=family)
    for pod, direction, peer in (
        (scene.client, Direction.EGRESS, SERVER), (scene.server, Direction.INGRESS, CLIENT),
    ):  # fmt: skip
        events = [(event.direction, event.peer and event.peer.name, event.peer_proven) for event in pod.events]
        assert events == [(direction, peer, True)] * 2
        assert all(event.decision.reason is Reason.POLICY for event in pod.events)


@pytest.mark.parametrize("isolated", ["client", "both"])
@FAMILIES
def test_a_silent_server_gets_nothing_and_costs_the_wait_once(isolated: str, family: int) -> None:
    scene = Resolver(isolated, server_agent=False)
    for sport in range(40_000, 40_020):
        scene.client.say(scene.server, sport=sport, family=family)
    scene.world.run(1)
    assert scene.server.heard == []
    assert scene.server.discarded == 20 * HELLOS
    assert scene.client.drops == {DropReason.POLICY: 20}
    hellos = len(scene.world.captured)
    scene.client.say(scene.server, sport=50_000, family=family)
    assert scene.client.drops == {DropReason.POLICY: 21}
    assert len(scene.world.captured) == hellos
    assert {event.decision.reason for event in scene.client.events} == {Reason.UNIDENTIFIED}
    scene.world.run(SILENT_NS / 1e9)
    scene.client.say(scene.server, sport=50_001, family=family)
    scene.world.run(1)
    assert len(scene.world.captured) == hellos + HELLOS
    assert scene.server.heard == []


@FAMILIES
def test_a_server_without_an_agent_that_anybody_may_go_to(family: int) -> None:
    """It reads exactly what was sent, and no datagram of ours."""
    scene = Resolver("none", server_agent=False)
    payloads = [b"%d" % number for number in range(5)]
    for payload in payloads:
        assert scene.ask(payload, family=family) == ROUND_TRIP_MS
    assert scene.asked() == payloads
    assert scene.server.discarded == 0
    assert scene.client.bypassed > 0


@FAMILIES
def test_a_client_without_an_agent(family: int) -> None:
    scene = Resolver("server", client_agent=False)
    assert scene.ask(family=family) == -1
    assert scene.asked() == []
    scene.server.set_policy(only_from(addresses=frozenset({scene.client.address(family)})))
    assert scene.ask(family=family) == ROUND_TRIP_MS
    assert scene.client.discarded == 0


@FAMILIES
def test_a_server_that_egress_policy_refuses(family: int) -> None:
    scene = Resolver("client")
    scene.client.set_policy(only_to("shop/another"))
    for sport in range(40_000, 40_050):
        scene.client.say(scene.server, sport=sport, family=family)
        scene.client.say(scene.server, sport=sport, family=family)
    scene.world.run(3)
    assert scene.asked() == []
    refused = [event for event in scene.client.events if not event.decision.allowed]
    assert len(refused) == 50
    assert {event.decision.reason for event in refused} == {Reason.NO_MATCH}


@FAMILIES
@pytest.mark.parametrize("isolated", ["server", "both"])
def test_a_client_that_ingress_policy_refuses(isolated: str, family: int) -> None:
    scene = Resolver(isolated)
    scene.server.set_policy(only_from("shop/another"))
    for sport in range(40_000, 40_050):
        scene.client.say(scene.server, sport=sport, family=family)
    scene.world.run(3)
    assert scene.asked() == []
    assert scene.client.held == {}
    assert scene.server.held == {}


def test_policy_that_opens_nothing_asks_nobody() -> None:
    scene = Resolver("client")
    scene.client.set_policy(only_to())
    scene.client.say(scene.server)
    scene.world.run(1)
    assert not scene.world.captured
    assert scene.client.drops == {DropReason.POLICY: 1}


# -- what goes wrong on the way ---------------------------------------------------------------------------------------

MESSAGES = ("HELLO", "ANSWER", "PROOF", "RESUME", "CONFIRM")


@ISOLATED
@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize("fault", ["lost", "repeated", "late"])
def test_one_message_is_lost_repeated_or_late(isolated: str, kind: str, fault: str) -> None:
    """The application asks again after half a second, as resolvers do, and is answered; nothing arrives that was
    not sent, and afterwards everything is as if nothing had happened."""
    scene = Resolver(isolated)
    world = scene.world
    faults: dict[str, Callable[[bytes], Iterable[bytes]]] = {
        "lost": lambda data: (), "repeated": lambda data: (data, data), "late": late(world, 45_000_000),
    }  # fmt: skip
    meddle(world, kind, faults[fault])
    for sport in (40_000, 40_001):
        for number in range(3):
            query = b"%d %d" % (sport, number)
            for attempt in range(3):
                if scene.ask(query, sport=sport, seconds=0.5) >= 0:
                    break
                assert attempt < 2, (world.transcript, scene.client.drops, scene.server.drops)
    world.run(2)
    assert scene.client.held == {}
    assert scene.server.held == {}
    assert set(scene.asked()) == {b"%d %d" % (sport, number) for sport in (40_000, 40_001) for number in range(3)}
    assert scene.ask(b"afterwards", sport=40_002) >= 0
    bad = {DropReason.BAD_MAC, DropReason.MALFORMED_MESSAGE, DropReason.RELAYED, DropReason.BAD_CHECKSUM}
    assert not bad & {*scene.client.drops, *scene.server.drops}


@ISOLATED
@pytest.mark.parametrize("seed", range(4))
def test_a_bad_link(isolated: str, seed: int) -> None:
    """A tenth of everything is lost, repeated or late. Each question is asked until it is answered, as resolvers do."""
    scene = Resolver(isolated, seed=seed)
    scene.world.faults = Faults(drop=0.1, duplicate=0.1, reorder=0.1)
    for number in range(60):
        query = b"%d" % number
        for attempt in range(100):
            scene.client.say(scene.server, query, sport=40_000 + number + 100 * (attempt // 2))
            scene.world.run(1, until=lambda query=query: b"re:" + query in scene.answered())  # type: ignore[misc]
            if b"re:" + query in scene.answered():
                break
            scene.world.run(0.2)
        assert b"re:" + query in scene.answered()
    scene.world.run(5)
    assert set(scene.asked()) == {b"%d" % number for number in range(60)}
    assert scene.client.held == {}
    assert scene.server.held == {}


@ISOLATED
@pytest.mark.parametrize("size", [1, 1200])
def test_datagrams_of_one_flow_stay_in_order(isolated: str, size: int) -> None:
    scene = Resolver(isolated)
    for sport in (40_000, 40_001):
        burst = [b"%05d" % number + bytes(size) for number in range(40)]
        for payload in burst:
            scene.client.say(scene.server, payload, sport=sport)
            scene.world.run(0.0009)
        scene.world.run(1)
        assert scene.asked() == burst, isolated
        assert [one[3:] for one in scene.answered()] == burst
        scene.server.heard.clear()
        scene.client.heard.clear()
    assert not {*scene.client.drops, *scene.server.drops} - {DropReason.CONSUMED}


# -- sizes and shapes -------------------------------------------------------------------------------------------------


@ISOLATED
@FAMILIES
@pytest.mark.parametrize("size", [0, 1, 600, 1100, 1135, 1200, 1472, 9000])
def test_datagrams_of_any_size(isolated: str, family: int, size: int) -> None:
    scene = Resolver(isolated, answers=lambda payload: payload)
    payload = bytes(number % 251 for number in range(size))
    for sport in (40_000, 40_001, 40_002):
        for _ in range(3):
            assert scene.ask(payload, sport=sport, family=family) >= 0, (isolated, scene.world.transcript)
    assert {one.payload for one in scene.server.heard} == {payload}
    ours = [data for data in scene.world.captured if read_udp(data).message]
    assert max(map(len, ours)) <= 1280
    if size:
        assert all(one.surplus == b"" for one in scene.server.heard)


@pytest.mark.parametrize("isolated", ["client", "server", "both"])
@pytest.mark.parametrize("large", ["question", "answer"])
def test_only_one_way_is_too_large_for_a_message(isolated: str, large: str) -> None:
    """A large answer to a small question waits for the confirmation right behind it."""
    answers: Callable[[bytes], bytes] = lambda payload: payload[:3] + bytes(1300 if large == "answer" else 0)  # noqa: E731
    scene = Resolver(isolated, answers=answers)
    scene.ask(b"first")
    padding = bytes(1300 if large == "question" else 0)
    for sport in (40_001, 40_002, 40_003):
        for number in range(4):
            assert scene.ask(b"%d" % number + padding, sport=sport) >= 0, scene.world.transcript
    assert not {*scene.client.drops, *scene.server.drops} - {DropReason.CONSUMED}
    assert scene.client.held == {}


@pytest.mark.parametrize("isolated", ["client", "server", "both"])
def test_a_large_datagram_follows_a_small_one_on_a_warm_flow(isolated: str) -> None:
    """The small one went with RESUME, the large one cannot: it waits, and the answer to the first arrives."""
    scene = Resolver(isolated)
    scene.ask(b"first")
    small, large = b"small", b"large" + bytes(1300)
    scene.client.say(scene.server, small, sport=40_001)
    scene.client.say(scene.server, large, sport=40_001)
    scene.world.run(1)
    assert scene.asked()[1:] == [small, large]
    assert scene.answered()[1:] == [b"re:" + small, b"re:" + large]
    assert scene.ask(b"and on", sport=40_001) == ROUND_TRIP_MS


@ISOLATED
@FAMILIES
def test_surplus_of_somebody_else_goes_through_untouched(isolated: str, family: int) -> None:
    scene = Resolver(isolated)
    options = b"\x05\x06\x05\xdc\x00\x00"
    here, there = scene.client.address(family), scene.server.address(family)
    for sport, warm in ((40_000, False), (40_000, True), (40_001, True)):
        payload = b"with options" if warm else b"first"
        data = with_surplus(udp((here, sport), (there, PORT), payload), options)
        scene.client.leave(data)
        scene.world.run(1)
        assert scene.server.heard[-1].payload == payload
        assert scene.server.heard[-1].surplus == read_udp(data).surplus
        assert scene.answered()[-1] == b"re:" + payload
    assert not {*scene.client.drops, *scene.server.drops} - {DropReason.CONSUMED}


def test_a_reply_with_a_surplus_of_its_own_is_confirmed_beside_it() -> None:
    scene = Resolver()
    scene.ask()
    here, there = scene.client.address(), scene.server.address()
    reply = with_surplus(udp((there, PORT), (here, 40_001), b"reply"), b"\x05\x06\x05\xdc\x00\x00")
    scene.server.on_datagram = lambda _: scene.server.leave(reply)
    scene.client.say(scene.server, sport=40_001)
    scene.world.run(1)
    assert (scene.answered()[-1], scene.client.heard[-1].surplus) == (b"reply", read_udp(reply).surplus)


def test_ipv4_datagrams_without_a_checksum() -> None:
    scene = Resolver()
    for sport in (40_000, 40_001):
        data = bytearray(udp((scene.client.address(), sport), (scene.server.address(), PORT), b"unsummed"))
        data[26:28] = b"\0\0"
        scene.client.leave(bytes(data))
        scene.world.run(1)
        assert scene.asked()[-1] == b"unsummed"
        assert scene.answered()[-1] == b"re:unsummed"


@pytest.mark.parametrize("destination", ["224.0.0.251", "239.1.2.3", "255.255.255.255", "ff02::fb", "ff05::2"])
def test_multicast_is_judged_by_address_and_never_asked(destination: str) -> None:
    scene = Resolver("client")
    target = packed(destination)
    scene.client.say(target, b"who is it", port=5353)
    scene.world.run(1)
    assert not scene.world.captured
    assert scene.client.drops == {DropReason.POLICY: 1}
    scene.client.set_policy(only_to(addresses=frozenset({target})))
    scene.client.say(target, b"who is it", port=5353)
    scene.world.run(1)
    assert [read_udp(data).surplus for data in scene.world.captured] == [b""]


def test_outside_the_identity_scope_no_message_goes_or_is_heard() -> None:
    scene = Resolver("server")
    outside = scene.world.pod("else/where", "203.0.113.9", agent=False)
    scene.client.say(outside, b"hello")
    scene.world.run(0.1)
    assert [one.surplus for one in outside.heard] == [b""]
    scene.client.say(scene.server, b"real")
    meddle(scene.world, "HELLO", lambda data: ())
    scene.world.run(1)
    assert DropReason.UNEXPECTED not in scene.server.drops


@pytest.mark.parametrize("isolated", ["none", "server"])
def test_a_pod_without_an_identity_reads_what_comes_with_a_hello(isolated: str) -> None:
    """It answers nothing, and its peers are judged by address."""
    scene = Resolver(isolated)
    assert scene.server.datapath is not None
    scene.server.datapath.set_identity(0, None)
    if isolated == "server":
        scene.server.set_policy(only_from(addresses=frozenset({scene.client.address()})))
    assert scene.ask() == ROUND_TRIP_MS
    assert scene.ask(sport=40_001) == ROUND_TRIP_MS


# -- one socket, many peers; many sockets, one peer -------------------------------------------------------------------


def test_one_socket_to_many_peers() -> None:
    scene = Resolver("none")
    friends = [scene.world.pod(f"shop/friend-{n}", f"10.1.1.{n}", policy=only_from(CLIENT)) for n in range(1, 9)]
    strangers = [scene.world.pod(f"shop/stranger-{n}", f"10.1.2.{n}", policy=OPEN) for n in range(1, 9)]
    silent = [scene.world.pod(f"shop/silent-{n}", f"10.1.3.{n}", agent=False) for n in range(1, 9)]
    for pod in (*friends, *strangers, *silent):
        serve(pod)
    scene.client.set_policy(only_to(*(friend.name for friend in friends)))
    for _ in range(3):
        for pod in (*friends, *strangers, *silent):
            scene.client.say(pod, pod.name.encode(), sport=40_000)
        scene.world.run(1)
    assert all([one.payload for one in friend.heard] == [friend.name.encode()] * 3 for friend in friends)
    assert not any(pod.heard for pod in (*strangers, *silent))
    assert len(scene.client.heard) == 3 * len(friends)


@pytest.mark.parametrize("isolated", ["client", "server", "both"])
def test_two_queries_at_once_from_one_socket(isolated: str) -> None:
    """As glibc asks for A and AAAA, cold and warm, whichever arrives and is answered first."""
    for order in ((0, 1), (1, 0)):
        scene = Resolver(isolated)
        for sport in range(40_000, 40_006):
            queries = [b"A", b"AAAA"]
            scene.client.heard.clear()
            scene.client.say(scene.server, queries[order[0]], sport=sport)
            scene.world.run(0.004 * (sport % 5))
            scene.client.say(scene.server, queries[order[1]], sport=sport)
            scene.world.run(1)
            assert sorted(scene.answered()) == [b"re:A", b"re:AAAA"], (sport, scene.world.transcript)
        assert not {*scene.client.drops, *scene.server.drops} - {DropReason.CONSUMED}


def test_a_server_that_answers_from_another_address() -> None:
    """It begins a flow of its own, which the client's ingress policy judges."""
    scene = Resolver("server")
    second = packed("10.1.0.33")
    scene.server.addresses += (second,)
    scene.world.by_address[second] = scene.server
    scene.server.on_datagram = lambda one: scene.server.leave(
        udp((second, PORT), (one.source, one.sport), b"from elsewhere")
    )
    scene.client.say(scene.server)
    scene.world.run(1)
    assert scene.answered() == [b"from elsewhere"]
    scene.client.set_policy(only_from(SERVER))
    scene.client.heard.clear()
    scene.client.say(scene.server, sport=40_001)
    scene.world.run(1)
    assert scene.answered() == [b"from elsewhere"]  # it is the server, and says so
    scene.client.set_policy(only_from("shop/another"))
    scene.client.say(scene.server, sport=40_002)
    scene.world.run(1)
    assert scene.answered() == [b"from elsewhere"]


@pytest.mark.parametrize("isolated", ["client", "server", "both"])
@pytest.mark.parametrize("count", [31, 32, 33, 34, 60])
@pytest.mark.parametrize("pause_ms", [0, 1, 8])
def test_a_burst_on_a_warm_flow_is_complete(isolated: str, count: int, pause_ms: int) -> None:
    """More than may prove themselves without a confirmation: the rest goes behind a HELLO."""
    scene = Resolver(isolated)
    scene.ask(b"cold")
    burst = [b"%d" % number for number in range(count)]
    for payload in burst:
        scene.client.say(scene.server, payload, sport=40_001)
        scene.world.run(pause_ms / 1000)
    scene.world.run(3)
    assert scene.asked()[1:] == burst
    assert scene.answered()[1:] == [b"re:" + payload for payload in burst]
    assert not {*scene.client.drops, *scene.server.drops} - {DropReason.CONSUMED}


def test_the_same_datagram_of_ours_twice_at_once() -> None:
    """Two answers to one HELLO that came twice are the same to the last octet, and both pass the pod's rules."""
    scene = Resolver()
    scene.client.say(scene.server)
    hello = scene.captured("HELLO")
    datapath = scene.server.datapath
    assert datapath is not None
    results = [datapath.receive(scene.world.now, 0, Hook.NETWORK, [Caught(ticket, hello)]) for ticket in (9001, 9002)]
    answers = [result.send[0] for [result] in results]
    assert answers[0] == answers[1]
    for answer in answers:
        scene.server.leave(answer)
    assert scene.kinds()[-2:] == ["ANSWER", "ANSWER"]
    scene.server.leave(answers[0])
    assert scene.server.drops[DropReason.UNEXPECTED] == 1
