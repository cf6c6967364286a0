"""The client's end: what it sends, what it believes, and what it makes of the path."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from tests.harness.segments import ACK, RST, SYN, Segment, packed, read
from tests.harness.shop import CLIENT, SERVER, Shop, alter, lose, repeat
from tests.harness.standin_policy import OPEN, only_from, only_to
from tests.harness.tcp import Stage
from tests.harness.world import kind_of
from trireme_py import wire
from trireme_py.model import DropReason, Verdict

VIP = packed("10.96.0.1")
ROUTER = packed("192.0.2.1")
FAST_OPEN_COOKIE = b"\x22\x0a12345678\x01\x01"


def test_refused_egress_leaves_nothing_half_open_at_the_server() -> None:
    shop = Shop(client_policy=only_to("shop/other"))
    shop.connect()
    shop.world.run(0.1)
    assert shop.client.drops == {DropReason.POLICY: 1}
    assert not shop.server.host.connections
    assert shop.server.host.over[0].outcome == "reset"


def test_a_server_that_was_refused_is_never_asked_without_an_identity() -> None:
    """It would tell its operator of somebody unidentified, who is not."""
    shop = Shop(client_policy=only_to("shop/other"))
    shop.connect()
    shop.world.run(20)
    leaving = [kind_of(segment) for segment in map(read, shop.world.captured) if segment is not None]
    assert leaving.count("syn") >= 4
    assert "bare syn" not in leaving
    assert shop.client.drops == {DropReason.POLICY: leaving.count("syn")}


def test_policy_that_changes_between_syn_ack_and_ack_is_obeyed() -> None:
    shop = Shop()
    deliver = shop.client.deliver

    def meanwhile(data: bytes) -> None:
        shop.client.set_policy(only_to("shop/other"))
        shop.client.deliver = deliver  # type: ignore[method-assign]
        deliver(data)

    shop.client.deliver = meanwhile  # type: ignore[method-assign]
    shop.connect()
    shop.world.run(0.5)
    assert not shop.client.accepted()
    assert shop.delivered() == b""
    assert shop.client.drops == {DropReason.CUT: 1}
    assert [one.outcome for one in shop.client.host.over] == ["reset"]
    assert [one.outcome for one in shop.server.host.over] == ["reset"]


def test_forgotten_connection_is_not_accepted_under_a_new_policy() -> None:
    shop = Shop()
    connection = shop.connect()
    shop.world.run(0.1)
    assert bytes(connection.received) == b"one beer"
    shop.client.set_policy(only_to("shop/other"))
    shop.client.forget_accepted()
    connection.write(b"more")
    shop.world.run(0.05)
    assert not shop.client.accepted()
    assert shop.delivered() == b"one beer"


def test_destination_outside_the_identity_scope_is_told_nothing() -> None:
    """Labels are nobody's business out there."""
    shop = Shop(client_policy=OPEN)
    outside = shop.world.pod("out/there", "203.0.113.7", agent=False)
    outside.listen(80)
    connection = shop.client.connect(outside)
    shop.world.run(0.1)
    assert connection.outcome == "connected"
    assert "token" not in "".join(shop.world.transcript)
    shop.client.set_policy(only_to(SERVER))
    with shop.counts(client={DropReason.POLICY: 1}):
        shop.client.connect(outside)
        shop.world.run(0.5)


def test_pod_that_may_open_nothing_sends_no_syn() -> None:
    shop = Shop(client_policy=only_to())
    with shop.counts(client={DropReason.POLICY: 1}):
        shop.connect()
        shop.world.run(0.5)
    assert not shop.world.transcript
    assert not shop.client.endpoint.clients


# -- paths and servers that mind a token ------------------------------------------------------------------------------


def test_server_that_takes_data_in_any_syn_ends_in_a_bare_connection() -> None:
    shop = Shop(server_agent=False, client_policy=OPEN)
    shop.listener.takes_syn_data = True
    connection = shop.connect()
    shop.world.run(0.1)
    shop.world.assert_transcript("""
         0 ms  client: SYN + syn token
        10 ms  server: SYN|ACK
        20 ms  client: RST|ACK
        20 ms  client: SYN
        30 ms  server: SYN|ACK
        40 ms  client: ACK + 8 octets
        50 ms  server: ACK
        50 ms  server: ACK + 8 octets
        60 ms  client: ACK
    """)
    assert shop.client.drops == {DropReason.PAYLOAD_ACKNOWLEDGED: 1}
    assert bytes(connection.received) == b"one beer"
    shop.world.transcript.clear()
    shop.assert_works()
    assert "token" not in "".join(shop.world.transcript)


