"""UDP flows under change: what is bounded, what a new policy or identity ends, and what time does."""

from __future__ import annotations

import pytest

from tests.harness.resolver import POLICIES, PORT, Resolver
from tests.harness.shop import CLIENT, SERVER
from tests.harness.standin_policy import OPEN, only_from, only_to
from tests.harness.surplus import read_udp
from trireme_py.datagram_flows import SILENT_NS, WARM_NS
from trireme_py.endpoint import MAX_HELD_PACKETS, MAX_HELD_PER_POD
from trireme_py.model import DropReason

ROUND_TRIP_MS = 20


def test_what_waits_is_bounded_per_flow_and_per_pod() -> None:
    scene = Resolver("client", server_agent=False)
    for _ in range(MAX_HELD_PACKETS + 10):
        scene.client.say(scene.server)
    assert len(scene.client.held) == MAX_HELD_PACKETS
    assert scene.client.drops == {DropReason.HOLD_LIMIT: 10}
    for sport in range(41_000, 41_000 + MAX_HELD_PER_POD):
        scene.client.say(scene.server, sport=sport)
    assert len(scene.client.held) <= MAX_HELD_PER_POD
    assert scene.client.endpoint.held_packets == len(scene.client.held)
    scene.world.run(3)
    assert scene.client.held == {}
    assert scene.client.endpoint.held_packets == 0
    assert scene.server.heard == []
    assert scene.client.drops.total() == MAX_HELD_PACKETS + 10 + MAX_HELD_PER_POD


