"""The fast path in front of the Python data path: what stays in C, what goes to Python, and who owns what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.harness import world
from tests.harness.fastpath import counters, fast
from tests.harness.segments import ACK, RST, SYN, packed, read, tcp
from tests.harness.shop import CLIENT, SERVER, Shop, lose
from tests.harness.standin_policy import only_from, only_to
from tests.harness.tcp import SECOND
from tests.harness.world import Pod
from trireme_py.datapath import Caught
from trireme_py.endpoint import Endpoint
from trireme_py.fast import Parked
from trireme_py.handshake import State
from trireme_py.messages import encode_syn
from trireme_py.model import Direction, DropReason, Hook, Reason, Verdict

OWNED, KNOWN, PLAIN, STRANGER = range(4)
PARK = 4
SHARE = 1024
"""SYNs of one identity that Python gets at once (TR_SHARE)."""


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A warm client and a warm server."""
    monkeypatch.setattr(world, "IMPLEMENTATION", "c")
    return Shop()


def offer(pod: Pod, hook: Hook, data: bytes) -> tuple[int, int, bytes | None]:
    """Show the engine a packet; whatever it parks goes nowhere."""
    now = pod.world.now
    return fast(pod).engine_endpoint(0).receive(now.mono_ns, now.wall_s, int(hook is Hook.APPLICATION), data, False)


def known_syn(shop: Shop, sport: int, isn: int = 7, port: int = 80) -> bytes:
    identity = shop.client.identity
    assert identity is not None
    message = encode_syn(identity.id, isn.to_bytes(16, "big"), identity.assertion)
    return tcp((shop.client.address(), sport), (shop.server.address(), port), isn, 0, SYN, message)


# -- what stays in C --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_a_warm_connection_never_reaches_python(shop: Shop, family: int) -> None:
    for _ in range(3):
        shop.assert_works(family=family)
    for pod, direction in ((shop.client, 1), (shop.server, 0)):
        seen = counters(pod)
        assert not sum(seen.parked)
        assert not pod.drops
        accepted = (seen.ingress, seen.egress)
        assert accepted[direction][list(Reason).index(Reason.POLICY)] == 3
        assert not sum(accepted[1 - direction])
        assert fast(pod).gauges().live == 3
        assert len(fast(pod).remembered(0)) == 3


def test_a_connection_through_a_service_asks_conntrack_and_stays_in_c(shop: Shop) -> None:
    service = packed("10.96.0.10")
    shop.world.router.services[service, 80] = [(shop.server.address(), 80)]

    def call() -> None:
        connection = shop.client.connect(service, data=b"one beer")
        shop.world.run(0.2)
        assert bytes(connection.received) == b"one beer"

    call()  # Python's, which learns that the Service takes tokens
    parked = sum(counters(shop.client).parked)
    call()
    assert sum(counters(shop.client).parked) == parked
    event = shop.client.events[-1]
    assert (event.destination, event.destination_actual) == (service, (shop.server.address(), 80))


def test_a_translation_that_conntrack_does_not_show_is_parked(shop: Shop) -> None:
    service = packed("10.96.0.10")
    shop.world.router.services[service, 80] = [(shop.server.address(), 80)]
    shop.client.connect(service, data=b"one beer")
    shop.world.run(0.2)
    shop.world.router.evident = False
    shop.client.connect(service, data=b"another")
    shop.world.run(0.2)
    assert shop.client.drops == {DropReason.UNEXPLAINED_TRANSLATION: 1}


def test_a_refused_connection_is_refused_at_once(shop: Shop) -> None:
    shop.assert_works()
    shop.world.acquaint(shop.client, shop.server, 81, 4)
    connection = shop.client.connect(shop.server, 81)
    shop.world.run(0.1)
    assert connection.outcome == "refused"


# -- what is parked, and in which class -------------------------------------------------------------------------------