def test_server_that_takes_data_in_any_syn_is_told_again_when_the_reset_was_lost() -> None:
    shop = Shop(server_agent=False, client_policy=OPEN)
    shop.listener.takes_syn_data = True
    lose(shop.world, "reset")
    connection = shop.connect()
    shop.world.run(4)
    assert bytes(connection.received) == b"one beer"


def test_middlebox_that_drops_syns_with_data_is_passed_by_the_third() -> None:
    shop = Shop(server_agent=False, client_policy=OPEN)
    drop_syn_data(shop)
    connection = shop.connect()
    shop.world.run(3.1)
    assert [line.split(": ")[1] for line in shop.world.transcript[:3]] == ["SYN + syn token", "SYN + syn token", "SYN"]
    assert bytes(connection.received) == b"one beer"
    shop.assert_works()  # at once: remembered
    shop.world.run(200)
    shop.world.on_wire = lambda data: (data,)
    shop.world.transcript.clear()
    shop.assert_works()  # but not for ever
    assert "token" in shop.world.transcript[0]


def drop_syn_data(shop: Shop) -> None:
    def on_wire(data: bytes) -> Iterable[bytes]:
        segment = read(data)
        assert segment is not None
        return () if segment.flags & SYN and segment.payload else (data,)

    shop.world.on_wire = on_wire


def test_repeated_syn_keeps_its_nonce() -> None:
    shop = Shop()
    lose(shop.world, "syn", count=2)
    lose(shop.world, "bare syn")
    shop.connect()
    shop.world.run(8)
    syns = [segment.payload for data in shop.world.captured if (segment := read(data)) and segment.flags == SYN]
    assert [bool(payload) for payload in syns] == [True, True, False, True]
    assert len(set(syns)) == 2
    assert shop.delivered() == b"one beer"


@pytest.mark.parametrize("server_agent", [True, False])
def test_syn_repeated_while_its_answer_was_judged_goes_no_further(server_agent: bool) -> None:
    shop = Shop(client_policy=OPEN, server_agent=server_agent)
    receive = shop.client.host.receive

    def meanwhile(segment: Segment) -> None:
        shop.client.host.receive = receive  # type: ignore[method-assign]
        connection.syn_timer()
        receive(segment)

    shop.client.host.receive = meanwhile  # type: ignore[method-assign]
    connection = shop.connect()
    shop.world.run(0.5)
    assert shop.client.drops == {DropReason.REPEATED: 1}
    assert bytes(connection.received) == b"one beer"
    assert sum(segment.flags == SYN for data in shop.world.captured if (segment := read(data))) == 1


def test_syn_of_fast_open_goes_without_data_and_without_the_option() -> None:
    """The pod's kernel falls back, as with any server that does not speak it."""
    shop = Shop()
    connection = shop.connect()
    shop.client.host.connections.clear()
    connection.timer += 1
    shop.world.transcript.clear()
    syn = Segment(
        shop.client.address(), 7, shop.server.address(), 80, 100, 0, SYN, b"early", options=FAST_OPEN_COOKIE
    )  # fmt: skip
    shop.client.leave(syn.build())
    sent = read(shop.world.captured[-1])
    assert sent is not None
    assert sent.options == b"\x01" * 12
    assert sent.payload.startswith(wire.MAGIC)
    assert b"early" not in sent.payload
    shop.client.leave(syn.build())
    shop.client.leave(syn.build())
    bare = read(shop.world.captured[-1])
    assert bare is not None
    assert (bare.options, bare.payload) == (b"\x01" * 12, b"")


def test_syn_without_room_for_the_token_goes_bare() -> None:
    """Unidentified beats fragmented: here extension headers have taken the room."""
    shop = Shop(client_policy=OPEN)
    segment = Segment(shop.client.address(6), 7, shop.server.address(6), 80, 100, 0, SYN, b"").build()
    options = bytes([6, 127]) + bytes(1022)
    stuffed = segment[:4] + (1024 + 20).to_bytes(2, "big") + b"\0" + segment[7:40] + options + segment[40:]
    shop.client.leave(stuffed)
    assert len(shop.world.captured[-1]) == len(stuffed)


