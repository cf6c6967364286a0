"""UDP on the fast path: Python alone and the engine in C in front of it are fed the same, and must say the same."""

from __future__ import annotations

import pytest

from tests.harness import world
from tests.harness.datagram_storm import DatagramStorm
from tests.harness.fastpath import fast
from tests.harness.overheard import Heard, assert_same, listen_in
from tests.harness.resolver import PORT, Resolver
from tests.harness.segments import icmp, udp
from tests.harness.shop import SERVER
from tests.harness.standin_policy import only_to
from tests.harness.surplus import kind_of_datagram
from tests.harness.tcp import SECOND
from trireme_py.datagram_flows import Warm
from trireme_py.endpoint import Acceptance
from trireme_py.model import Decision, Direction, DropReason, Hook, Protocol, Reason
from trireme_py.packet import parse_packet_untrusted
from trireme_py.surplus import read_datagram_untrusted


def weather(implementation: str, mode: str, seed: int, flows: int) -> Heard:
    """What one storm sounds like."""
    heard = Heard()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(world, "IMPLEMENTATION", implementation)
        listen_in(heard, monkeypatch)
        scene = DatagramStorm(seed, mode)
        scene.rain(flows)
        heard.collect(scene.guarded)
    return heard


@pytest.mark.parametrize(("mode", "seed"), [("psk", 1), ("psk", 2), ("pki", 3)])
def test_both_say_the_same_in_a_storm(mode: str, seed: int) -> None:
    python, c = (weather(implementation, mode, seed, 600) for implementation in ("python", "c"))
    assert_same(python, c)
    # It was worth comparing: C has accepted flows of its own, and handed others over.
    assert c.answered_in_c > 100, c.answered_in_c
    assert c.parked > 1000, c.parked


# -- one thing at a time ----------------------------------------------------------------------------------------------


@pytest.fixture
def in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "IMPLEMENTATION", "c")


def parked(scene: Resolver) -> int:
    return sum(sum(fast(pod).counters(0).parked) for pod in (scene.client, scene.server))


@pytest.fixture(params=["client", "server", "both"])
def warm(request: pytest.FixtureRequest, in_c: None) -> Resolver:
    """A pair that has proved itself."""
    scene = Resolver(request.param)
    assert scene.ask(b"cold") >= 0
    return scene


@pytest.mark.parametrize("family", [4, 6])
def test_a_warm_flow_is_c_s_from_its_first_datagram_to_its_mark(warm: Resolver, family: int) -> None:
    assert warm.ask(b"cold", family=family) >= 0
    before = parked(warm)
    for payload in (b"first", b"second", b"third"):
        assert warm.ask(payload, sport=40_002, family=family) >= 0
    assert parked(warm) == before
    assert warm.kinds()[-6:] == ["RESUME", "CONFIRM", "PROOF", "-", "-", "-"]
    assert {tuple5[2] for tuple5 in warm.client.accepted()} >= {40_002}
    assert {tuple5[4] for tuple5 in warm.server.accepted()} >= {40_002}
    flow = (17, warm.client.address(family), 40_002, warm.server.address(family), PORT)
    assert flow in fast(warm.client).remembered(0)


def test_what_is_used_in_c_alone_lives_on_in_python(warm: Resolver) -> None:
    """A query each five seconds: Python hears of none, and its tickets would be gone after ten."""
    before = parked(warm)
    for number in range(8):
        warm.world.run(5)
        assert warm.ask(b"%d" % number, sport=41_000 + number) >= 0
    assert parked(warm) == before
    assert len(fast(warm.client)._endpoints[0].datagrams.warm) == 1
    assert len(fast(warm.server)._endpoints[0].datagrams.tickets) == 1
    warm.world.run(11)
    assert len(fast(warm.client)._endpoints[0].datagrams.warm) == 0
    assert len(fast(warm.server)._endpoints[0].datagrams.tickets) == 0
    assert warm.ask(b"cold again", sport=42_000) >= 0
    assert "HELLO" in warm.kinds()[-5:]