def test_classes_of_parked_packets(shop: Shop) -> None:
    shop.assert_works()
    client, server = shop.client.address(), shop.server.address()
    stranger = shop.world.local_identity("shop/stranger", shop.world.authenticator("elsewhere"))
    unknown = encode_syn(stranger.id, bytes(16), stranger.assertion)
    cases = (
        (OWNED, Hook.APPLICATION, tcp((server, 1), (client, 2), 3, 0, SYN)),
        (KNOWN, Hook.NETWORK, known_syn(shop, 2, port=81)),
        (PLAIN, Hook.NETWORK, tcp((client, 1), (server, 80), 3, 0, SYN)),
        (PLAIN, Hook.NETWORK, tcp((client, 1), (server, 80), 3, 4, ACK)),
        (PLAIN, Hook.NETWORK, tcp((client, 1), (server, 80), 3, 4, SYN | ACK)),
        (STRANGER, Hook.NETWORK, tcp((client, 1), (server, 80), 3, 0, SYN, unknown)),
        (STRANGER, Hook.NETWORK, tcp((client, 1), (server, 80), 3, 0, SYN, b"\xf7TRM and nonsense")),
    )
    for park, hook, data in cases:
        assert offer(shop.server, hook, data) == (PARK, park, None)
    before = counters(shop.server).parked
    shop.server.arrive(known_syn(shop, 40_000))  # its ports are those of a connection that is known
    assert [after - then for after, then in zip(counters(shop.server).parked, before, strict=True)] == [0, 0, 0, 0, 0]


def test_copied_syns_of_one_identity_get_its_share_and_no_more(shop: Shop) -> None:
    """What exceeds it waits among the strangers', so nobody else does for it. The share comes back with time."""
    shop.assert_works()
    other = shop.world.pod("shop/other", "10.1.0.8", "fd00:1::8")
    shop.server.set_policy(only_from(CLIENT, "shop/other"))
    for pod in (shop.client, other):
        shop.world.acquaint(pod, shop.server, 80, 4)
    shop.server.set_policy(only_from("nobody"))
    for number in range(SHARE):
        assert offer(shop.server, Hook.NETWORK, known_syn(shop, 1024 + number))[:2] == (PARK, KNOWN)
    assert offer(shop.server, Hook.NETWORK, known_syn(shop, 1))[:2] == (PARK, STRANGER)
    assert other.identity is not None
    message = encode_syn(other.identity.id, bytes(16), other.identity.assertion)
    syn = tcp((other.address(), 1), (shop.server.address(), 80), 7, 0, SYN, message)
    assert offer(shop.server, Hook.NETWORK, syn)[:2] == (PARK, KNOWN)
    shop.world.run(1)
    found = [offer(shop.server, Hook.NETWORK, known_syn(shop, 1024 + number))[1] for number in range(SHARE)]
    assert found == sorted(found)
    assert 200 <= found.count(KNOWN) <= 210, "those of the second that passed"


def test_an_assertion_in_somebody_else_s_name_is_a_stranger_s(shop: Shop) -> None:
    shop.assert_works()
    syn = read(known_syn(shop, 1))
    assert syn is not None
    forged = replace(syn, payload=syn.payload[:-1] + bytes([syn.payload[-1] ^ 1])).build()
    assert offer(shop.server, Hook.NETWORK, forged) == (PARK, STRANGER, None)


def test_an_expired_assertion_is_not_known_any_more(shop: Shop) -> None:
    shop.assert_works()
    assert offer(shop.server, Hook.NETWORK, known_syn(shop, 1))[0] != PARK
    shop.world.mono_ns += 5_000 * SECOND
    assert offer(shop.server, Hook.NETWORK, known_syn(shop, 2)) == (PARK, STRANGER, None)


def test_parking_changes_nothing(shop: Shop) -> None:
    shop.connect()
    shop.world.run(0.015)  # the SYN has arrived, the SYN-ACK is on its way
    engine = fast(shop.client).engine_endpoint(0)
    before = engine.export(False)
    assert before
    late = tcp((shop.server.address(), 80), (shop.client.address(), 40_000), 5, 4, SYN | ACK)
    assert offer(shop.client, Hook.NETWORK, late) == (PARK, OWNED, None)
    assert engine.export(False) == before
    assert counters(shop.client).owned == 0


def test_packets_that_cannot_be_packets_never_reach_python(shop: Shop) -> None:
    for pod in (shop.client, shop.server):
        for data in (b"", b"\x45", bytes(40), tcp((bytes(4), 1), (bytes(4), 2), 3, 0, SYN | RST)):
            assert offer(pod, Hook.NETWORK, data)[0] == list(Verdict).index(Verdict.DROP)
        assert pod.drops == {DropReason.MALFORMED_PACKET: 4}
        assert not sum(counters(pod).parked)


# -- handing over -----------------------------------------------------------------------------------------------------