@pytest.mark.parametrize("family", [4, 6])
def test_full_option_area_leaves_room_for_the_token(family: int) -> None:
    shop = Shop()
    options = b"\x02\x04\x05\xb4" + b"\x01" * 36
    syn = Segment(
        shop.client.address(family), 7, shop.server.address(family), 80, 100, 0, SYN, b"", options=options
    )  # fmt: skip
    shop.client.leave(syn.build())
    sent = read(shop.world.captured[-1])
    assert sent is not None
    assert sent.options == options
    assert sent.payload.startswith(wire.MAGIC)
    shop.world.run(0.05)
    assert "syn-ack token" in shop.world.transcript[1]


# -- answers ----------------------------------------------------------------------------------------------------------


def test_repeated_syn_ack_asks_for_the_proof_and_then_for_a_bare_syn() -> None:
    """Where a conntrack on the path has lost its place, the second repetition is answered by a SYN without a token."""
    shop = Shop()
    lose(shop.world, "proof", count=3)
    connection = shop.connect(b"")
    shop.world.run(3.1)
    assert [line.split(": ")[1] for line in shop.world.transcript] == [
        "SYN + syn token", "SYN|ACK + syn-ack token", "ACK + proof",
        "SYN|ACK + syn-ack token", "ACK + proof",
        "SYN|ACK + syn-ack token", "SYN", "ACK + proof",
        "SYN|ACK + syn-ack token", "ACK + proof",
    ]  # fmt: skip
    assert connection.outcome == "connected"
    shop.world.run(5)
    assert len(shop.accepted()) == 1


def test_second_answer_to_one_syn_gets_no_proof() -> None:
    """Somebody on the path had our SYN answered twice: a proof for the second would open a connection in our name."""
    shop = Shop()
    connection = shop.connect(b"")
    shop.world.run(0.05)
    assert connection.outcome == "connected"
    shop.server.host.connections.clear()
    shop.server.sweep()
    shop.world.inject(shop.world.last("syn").build())
    with shop.counts(client={DropReason.UNEXPECTED: 1}):
        shop.world.run(0.05)
    assert shop.world.transcript[-1].endswith("server: SYN|ACK + syn-ack token")


def test_syn_ack_of_another_syn_is_not_ours() -> None:
    shop = Shop()
    alter(shop.world, "syn-ack", lambda segment: replace(segment, acknowledgement=segment.acknowledgement + 1))
    with shop.counts(client={DropReason.UNEXPECTED: 1}):
        shop.connect()
        shop.world.run(0.5)


def test_syn_ack_damaged_on_the_way_is_not_blessed_with_a_new_checksum() -> None:
    shop = Shop()
    hurt = [True]

    def on_wire(data: bytes) -> Iterable[bytes]:
        if hurt and data[12:16] == shop.server.address():
            hurt.clear()
            return (data[:-1] + bytes([data[-1] ^ 1]),)
        return (data,)

    shop.world.on_wire = on_wire
    with shop.counts(client={DropReason.BAD_CHECKSUM: 1}):
        shop.connect()
        shop.world.run(0.5)


def test_data_before_our_proof_is_not_delivered() -> None:
    shop = Shop(client_policy=OPEN)
    lose(shop.world, "syn-ack")
    connection = shop.connect()
    shop.world.run(0.005)
    own, port, other, other_port = connection.key
    with shop.counts(client={DropReason.UNPROVEN: 1}):
        shop.world.inject(Segment(other, other_port, own, port, 1, connection.iss + 1, ACK, b"surprise").build())
        shop.world.run(0.1)
    assert all(not segment.payload for segment in shop.client.segments)


def test_pod_cannot_speak_before_its_server_was_judged() -> None:
    shop = Shop()
    lose(shop.world, "syn")
    connection = shop.connect()
    own, port, other, other_port = connection.key
    with shop.counts(client={DropReason.UNPROVEN: 1}):
        shop.client.leave(Segment(own, port, other, other_port, connection.iss + 1, 1, ACK, b"psst").build())
    assert len(shop.world.captured) == 1


def test_reset_in_answer_to_the_syn_counts_the_token_out() -> None:
    """RFC 9293: a closed port acknowledges everything the SYN held. The pod's kernel sent nothing but the SYN."""
    shop = Shop(server_agent=False, client_policy=OPEN)
    shop.client.connect(shop.server, 81)
    shop.world.run(0.1)
    reset = read(shop.world.captured[-1])
    assert reset is not None
    assert reset.flags == RST | ACK
    arrived = shop.client.segments[-1]
    assert (reset.acknowledgement - arrived.acknowledgement) == len(shop.world.last("syn").payload)