def test_a_known_pair_goes_on_through_a_flood_of_fresh_flows() -> None:
    """At the client: to a silent address. At the server: HELLOs with data whose proof never comes."""
    scene = Resolver()
    mallory = scene.mallory(agent=False)
    scene.ask()
    scene.client.say(mallory, sport=39_999)
    hello = None
    for round_ in range(6):
        for number in range(MAX_HELD_PER_POD // 2):
            scene.client.say(mallory.address(), sport=10_000 + number + 600 * round_, port=53 + round_)
        if hello is None:
            hello = scene.captured("HELLO")
        assert scene.ask(b"still %d" % round_, sport=50_000 + round_) == ROUND_TRIP_MS
    assert mallory.heard == []
    scene.world.run(3)
    assert scene.client.held == {}


def test_a_flood_at_the_server_never_shuts_out_a_known_pair() -> None:
    scene = Resolver("server")
    scene.ask()
    flood = scene.mallory()
    scene.server.set_policy(only_from(CLIENT, flood.name))
    flood.deliver = lambda data: None  # type: ignore[method-assign]
    real = scene.world.on_wire
    for round_ in range(6):
        # Her proofs never come, so each of her datagrams waits at the server.
        scene.world.on_wire = lambda data: () if read_udp(data).message[5:6] in (b"\x05", b"\x06") else (data,)
        for number in range(400):
            flood.say(scene.server, sport=10_000 + number + 400 * round_)
        scene.world.run(0.05)
        scene.world.on_wire = real
        assert len(scene.server.held) <= MAX_HELD_PER_POD
        assert scene.ask(b"still %d" % round_, sport=50_000 + round_) == ROUND_TRIP_MS
    assert scene.server.drops[DropReason.HOLD_LIMIT] > 0
    scene.world.run(5)
    assert scene.server.held == {}
    assert set(scene.asked()) == {b"question", *(b"still %d" % number for number in range(6))}


def test_tables_end_empty() -> None:
    scene = Resolver()
    for sport in range(40_000, 40_100):
        scene.ask(sport=sport)
    scene.world.run(60)
    for pod in (scene.client, scene.server):
        assert not any(len(table) for table in pod.endpoint.datagrams.timed())
        assert pod.endpoint.held_packets == 0


@pytest.mark.parametrize("age", ["young", "old"])
@pytest.mark.parametrize("end", ["client", "server"])
@pytest.mark.parametrize("isolated", ["client", "server", "both"])
def test_a_change_of_policy_is_felt_by_a_live_flow_and_can_be_taken_back(isolated: str, end: str, age: str) -> None:
    scene = Resolver(isolated)
    pod = scene.client if end == "client" else scene.server
    before, refusing = pod.endpoint.policy, only_to("shop/another") if end == "client" else only_from("shop/another")
    for _ in range(3):
        scene.ask()
    if age == "old":
        scene.world.run(30)
    pod.set_policy(refusing)
    count = len(scene.server.heard)
    for _ in range(5):
        assert scene.ask(seconds=0.4) == -1
    if end == "server" or isolated != "server":
        assert len(scene.server.heard) == count
    pod.set_policy(before)
    assert scene.ask() >= 0 or scene.ask() >= 0


def test_nothing_that_was_cut_is_revived_from_the_other_side() -> None:
    """The server goes on sending on the flow: that must not let the client's datagrams out again."""
    scene = Resolver("client")
    for _ in range(3):
        scene.ask()
    scene.client.set_policy(only_to("shop/another"))
    for wait in (0, 0, 1, 15):
        scene.client.say(scene.server, b"refused")
        scene.server.say(scene.client, b"unasked", sport=PORT, port=40_000)
        scene.world.run(wait + 0.5)
    assert b"refused" not in scene.asked()


@pytest.mark.parametrize("isolated", ["client", "both"])
def test_a_change_of_policy_while_a_datagram_waits(isolated: str) -> None:
    scene = Resolver(isolated)
    scene.client.say(scene.server, b"overtaken by policy")
    scene.client.set_policy(only_to("shop/another"))
    scene.world.run(1)
    assert scene.asked() == []
    scene.client.say(scene.server, sport=40_001)
    scene.client.set_policy(OPEN)
    scene.world.run(1)
    assert scene.asked() == [b"question"]


def test_policy_opens_while_a_datagram_waits_for_a_silent_server() -> None:
    scene = Resolver("client", server_agent=False)
    scene.client.say(scene.server, b"waits")
    scene.client.set_policy(OPEN)
    scene.world.run(1)
    assert scene.asked() == [b"waits"]


def test_an_open_flow_becomes_isolated_before_anybody_answered() -> None:
    scene = Resolver("none", server_agent=False)
    scene.server.on_datagram = lambda _: None
    scene.client.say(scene.server, b"allowed")
    scene.world.run(0.05)
    scene.client.set_policy(only_to(SERVER))
    scene.client.say(scene.server, b"refused")
    scene.server.say(scene.client, b"answer", sport=PORT, port=40_000)
    scene.world.run(0.05)
    scene.client.say(scene.server, b"refused")
    scene.world.run(1)
    assert scene.asked() == [b"allowed"]


def test_a_new_identity_of_either_end() -> None:
    """New labels count for the next flow, not when the window ends."""
    scene = Resolver()
    scene.ask()
    for pod, name in ((scene.client, CLIENT), (scene.server, SERVER)):
        assert pod.authenticator is not None
        assert pod.datapath is not None
        renamed = scene.world.local_identity(f"{name}-2", pod.authenticator)
        pod.datapath.set_identity(0, renamed)
        assert scene.ask(sport=40_001 if pod is scene.client else 40_002, seconds=1) == -1
        renewed = scene.world.local_identity(name, pod.authenticator)
        pod.datapath.set_identity(0, renewed)
        scene.world.run(SILENT_NS / 1e9)
        assert scene.ask(sport=40_003 if pod is scene.client else 40_004) >= 0
    assert len(scene.asked()) == 3


def test_the_window_ends() -> None:
    """Nine seconds without a flow: the client asks again, although the server has its ticket still."""
    scene = Resolver()
    scene.ask()
    scene.world.run(7)
    assert scene.ask(sport=40_001) == ROUND_TRIP_MS
    scene.world.run(WARM_NS / 1e9 - 1)
    scene.world.captured.clear()
    assert scene.ask(sport=40_002) == 2 * ROUND_TRIP_MS
    assert scene.kinds() == ["HELLO", "ANSWER", "PROOF", "-"]
    scene.server.endpoint.datagrams.tickets.clear()  # as if its agent had been restarted
    scene.world.captured.clear()
    assert scene.ask(sport=40_003) == 2 * ROUND_TRIP_MS
    assert scene.kinds()[:2] == ["RESUME", "ANSWER"]
    assert scene.ask(sport=40_004) == ROUND_TRIP_MS


def test_an_expired_identity_ends_the_window() -> None:
    scene = Resolver()
    scene.ask()
    scene.world.wall_offset += 3_000 + 3_600
    assert scene.ask(sport=40_001, seconds=1) == -1
    assert len(scene.asked()) == 1


def test_a_flow_in_one_direction(
) -> None:  # fmt: skip
    """Nobody answers at all. It is identified, and handed to the kernels, all the same."""
    for isolated in POLICIES:
        scene = Resolver(isolated)
        scene.server.on_datagram = lambda _: None
        sent = []
        for sport in (40_000, 40_001):
            for number in range(40):
                sent.append(b"%d %d" % (sport, number))
                scene.client.say(scene.server, sent[-1], sport=sport)
                scene.world.run(0.05)
        scene.world.run(1)
        assert scene.asked() == sent, isolated
        assert scene.client.bypassed > 40, isolated
        assert scene.server.bypassed > 40, isolated