def test_a_lost_proof_is_python_s_to_recover(shop: Shop) -> None:
    lose(shop.world, "proof")
    shop.connect()
    shop.world.run(1)
    assert shop.delivered() == b"one beer"
    assert counters(shop.server).servers == 0


@pytest.mark.parametrize(
    ("seconds", "client_state"),
    [(0.005, State.SYN_CREATED), (0.015, State.SYN_CREATED), (0.025, State.ACK_CREATED), (0.045, State.ACK_CREATED)],
)
def test_adopted_flows_equal_python_s_own(seconds: float, client_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = []
    for implementation in ("python", "c"):
        monkeypatch.setattr(world, "IMPLEMENTATION", implementation)
        scene = Shop()
        scene.connect()
        scene.world.run(seconds)
        both = scene.client.endpoint, scene.server.endpoint
        tables.append([comparable(one) for one in both])
        assert [flow.state for _, flow in both[0].clients._entries.values()] == [client_state]
    assert tables[0] == tables[1]


def comparable(endpoint: Endpoint) -> dict[str, object]:
    """What two worlds of one seed have in common: everything but the objects behind policies, and a packet's data."""
    found: dict[str, object] = {}
    for name in ("clients", "servers", "live"):
        for key, (_, flow) in getattr(endpoint, name)._entries.items():
            fields = {field: getattr(flow, field) for field in type(flow).__slots__ if field not in ("policy", "held")}
            for packet in ("syn", "ack", "syn_ack"):
                if (one := fields.get(packet)) is not None:
                    fields[packet] = one.data[one.transport : one.transport + 16]
            for who in ("peer", "local"):
                if (one := fields.get(who)) is not None:
                    fields[who] = one.assertion
            fields["policy"] = getattr(flow, "policy", None) is endpoint.policy
            found[f"{name} {key}"] = fields
    return found


def test_what_python_has_in_hand_is_parked_until_it_is_done(shop: Shop) -> None:
    """Packets of one connection reach Python in their order, however long that takes."""
    shop.assert_works()
    engine = fast(shop.server).engine_endpoint(0)
    unknown_port, known = known_syn(shop, 1, port=81), known_syn(shop, 1)
    assert engine.hand_over(0, unknown_port) == b""
    assert offer(shop.server, Hook.NETWORK, known) == (PARK, KNOWN, None)  # the same SYN, to another port
    engine.returned(0, unknown_port)
    assert counters(shop.server).owned == 0
    assert offer(shop.server, Hook.NETWORK, known)[0] != PARK


def test_a_packet_is_worth_no_more_for_following_another(shop: Shop) -> None:
    """Whoever may send what he likes must not get into a better class by sending it twice."""
    shop.assert_works()
    engine = fast(shop.server).engine_endpoint(0)
    client, server = (shop.client.address(), 1), (shop.server.address(), 80)
    stranger = shop.world.local_identity("shop/stranger", shop.world.authenticator("elsewhere"))
    syn = tcp(client, server, 3, 0, SYN, encode_syn(stranger.id, bytes(16), stranger.assertion))
    for data, park in (
        (syn, STRANGER),
        (tcp(client, server, 3, 4, ACK), PLAIN),
        (tcp(client, server, 3, 0, SYN), PLAIN),
    ):
        assert offer(shop.server, Hook.NETWORK, data) == (PARK, park, None)
        engine.hand_over(0, data)
        assert offer(shop.server, Hook.NETWORK, data) == (PARK, park, None)
    half_open = known_syn(shop, 2)
    assert offer(shop.server, Hook.NETWORK, half_open)[0] != PARK
    late = tcp((client[0], 2), server, 8, 9, ACK, b"data")
    assert offer(shop.server, Hook.NETWORK, late) == (PARK, PLAIN, None)


def test_connections_that_python_remembers_are_python_s(shop: Shop) -> None:
    cold = shop.client.connect(shop.server.address(), 80, b"one beer")
    shop.world.run(1)
    assert bytes(cold.received) == b"one beer"
    for pod in (shop.client, shop.server):
        assert counters(pod).owned >= 1
        assert counters(pod).live == 0
    shop.world.run(200)
    cold.end("over")
    for one in list(shop.server.host.connections.values()):
        one.end("over")
    for pod in (shop.client, shop.server):
        assert pod.sweep() == 1
        assert counters(pod).owned == 0


def test_batches_of_parked_packets_are_marked_on_the_last(shop: Shop) -> None:
    shop.assert_works()
    shop.server.set_policy(only_from(CLIENT))
    datapath = fast(shop.server)
    (live,) = datapath.remembered(0)
    _, own, own_port, other, other_port = live
    ends = (own, own_port or 0), (other, other_port or 0)
    segments = [tcp(*ends, 50 + index, 9, ACK, b"data") for index in range(3)]
    engine = datapath.engine_endpoint(0)
    parked = []
    for ticket, data in enumerate(segments):
        assert offer(shop.server, Hook.APPLICATION, data)[:2] == (PARK, OWNED)
        parked.append(Parked(ticket, data, engine.hand_over(1, data)))
    assert [bool(one.handover) for one in parked] == [True, False, False]
    results = datapath.receive_parked(shop.world.now, 0, Hook.APPLICATION, parked)
    assert [result.verdict for result in results] == [Verdict.PASS, Verdict.PASS, Verdict.ACCEPT]


# -- changes ----------------------------------------------------------------------------------------------------------


def test_a_replaced_policy_judges_what_c_has_accepted(shop: Shop) -> None:
    connection = shop.assert_works()
    shop.server.set_policy(only_from("shop/another"))
    connection.write(b"still there?")
    shop.world.run(0.1)
    assert connection.outcome == "reset"
    assert shop.server.drops[DropReason.CUT]
    shop.server.set_policy(only_from(CLIENT))
    shop.assert_works()


def test_a_policy_replaced_during_the_handshake_is_the_one_that_counts(shop: Shop) -> None:
    shop.connect()
    shop.world.run(0.025)  # the SYN-ACK has been admitted, the proof is on its way
    shop.server.set_policy(only_from("shop/another"))
    shop.world.run(0.5)
    assert shop.delivered() == b""
    assert shop.server.drops[DropReason.POLICY]


def test_a_new_identity_is_shown_and_the_old_one_s_keys_are_forgotten(shop: Shop) -> None:
    shop.assert_works()
    assert shop.client.authenticator is not None
    renewed = shop.world.local_identity(CLIENT, shop.client.authenticator)
    shop.client.identity = renewed
    fast(shop.client).set_identity(0, renewed)
    assert counters(shop.client).peers == 0
    shop.world.captured.clear()
    shop.assert_works()
    syn = shop.world.last("syn")
    assert syn.payload.endswith(renewed.assertion)


def test_other_keys_make_everybody_a_stranger(shop: Shop) -> None:
    """An accepted connection stays; who was believed before need not be now."""
    shop.assert_works()
    fast(shop.server).forget_peers()
    assert counters(shop.server).peers == 0
    assert offer(shop.server, Hook.NETWORK, known_syn(shop, 1)) == (PARK, STRANGER, None)
    shop.assert_works()


def test_while_agents_are_being_installed_python_sees_everything(shop: Shop) -> None:
    shop.server.set_policy(replace(only_from(CLIENT), installing=True))
    shop.client.connect(shop.server, data=b"one beer")
    shop.world.run(0.5)
    assert shop.delivered() == b"one beer"
    assert counters(shop.server).peers == 0


def test_a_flow_begun_under_the_old_identity_ends_under_it(shop: Shop) -> None:
    shop.connect()
    shop.world.run(0.005)
    assert shop.client.authenticator is not None
    fast(shop.client).set_identity(0, shop.world.local_identity(CLIENT, shop.client.authenticator))
    shop.world.run(0.5)
    assert shop.delivered() == b"one beer"


def test_a_destination_that_minds_tokens_gets_none(shop: Shop) -> None:
    shop.assert_works()
    target = shop.server.address(), 80
    shop.client.endpoint.unanswered.put(target, True, shop.world.mono_ns)
    shop.world.captured.clear()
    shop.connect()
    shop.world.run(0.5)
    assert not read(shop.world.captured[0]).payload  # type: ignore[union-attr]


def test_tokens_nobody_uses_are_forgotten_after_a_while(shop: Shop) -> None:
    shop.assert_works()
    datapath = fast(shop.server)
    assert len(datapath._known) == 2
    assert shop.server.authenticator is not None
    shop.server.sweep()
    for tuple5 in datapath.remembered(0):
        datapath.engine_endpoint(0).forget(*tuple5)  # type: ignore[arg-type]
    datapath.set_identity(0, None)
    shop.world.run(100)
    for _ in range(4):
        shop.world.mono_ns += 100 * SECOND
        datapath.expire(shop.world.now)
    assert not datapath._known
    assert not datapath._numbers


def test_a_token_that_was_used_between_two_sweeps_is_kept_for_what_names_it(shop: Shop) -> None:
    """Each sweep finds it unused. But a packet that was parked in between, and not judged yet, names it."""
    shop.assert_works()
    datapath, engine = fast(shop.server), fast(shop.server).engine_endpoint(0)
    shop.server.forget_accepted()
    datapath.forget_peers()
    shop.world.mono_ns += 60 * SECOND
    datapath.expire(shop.world.now)
    shop.world.mono_ns += 59 * SECOND
    shop.world.acquaint(shop.client, shop.server, 80, 4)
    shop.server.arrive(known_syn(shop, 50_000))
    syn_ack = shop.world.last("syn-ack")
    data = tcp((shop.client.address(), 50_000), (shop.server.address(), 80), 8, syn_ack.sequence + 1, ACK, b"data")
    assert offer(shop.server, Hook.NETWORK, data)[0] == PARK
    parked = Parked(1, data, engine.hand_over(0, data))
    datapath.forget_peers()
    shop.world.mono_ns += 1 * SECOND
    datapath.expire(shop.world.now)
    (result,) = datapath.receive_parked(shop.world.now, 0, Hook.NETWORK, [parked])
    assert result.verdict is Verdict.HOLD, "it waits for the proof"


# -- reports ----------------------------------------------------------------------------------------------------------


def test_events_keep_their_order_and_their_decision(shop: Shop) -> None:
    for _ in range(3):
        shop.connect()
        shop.world.run(0.5)
    shop.client.connect(shop.server, 81)  # nobody listens there; policy does not mind
    shop.world.run(0.5)
    for pod, peer, direction in ((shop.client, SERVER, Direction.EGRESS), (shop.server, CLIENT, Direction.INGRESS)):
        assert [event.peer.name for event in pod.events if event.peer] == [peer] * len(pod.events)
        assert {event.direction for event in pod.events} == {direction}
        assert {event.decision.policy for event in pod.events} == {"StandIn"}
        assert [event.wall_s for event in pod.events] == sorted(event.wall_s for event in pod.events)


def test_events_that_nobody_takes_are_counted(shop: Shop) -> None:
    datapath = fast(shop.client)
    datapath.listen(False)
    before = datapath.unrecorded()
    shop.assert_works()
    assert datapath.unrecorded() - before == {(Direction.EGRESS, Reason.POLICY): 1}
    datapath.listen(True)
    shop.assert_works()
    assert datapath.unrecorded() - before == {(Direction.EGRESS, Reason.POLICY): 1}
    datapath.remove_endpoint(0)
    assert datapath.unrecorded() - before == {(Direction.EGRESS, Reason.POLICY): 1}


def test_a_flood_of_strangers_leaves_warm_peers_alone(shop: Shop) -> None:
    """Unknown identities fill no table of the engine, and turn nobody out of one."""
    shop.assert_works()
    stranger = shop.world.local_identity("shop/stranger", shop.world.authenticator("elsewhere"))
    before = counters(shop.server)
    datapath = fast(shop.server)
    for number in range(2_000):
        message = encode_syn(stranger.id, number.to_bytes(16, "big"), stranger.assertion[:-1] + bytes([number % 256]))
        syn = tcp((packed("10.1.0.9"), 1024 + number), (shop.server.address(), 80), number, 0, SYN, message)
        datapath.receive(shop.world.now, 0, Hook.NETWORK, [Caught(10_000 + number, syn)])
    after = counters(shop.server)
    assert after.parked[STRANGER] - before.parked[STRANGER] == 2_000
    assert (after.servers, after.live, after.peers, after.verdicts) == (
        before.servers, before.live, before.peers, before.verdicts
    )  # fmt: skip
    parked = sum(after.parked)
    shop.assert_works()
    assert sum(counters(shop.server).parked) == parked


def test_policies_that_are_long_gone_are_judged_again(shop: Shop) -> None:
    connection = shop.assert_works()
    for _ in range(100):
        shop.server.set_policy(only_from(CLIENT))
        shop.client.set_policy(only_to(SERVER))
    connection.write(b"still there?")
    shop.world.run(0.1)
    assert bytes(connection.received).endswith(b"still there?")
