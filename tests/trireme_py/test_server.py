"""The server's end: what arrives, in which order, and what the pod's kernel makes of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from tests.harness.segments import ACK, FIN, RST, SYN, Segment, packed, read
from tests.harness.shop import CLIENT, Shop, alter, delay, lose
from tests.harness.standin_policy import OPEN, only_from
from trireme_py.endpoint import MAX_HELD_PACKETS
from trireme_py.model import DropReason, Verdict
from trireme_py.server import MAX_REPEATS, WINDOW


def half_open(shop: Shop) -> Segment:
    """Bring a connection to where only the proof is missing; returns an ACK of it with nothing in it."""
    connection = shop.connect(b"")
    shop.world.run(0.015)
    shop.world.on_wire = lambda data: ()
    shop.world.run(0.01)
    own, port, other, other_port = connection.key
    return Segment(own, port, other, other_port, connection.iss + 1, connection.irs + 1, ACK, b"")


# -- what the kernel does ---------------------------------------------------------------------------------------------


def test_server_first_application_behind_a_full_backlog_is_reached_in_the_end() -> None:
    """Linux ignores the ACK while the accept queue is full and repeats its SYN-ACK; the client stays silent."""
    shop = Shop()
    shop.listener.backlog_full = True
    shop.listener.on_accept = lambda connection: connection.write(b"welcome")
    connection = shop.connect(b"")
    shop.world.run(0.5)
    shop.listener.backlog_full = False
    shop.world.run(4, until=lambda: bytes(connection.received) == b"welcome")
    assert bytes(connection.received) == b"welcome"
    assert shop.world.ms < 1100


def test_syn_ack_that_belongs_to_no_syn_does_not_leave() -> None:
    shop = Shop()
    with shop.counts(server={DropReason.NO_STATE: 1}):
        shop.server.leave(Segment(shop.server.address(), 80, shop.client.address(), 7, 1, 2, SYN | ACK, b"").build())
    assert not shop.world.transcript


def test_sidecar_answers_from_its_own_port_and_is_judged_by_the_pod_s() -> None:
    shop = Shop(server_policy=replace(only_from(CLIENT), ports=frozenset({80})))
    shop.server.redirects[80] = 15_006
    shop.server.host.listeners[15_006] = shop.server.host.listeners.pop(80)
    connection = shop.assert_works()
    assert next(iter(shop.server.host.connections))[1] == 15_006
    [event] = shop.server.events
    assert event.destination_port == 80
    # What comes back to the queue after a change of policy is known from either port.
    shop.server.set_policy(replace(only_from(CLIENT), ports=frozenset({80})))
    connection.write(b", please")
    shop.world.run(0.1)
    assert bytes(connection.received) == b"next, please, please"
    shop.server.set_policy(only_from())
    next(iter(shop.server.host.connections.values())).write(b"from the proxy")
    shop.world.run(0.1)
    assert connection.outcome == "reset"
    assert not shop.server.host.connections


def test_sidecar_behind_a_closed_port_refuses_at_once() -> None:
    shop = Shop()
    shop.server.redirects[80] = 15_006
    connection = shop.connect()
    shop.world.run(0.021)
    assert connection.outcome == "refused"


# -- before the proof -------------------------------------------------------------------------------------------------


def test_data_that_overtakes_the_proof_waits_for_it_in_order() -> None:
    shop = Shop()
    delay(shop.world, "proof", 30_000_000)
    connection = shop.connect(b"")
    shop.world.run(0.02)
    for word in (b"one", b"two", b"three"):
        connection.write(word)
    shop.world.run(0.2)
    assert shop.delivered() == b"onetwothree"
    assert shop.server.verdicts[Verdict.HOLD] == 3
    assert not shop.server.drops


def test_unproven_data_asks_for_the_proof_a_few_times_and_then_no_more() -> None:
    shop = Shop()
    ack = half_open(shop)
    for step in range(30):
        shop.world.inject(replace(ack, sequence=ack.sequence + step, payload=b"x").build())
        shop.world.run(0.03)
    repeated = [line for line in shop.world.transcript if line.endswith("syn-ack token")]
    assert len(repeated) <= 1 + MAX_REPEATS
    assert shop.delivered() == b""


def test_burst_of_unproven_data_is_one_question() -> None:
    shop = Shop()
    ack = half_open(shop)
    for step in range(10):
        shop.world.inject(replace(ack, sequence=ack.sequence + step, payload=b"x").build())
    before = len([line for line in shop.world.transcript if line.endswith("syn-ack token")])
    shop.world.run(0.015)
    after = len([line for line in shop.world.transcript if line.endswith("syn-ack token")])
    assert after - before == 1


def test_queue_of_unproven_data_is_bounded_and_time_empties_it() -> None:
    shop = Shop()
    ack = half_open(shop)
    with shop.counts(server={DropReason.HOLD_LIMIT: 10, DropReason.HOLD_TIMEOUT: MAX_HELD_PACKETS}):
        for step in range(MAX_HELD_PACKETS + 10):
            shop.world.inject(replace(ack, sequence=ack.sequence + step, payload=b"x").build())
        shop.world.run(0.015)
        assert len(shop.server.held) == MAX_HELD_PACKETS
        shop.world.run(1.1)
    assert not shop.server.held
    assert shop.delivered() == b""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"acknowledgement": 1}, DropReason.UNEXPECTED),
        ({"sequence": -1, "payload": b"x"}, DropReason.UNEXPECTED),
        ({"sequence": WINDOW + 1, "payload": b"x"}, DropReason.UNEXPECTED),
        ({}, DropReason.UNPROVEN),
    ],
)
def test_segment_that_cannot_be_of_this_connection_is_dropped(change: dict[str, object], reason: DropReason) -> None:
    shop = Shop()
    ack = half_open(shop)
    sequence = ack.sequence + int(change.get("sequence", 0))  # type: ignore[call-overload]
    with shop.counts(server={reason: 1}):
        shop.world.inject(replace(ack, **{**change, "sequence": sequence}).build())
        shop.world.run(0.015)
    assert shop.delivered() == b""


def test_proof_that_acknowledges_something_else_is_not_taken() -> None:
    shop = Shop()
    alter(shop.world, "proof", lambda segment: replace(segment, acknowledgement=segment.acknowledgement + 1))
    shop.connect()
    shop.world.run(0.025)
    with shop.counts(server={DropReason.UNEXPECTED: 1}):
        shop.world.run(0.01)
    assert not shop.server.accepted()
    assert shop.delivered() == b""
    shop.world.run(1.1)
    assert shop.delivered() == b"one beer"


def test_fin_before_the_proof_waits_as_well() -> None:
    shop = Shop()
    ack = half_open(shop)
    with shop.counts(server={DropReason.HOLD_TIMEOUT: 1}):
        shop.world.inject(replace(ack, flags=ACK | FIN).build())
        shop.world.run(1.2)


def test_policy_that_changes_before_the_proof_is_obeyed() -> None:
    shop = Shop()
    delay(shop.world, "proof", 20_000_000)
    shop.connect()
    shop.world.run(0.025)
    shop.server.set_policy(only_from("shop/other"))
    with shop.counts(server={DropReason.POLICY: 1}):
        shop.world.run(0.03)
    assert not shop.accepted()
    assert shop.delivered() == b""


# -- resets -----------------------------------------------------------------------------------------------------------


def test_honest_reset_ends_a_half_open_connection() -> None:
    shop = Shop()
    ack = half_open(shop)
    shop.world.inject(replace(ack, flags=RST).build())
    shop.world.run(0.015)
    assert not shop.server.endpoint.servers
    assert not shop.server.endpoint.answered
    assert [one.outcome for one in shop.server.host.over] == ["reset"]


@pytest.mark.parametrize(
    "change", [{"sequence": 5}, {"flags": RST | ACK, "acknowledgement": 5}], ids=["sequence", "acknowledgement"]
)
def test_forged_reset_does_not_make_us_forget_what_the_kernel_keeps(change: dict[str, int]) -> None:
    shop = Shop()
    delay(shop.world, "proof", 30_000_000)
    connection = shop.connect(b"one beer")
    shop.world.run(0.025)
    own, port, other, other_port = connection.key
    reset = Segment(own, port, other, other_port, connection.iss + 1, 0, RST, b"")
    shop.world.inject(replace(reset, **change).build())  # type: ignore[arg-type]
    shop.world.run(0.1)
    assert bytes(connection.received) == b"one beer"


def test_reset_damaged_on_the_way_does_not_make_us_forget_what_the_kernel_keeps() -> None:
    shop = Shop()
    delay(shop.world, "proof", 30_000_000)
    connection = shop.connect(b"one beer")
    shop.world.run(0.025)
    own, port, other, other_port = connection.key
    reset = Segment(own, port, other, other_port, connection.iss + 1, 0, RST, b"").build()
    shop.world.inject(reset[:-1] + b"!")
    shop.world.run(0.1)
    assert bytes(connection.received) == b"one beer"


# -- several SYNs -----------------------------------------------------------------------------------------------------


def test_same_source_and_number_to_another_port_does_not_disturb() -> None:
    shop = Shop()
    shop.server.listen(22)
    delay(shop.world, "proof", 50_000_000)
    connection = shop.connect()
    shop.world.run(0.025)
    syn = shop.world.last("syn")
    shop.world.inject(replace(syn, dport=22).build())
    shop.world.run(5, until=lambda: bool(connection.received))
    assert bytes(connection.received) == b"one beer"
    assert shop.server.drops == {DropReason.UNEXPECTED: 1}
    assert not shop.server.endpoint.answered


def test_late_syn_with_a_token_does_not_undo_a_bare_answer() -> None:
    """Two SYNs are lost or late, the third is bare and answered so; then the first arrives after all."""
    shop = Shop(client_policy=OPEN, server_policy=OPEN)
    delay(shop.world, "syn", 3_005_000_000)  # between the bare SYN and its ACK
    lose_second_token(shop)
    connection = shop.connect()
    shop.world.run(10)
    assert bytes(connection.received) == b"one beer"


def lose_second_token(shop: Shop) -> None:
    delayed, seen = shop.world.on_wire, 0

    def on_wire(data: bytes) -> Iterable[bytes]:
        nonlocal seen
        segment = read(data)
        assert segment is not None
        if segment.flags == SYN and segment.payload:
            seen += 1
            if seen == 2:
                return ()
        return delayed(data)

    shop.world.on_wire = on_wire


def test_client_s_agent_that_begins_anew_is_believed_anew() -> None:
    """It died between two SYNs: the kernel's second one has the same number, and another nonce."""
    shop = Shop()
    lose(shop.world, "syn-ack")
    shop.connect()
    shop.world.run(0.5)
    shop.client.endpoint.clients.clear()
    shop.world.run(1)
    assert shop.delivered() == b"one beer"


