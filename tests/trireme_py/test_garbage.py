"""Malformed and truncated packets, made of valid ones, on both hooks of both ends, in both families."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from struct import pack

import pytest

from tests.harness.mutations import mutations
from tests.harness.segments import ACK, SYN, icmp, ip, repaired, tcp, udp
from tests.harness.shop import Shop
from tests.harness.tcp import SECOND
from tests.harness.world import Pod
from trireme_py.datapath import Caught
from trireme_py.model import DropReason, Hook, Verdict

PACKETS = 100_000


def valid_packets(shop: Shop, family: int) -> list[bytes]:
    """One of each: the exchange, data, an end, a reset, extension headers, other protocols."""
    client, server = shop.client.address(family), shop.server.address(family)
    shop.world.captured.clear()
    shop.assert_works(family=family).close()
    shop.client.connect(server, 81)
    shop.world.run(1)
    packets = list(shop.world.captured)
    quoted = next(data for data in packets if data)
    unreachable, echo = (3, 8) if family == 4 else (1, 128)
    packets += [
        udp((client, 53), (server, 5353), b"question"),
        icmp(client, server, echo, body=b"ping"),
        icmp(client, server, unreachable, body=quoted[:60]),
        icmp(server, client, unreachable, body=quoted[:60]),
        tcp((client, 1), (server, 2), 3, 4, SYN, options=b"\x02\x04\x05\xb4\x22\x02\x01\x01" + b"\x01" * 32),
        tcp((client, 1), (server, 2), 3, 4, ACK, bytes(1500)),
        ip(client, server, 132, bytes(12)),
    ]
    if family == 6:
        syn = next(data for data in packets if data[6] == 6)
        chain = pack("!BB6x", 60, 0) + pack("!BB6x", 43, 0) + pack("!BB6x", 44, 0) + pack("!BBHI", 6, 0, 0, 7)
        packets += [ip(client, server, 0, chain + syn[40:]), icmp(client, server, 135, body=server)]
    return packets


def garbage(packets: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Mutations with whatever checksum comes of it, mutations with the right one, and prefixes."""
    rng = random.Random(seed)
    each = count // len(packets) + 1
    for data in packets:
        for number, mutated in enumerate(mutations(data, each, rng.getrandbits(32))):
            match number % 4:
                case 0:
                    yield mutated
                case 3:
                    yield data[: rng.randrange(len(data))]
                case _:
                    yield repaired(mutated)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["psk", "pki"])
def test_garbage_is_dropped_and_counted_and_does_no_harm(mode: str) -> None:
    """Slow for their number. A bug in the data path would come out as its own exception here."""
    shop = Shop(mode=mode)
    shop.world.audit = False
    packets = [data for family in (4, 6) for data in valid_packets(shop, family)]
    places = [(pod, hook) for pod in (shop.client, shop.server) for hook in Hook]
    waiting: dict[Pod, set[int]] = {shop.client: set(), shop.server: set()}
    dropped = 0
    delivered, accepted = shop.delivered(), len(shop.accepted())
    before = (shop.client.drops + shop.server.drops).total()
    blocks = 0
    everything = list(garbage(packets, PACKETS // 2, seed=7))
    random.Random(8).shuffle(everything)
    for ticket, data in enumerate(everything):
        pod, hook = places[ticket % len(places)]
        assert pod.datapath is not None
        [result] = pod.datapath.receive(shop.world.now, 0, hook, [Caught(ticket, data)])
        assert (result.verdict is Verdict.DROP) == (result.reason is not None)
        dropped += result.verdict is Verdict.DROP
        releases = [*result.release, *(release for _, release in pod.datapath.take_releases())]
        if result.verdict is Verdict.HOLD:
            waiting[pod].add(ticket)
        if ticket % 100 == 99:
            shop.world.mono_ns += SECOND // 10
            releases += [release for _, release in pod.datapath.expire(shop.world.now)]
            pod.datapath.drain_events()
            pod.sweep()
        for release in releases:
            waiting[pod].remove(release.ticket)
            dropped += release.verdict is Verdict.DROP
        if ticket == len(everything) // 2:
            blocks = sys.getallocatedblocks()
    assert sys.getallocatedblocks() - blocks < 0.1 * blocks
    for pod, tickets in waiting.items():
        assert pod.datapath is not None
        shop.world.mono_ns += 10 * SECOND
        for _, release in pod.datapath.expire(shop.world.now):
            tickets.remove(release.ticket)
            dropped += release.verdict is Verdict.DROP
    assert not any(waiting.values())
    drops = shop.client.drops + shop.server.drops
    assert not drops[DropReason.INTERNAL_ERROR]
    assert drops.total() - before == dropped
    assert dropped > 0.5 * len(everything)
    assert (shop.delivered(), len(shop.accepted())) == (delivered, accepted)
    shop.world.run(100)
    shop.assert_works()
    shop.assert_works(family=6)


@pytest.mark.slow
@pytest.mark.parametrize("family", [4, 6])
def test_garbage_in_the_midst_of_handshakes(family: int) -> None:
    """Slow for their number. Around each packet of the exchange come copies of it that are not quite right.

    Some are right enough to end the connection, as a reset with the right number is; so what is asserted is that each
    packet got its verdict, each drop its count, and that nothing stays behind.
    """
    shop = Shop()
    shop.world.audit = False
    rng = random.Random(family)
    for _ in range(400):
        shop.world.captured.clear()
        connection = shop.connect(b"one beer", family=family)
        for _ in range(5):
            for data in list(shop.world.captured)[-2:]:
                for mutated in mutations(data, 6, rng.getrandbits(32)):
                    pod = rng.choice((shop.client, shop.server))
                    meet = rng.choice((pod.arrive, pod.leave))
                    meet(repaired(mutated) if rng.random() < 0.7 else mutated)
            shop.world.run(0.01)
        connection.end("over")
        for one in list(shop.server.host.connections.values()):
            one.end("over")
        shop.world.run(1)
    shop.world.run(200)
    for pod in (shop.client, shop.server):
        assert not pod.drops[DropReason.INTERNAL_ERROR]
        assert pod.verdicts[Verdict.DROP] == pod.drops.total() - pod.drops[DropReason.CUT]
        assert not pod.held
        pod.sweep()
        for table in (
            pod.endpoint.clients,
            pod.endpoint.servers,
            pod.endpoint.answered,
            pod.endpoint.live,
            pod.endpoint.live_datagrams,
        ):
            assert not len(table)
    shop.assert_works(family=family)
