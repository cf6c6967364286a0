"""The exchange over a terrible network, with an attacker on the path. Seeded; no real time passes."""

from __future__ import annotations

import pytest

from tests.harness.storm import Storm
from tests.harness.world import Pod
from trireme_py.model import DropReason


def assert_only_friends_were_let_in(storm: Storm) -> None:
    """By what really happened: the friend dialled each connection that the server's kernel completed."""
    dialled = {(one.connection.key, one.connection.iss): one for one in storm.opened if one.pod is storm.friend}
    accepted = 0
    for connection in (*storm.server.host.connections.values(), *storm.server.host.over):
        own, port, other, other_port = connection.key
        if not connection.opened:
            continue
        one = dialled.get(((other, other_port, own, port), connection.irs))
        assert one is not None, f"a connection that nobody dialled: {connection.key}"
        assert one.data.startswith(bytes(connection.received))
        accepted += 1
    assert accepted


def assert_events_are_true(storm: Storm) -> None:
    names = {storm.friend: "shop/server", storm.server: "shop/friend"}
    for pod, peer in names.items():
        identified = [event for event in pod.events if event.decision.allowed and event.peer is not None]
        assert identified
        for event in identified:
            assert event.peer is not None
            assert (event.peer.name, event.peer_proven) == (peer, True)
    assert all(event.peer for event in storm.server.events if event.decision.allowed)


def assert_nothing_is_left(pod: Pod) -> None:
    assert not pod.held
    pod.sweep()
    for name in ("clients", "servers", "answered", "live", "denials", "unanswered", "minds_payload", "holds"):
        assert not len(getattr(pod.endpoint, name)), f"{name} of {pod.name}"


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "connections", "seed"), [("psk", 8_000, 1), ("pki", 2_000, 2)])
def test_handshakes_over_a_terrible_network(mode: str, connections: int, seed: int) -> None:
    """Slow for the number of packets: 10,000 handshakes, each with its loss, its copies and its data."""
    storm = Storm(seed, mode)
    storm.rain(connections, gap_ns=5_000_000)
    assert_only_friends_were_let_in(storm)
    assert_events_are_true(storm)
    assert not any(pod.drops[DropReason.INTERNAL_ERROR] for pod in storm.guarded)
    friendly = [one for one in storm.opened if one.friendly]
    for one in storm.opened:
        assert one.expected.startswith(bytes(one.connection.received))
        assert one.friendly or not one.connection.received
    complete = sum(bytes(one.connection.received) == one.expected for one in friendly)
    assert complete >= 0.99 * len(friendly)
    storm.world.run(5_000)
    for pod in storm.guarded:
        assert_nothing_is_left(pod)