def test_syn_damaged_on_the_way_is_not_blessed_with_a_new_checksum() -> None:
    shop = Shop()
    shop.connect()
    shop.world.on_wire = lambda data: ()
    damaged = shop.world.captured[0][:-1] + b"!"
    with shop.counts(server={DropReason.BAD_CHECKSUM: 1}):
        shop.world.inject(damaged)
        shop.world.run(0.015)


def test_syn_of_somebody_outside_the_scope_is_unidentified() -> None:
    """He would be answered with our pod's own token, and that stays inside."""
    shop = Shop(server_policy=OPEN)
    shop.connect()
    syn = read(shop.world.captured[0])
    assert syn is not None
    shop.world.on_wire = lambda data: ()
    shop.world.inject(replace(syn, source=packed("203.0.113.9")).build())
    shop.world.run(0.015)
    assert shop.world.transcript[-1].endswith("server: SYN|ACK")


def test_data_of_a_syn_is_never_delivered() -> None:
    """Not even to a Fast Open server, and not even where everybody may connect: it would have proved nothing."""
    shop = Shop(client_agent=False, server_policy=OPEN)
    shop.listener.takes_syn_data = True
    cookie = b"\x22\x0a12345678\x01\x01"
    syn = Segment(shop.client.address(), 7, shop.server.address(), 80, 1, 0, SYN, b"early", cookie)
    shop.world.inject(syn.build())
    shop.world.run(0.015)
    arrived = shop.server.segments[-1]
    assert (arrived.payload, arrived.options) == (b"", b"\x01" * 12)
    assert shop.delivered() == b""


def test_mark_comes_only_with_the_proof_and_goes_with_the_next_syn() -> None:
    shop = Shop()
    ack = half_open(shop)
    assert not shop.server.accepted()
    shop.world.on_wire = lambda data: (data,)
    shop.world.run(2)
    assert len(shop.server.accepted()) == 1
    # The tuple again, from somebody who proves nothing: his SYN alone changes nothing, our answer to it does.
    shop.client.host.connections.clear()
    shop.server.host.connections.clear()
    syn = shop.world.last("syn")
    shop.world.inject(replace(syn, sequence=syn.sequence + 12_345).build())
    shop.world.run(0.015)
    assert not shop.server.accepted()
    assert ack
