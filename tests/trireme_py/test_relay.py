"""What a model checker and reviewers found: ways to be taken for somebody else, or to get data out, kept closed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from tests.harness.segments import ACK, PSH, Segment, packed, read
from tests.harness.shop import CLIENT, SERVER, Shop
from tests.harness.standin_policy import only_from, only_to
from tests.harness.world import kind_of
from trireme_py.datapath import Caught
from trireme_py.model import DropReason, Hook, Verdict
from trireme_py.packet import internet_checksum

PROOF = 28


def test_one_run_of_a_client_proves_one_connection() -> None:
    """Somebody on the path copies the client's SYN under another port, hands the answer to the client as a repetition,
    and carries the second proof to the server. The client proves for one SYN-ACK only."""
    shop = Shop()
    world = shop.world
    honest = shop.connect()
    world.run(0.2)
    assert bytes(honest.received) == b"one beer"
    syn, syn_ack = world.last("syn"), world.last("syn-ack")
    other_port, other_isn = 40_404, 777_000
    proofs: list[Segment] = []

    def on_wire(data: bytes) -> Iterable[bytes]:
        segment = read(data)
        if segment is not None and kind_of(segment) == "syn-ack" and segment.dport == other_port:
            as_repeated = replace(
                segment, dport=syn.sport, sequence=syn_ack.sequence, acknowledgement=syn.sequence + 1
            )  # fmt: skip
            world.inject(as_repeated.build())
            return ()
        if segment is not None and kind_of(segment) == "proof":
            proofs.append(segment)
        return (data,)

    world.on_wire = on_wire
    with shop.counts(client={DropReason.UNEXPECTED: 1}):
        world.inject(replace(syn, sport=other_port, sequence=other_isn).build())
        world.run(0.5)
    assert not proofs
    assert shop.delivered() == b"one beer"


@pytest.mark.parametrize("strict", [True, False])
def test_a_translation_that_nothing_shows(strict: bool) -> None:
    """A load balancer somewhere, or a relay: without evidence the server is not identified, but reached."""
    shop = Shop(server_policy=only_from(CLIENT, addresses=frozenset({packed("10.1.0.2")})))
    datapath = shop.client.datapath
    assert datapath is not None
    datapath._shared.settings = replace(datapath._shared.settings, require_translation_evidence=strict)
    shop.client.set_policy(only_to(SERVER, addresses=frozenset({packed("192.0.2.10")})))
    balancer, server = packed("192.0.2.10"), packed("10.1.0.3")
    there: dict[int, bytes] = {}

    def on_wire(data: bytes) -> Iterable[bytes]:
        segment = read(data)
        if segment is None:
            return (data,)
        if segment.destination == balancer:
            there[segment.sport] = balancer
            return (replace(segment, destination=server).build(),)
        if segment.source == server and segment.dport in there:
            return (replace(segment, source=balancer).build(),)
        return (data,)

    shop.world.on_wire = on_wire
    wanted = {DropReason.UNEXPLAINED_TRANSLATION: 1} if strict else {}
    with shop.counts(client=wanted):
        connection = shop.client.connect(balancer, data=b"one beer")
        shop.world.run(5, until=lambda: bytes(connection.received) == b"one beer")
    assert bytes(connection.received) == b"one beer"
    (event,) = [event for event in shop.server.events if event.decision.allowed]
    assert event.peer_proven is not strict


def test_an_icmp_error_goes_nowhere_but_to_the_sender_of_what_it_quotes() -> None:
    """Quoting a connection of one's own must not let data out to somebody else."""
    shop = Shop(client_policy=only_to(SERVER))
    shop.connect()
    shop.world.run(0.2)
    answered = next(
        data for data in reversed(shop.world.captured) if (s := read(data)) and s.source == packed("10.1.0.3")
    )
    for destination, verdict in ((packed("10.1.0.3"), Verdict.PASS), (packed("10.1.0.66"), Verdict.DROP)):
        icmp = bytearray(b"\x03\x01\0\0\0\0\0\0" + answered[:28] + b"secret")
        icmp[2:4] = internet_checksum(bytes(icmp)).to_bytes(2, "big")
        header = bytearray(b"\x45\0" + (20 + len(icmp)).to_bytes(2, "big") + b"\0\0\0\0\x40\x01\0\0")
        header += packed("10.1.0.2") + destination
        header[10:12] = internet_checksum(bytes(header)).to_bytes(2, "big")
        datapath = shop.client.datapath
        assert datapath is not None
        (result,) = datapath.receive(shop.world.now, 0, Hook.APPLICATION, [Caught(1, bytes(header + icmp))])
        assert result.verdict is verdict


def test_a_token_from_outside_the_identity_scope_is_not_answered_with_one() -> None:
    shop = Shop()
    shop.connect()
    shop.world.run(0.2)
    stranger = replace(shop.world.last("syn"), source=packed("198.51.100.9"))
    with shop.counts(server={DropReason.POLICY: 1}):
        shop.world.inject(stranger.build())
        shop.world.run(0.1)


def test_a_pod_whose_identity_cannot_be_issued_is_enforced_all_the_same() -> None:
    shop = Shop()
    datapath = shop.client.datapath
    assert datapath is not None
    datapath.set_identity(0, None)
    with shop.counts(server={DropReason.POLICY: 1}):
        shop.connect()
        shop.world.run(0.5)
    assert shop.delivered() == b""
    assert kind_of(read(shop.world.captured[0])) == "bare syn"  # type: ignore[arg-type]


def test_data_on_a_copied_connection_is_not_delivered() -> None:
    """The same attack, carried on: without a second proof its data waits, and is dropped."""
    shop = Shop()
    shop.connect()
    shop.world.run(0.2)
    syn = shop.world.last("syn")
    answers: list[Segment] = []

    def on_wire(data: bytes) -> Iterable[bytes]:
        segment = read(data)
        if segment is not None and kind_of(segment) == "syn-ack" and segment.dport == 40_404:
            answers.append(segment)
            return ()
        return (data,)

    shop.world.on_wire = on_wire
    shop.world.inject(replace(syn, sport=40_404, sequence=777_000).build())
    shop.world.run(0.1)
    data = replace(
        syn, sport=40_404, sequence=777_001, acknowledgement=answers[0].sequence + 1, flags=ACK | PSH, payload=b"mine"
    )  # fmt: skip
    with shop.counts(server={DropReason.HOLD_TIMEOUT: 1}):
        shop.world.inject(data.build())
        shop.world.run(1.5)
    assert shop.delivered() == b"one beer"