# -- reused ports -----------------------------------------------------------------------------------------------------


def test_reused_tuple_inherits_nothing() -> None:
    shop = Shop()
    first = shop.connect(b"first", close=True)
    shop.world.run(1)
    assert first.stage is Stage.TIME_WAIT
    assert shop.client.accepted()
    shop.client.host.connections.clear()
    shop.client.set_policy(only_to("shop/other"))
    shop.client.set_policy(only_to(SERVER))
    shop.server.set_policy(only_from("shop/other"))
    shop.client.host.connect(shop.client.address(), shop.server.address(), 80, b"second", port=first.key[1])
    shop.world.run(0.2)
    assert not shop.client.accepted()
    assert shop.delivered() == b"first"
    shop.server.set_policy(only_from(CLIENT))
    shop.world.run(8)
    assert {bytes(one.received) for one in shop.accepted()} == {b"first", b"second"}


def test_mark_of_an_old_connection_goes_with_the_new_syn() -> None:
    shop = Shop()
    first = shop.connect(b"first", close=True)
    shop.world.run(1)
    assert shop.client.accepted()
    lose(shop.world, "syn")
    shop.client.host.connections.clear()
    shop.client.host.connect(shop.client.address(), shop.server.address(), 80, b"second", port=first.key[1])
    assert not shop.client.accepted()


# -- translations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masquerade", [False, True])
@pytest.mark.parametrize("mode", ["psk", "pki"])
def test_service_is_judged_by_the_pod_behind_it(mode: str, masquerade: bool) -> None:
    shop = Shop(mode=mode)
    router = shop.world.router
    router.services[VIP, 8080] = [(shop.server.address(), 80)]
    if masquerade:
        router.masquerade[shop.client.address()] = ROUTER
    connection = shop.client.connect(VIP, 8080, b"one beer")
    shop.world.run(0.2)
    assert bytes(connection.received) == b"one beer"
    [event] = shop.client.events
    assert (event.destination, event.destination_port) == (VIP, 8080)
    assert event.destination_actual == (shop.server.address(), 80)
    [event] = shop.server.events
    assert event.source == (ROUTER if masquerade else shop.client.address())
    assert not shop.client.drops


def test_unexplained_translation_ends_in_an_unidentified_connection() -> None:
    """It may be a load balancer, it may be a relay: nobody is given our name for the asking."""
    shop = Shop(client_policy=OPEN, server_policy=OPEN)
    shop.world.router.services[VIP, 80] = [(shop.server.address(), 80)]
    shop.world.router.evident = False
    connection = shop.client.connect(VIP, 80, b"one beer")
    shop.world.run(0.2)
    assert shop.client.drops == {DropReason.UNEXPLAINED_TRANSLATION: 1}
    assert bytes(connection.received) == b"one beer"
    assert [event.peer for event in shop.server.events if event.decision.allowed] == [None]


@pytest.mark.parametrize("trouble", ["a copy of the first answer", "a lost reset"])
def test_starting_over_survives_the_first_answer(trouble: str) -> None:
    """The second SYN has the number of the first, so an answer to the first fits both."""
    shop = Shop(client_policy=OPEN, server_policy=OPEN)
    shop.world.router.services[VIP, 80] = [(shop.server.address(), 80)]
    shop.world.router.evident = False
    if trouble == "a lost reset":
        lose(shop.world, "reset")
    else:
        repeat(shop.world, "syn-ack")
    connection = shop.client.connect(VIP, 80, b"one beer")
    shop.world.run(2)
    assert bytes(connection.received) == b"one beer"
    assert len(shop.accepted()) == 1


def test_service_may_choose_the_caller_itself() -> None:
    """A connection from a pod to its own Service proves itself like any other."""
    shop = Shop(client_policy=only_to(CLIENT))
    shop.client.listen(80)
    shop.world.router.services[VIP, 80] = [(shop.client.address(), 80)]
    shop.world.router.masquerade[shop.client.address()] = ROUTER
    connection = shop.client.connect(VIP, 80, b"to myself")
    shop.world.run(0.2)
    assert connection.outcome == "connected"
    assert any(bytes(one.received) == b"to myself" for one in shop.client.host.connections.values())
    assert shop.client.verdicts[Verdict.ACCEPT] == 2