def test_both_count_by_the_same_counter(warm: Resolver) -> None:
    """Every second query goes to Python, because an ICMP error about its port was there first."""
    for number in range(20):
        sport = 41_000 + number
        if number % 2:
            quoted = udp((warm.client.address(), sport), (warm.server.address(), PORT))
            for pod, hook in ((warm.client, Hook.NETWORK), (warm.server, Hook.APPLICATION)):
                # Python has it in hand until it is returned.
                error = icmp(warm.server.address(), warm.client.address(), 3, 3, body=quoted)
                fast(pod).engine_endpoint(0).hand_over(hook is Hook.APPLICATION, error)
        assert warm.ask(b"%d" % number, sport=sport) >= 0
    resumes = [data for data in warm.world.captured if kind_of_datagram(data) == "RESUME"]
    counters = [read_datagram_untrusted(parse_packet_untrusted(data)).message[28:36] for data in resumes]  # type: ignore[index]
    assert counters == [number.to_bytes(8, "big") for number in range(1, 21)]
    assert parked(warm) > 40
    before = parked(warm)
    for data in resumes:
        warm.world.inject(data)
    warm.world.run(1)
    assert warm.server.drops[DropReason.REPLAYED] == 20
    assert parked(warm) < before + 20  # C knows what Python has taken


def test_a_new_policy_is_asked_about_the_next_query(warm: Resolver) -> None:
    warm.client.set_policy(only_to("shop/nobody"))
    before = len(warm.asked())
    assert warm.ask(b"refused", sport=40_002) == -1
    assert len(warm.asked()) == before
    warm.client.set_policy(only_to(SERVER))
    assert warm.ask(b"allowed", sport=40_003) >= 0


def test_a_pod_that_is_gone_answers_nobody(warm: Resolver) -> None:
    """Even if its queue is served on for a while."""
    engine = fast(warm.server).engine_endpoint(0)
    warm.client.say(warm.server, b"one more", sport=40_002)
    resume = warm.captured("RESUME")
    fast(warm.server).remove_endpoint(0)
    now = warm.world.now
    verdict, _, packet = engine.receive(now.mono_ns, now.wall_s, 0, resume, False)
    assert (verdict, packet) == (4, None)  # parked


def test_flows_that_somebody_outside_begins_are_worth_no_more_than_others(in_c: None) -> None:
    warm = Resolver("server")
    stranger = warm.mallory()
    for number in range(50):
        stranger.say(warm.server, b"x", sport=50_000 + number)
        stranger.say(warm.server, b"x", sport=50_000 + number)
    before = fast(warm.server).counters(0).parked
    warm.world.run(1)
    after = fast(warm.server).counters(0).parked
    arrived = after[2] - before[2]
    assert arrived >= 100
    assert after[1] == before[1]


def test_the_exchanges_nobody_uses_are_forgotten(warm: Resolver) -> None:
    exchanges = fast(warm.client)._exchanges
    assert len(exchanges._lent) == 1
    warm.world.run(30)
    for _ in range(4):
        warm.world.mono_ns += 100 * SECOND
        fast(warm.client).expire(warm.world.now)
    assert not exchanges._lent


def test_an_exchange_that_was_used_between_two_sweeps_is_kept_for_what_names_it(warm: Resolver) -> None:
    datapath, target = fast(warm.client), (warm.server.address(), PORT)
    exchanges, pod = datapath._exchanges, datapath._endpoints[0]
    ((number, lent),) = exchanges._lent.items()
    known = lent.value
    assert isinstance(known, Warm)
    warm.world.run(30)
    warm.world.mono_ns += 60 * SECOND
    datapath.expire(warm.world.now)
    assert lent.unused_since == warm.world.mono_ns
    warm.world.mono_ns += 59 * SECOND
    pod.datagrams.warm.put(target, known, warm.world.mono_ns)
    allowed = Decision(True, Reason.POLICY)
    datapath._shared.teach(
        Acceptance(0, Direction.EGRESS, known.local, known.peer, *target, allowed, target, Protocol.UDP)
    )
    assert lent.session.in_use()
    pod.datagrams.warm.pop(target)
    assert not lent.session.in_use()
    warm.world.mono_ns += 1 * SECOND
    datapath.expire(warm.world.now)
    assert exchanges.get(number) is known
