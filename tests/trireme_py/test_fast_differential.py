"""Python alone and the fast path in front of it are fed the same packets, honest and hostile, and must say the same."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.harness import storm, tcp, world
from tests.harness.mutations import mutations
from tests.harness.overheard import Heard, assert_same, first_difference, listen_in
from tests.harness.segments import packed, repaired
from tests.harness.world import Pod
from trireme_py.fast import FastDatapath

SERVICE = packed("10.96.0.10")


def hail(scene: storm.Storm, seed: int) -> None:
    """Throw what was heard at whoever is there, damaged, with and without a right checksum, at either hook."""
    rng = random.Random(seed)
    for data in list(scene.world.captured)[-2:]:
        for mutated in mutations(data, 3, rng.getrandbits(32)):
            pod: Pod = rng.choice(scene.guarded)
            meet = rng.choice((pod.arrive, pod.leave))
            meet(repaired(mutated) if rng.random() < 0.7 else mutated)


def call_the_service(scene: storm.Storm) -> None:
    """The friend dials an address that the node translates to the server's."""
    connection = scene.friend.connect(SERVICE, storm.WELCOME)
    connection.on_data = lambda connection: connection.close()


def renew(scene: storm.Storm) -> None:
    """Everybody gets a new assertion."""
    for pod in scene.guarded:
        assert pod.datapath is not None
        assert pod.authenticator is not None
        pod.identity = scene.world.local_identity(pod.name, pod.authenticator)
        pod.datapath.set_identity(0, pod.identity)


def weather(implementation: str, mode: str, seed: int, connections: int, gap_ns: int = 5_000_000) -> Heard:
    """What one storm sounds like."""
    heard = Heard()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(world, "IMPLEMENTATION", implementation)
        listen_in(heard, monkeypatch)
        scene = storm.Storm(seed, mode)
        scene.world.router.services[SERVICE, storm.WELCOME] = [(scene.server.address(), storm.WELCOME)]
        for index in range(connections):
            scene.world.after(index * gap_ns + 1, lambda index=index: hail(scene, index))  # type: ignore[misc]
            if index % 7 == 3:
                scene.world.after(index * gap_ns + 2, lambda: call_the_service(scene))
            if index % 60 == 59:
                scene.world.after(index * gap_ns + 3, lambda: renew(scene))
        scene.rain(connections, gap_ns)
        scene.world.run(100)  # what was handed over has begun a new lifetime
        heard.collect(scene.guarded)
    return heard


@pytest.mark.parametrize(("mode", "seed"), [("psk", 1), ("psk", 2), ("pki", 3)])
def test_both_say_the_same_in_a_storm(mode: str, seed: int) -> None:
    python, c = (weather(implementation, mode, seed, 300) for implementation in ("python", "c"))
    assert_same(python, c)
    # It was worth comparing: C has accepted connections of its own, and handed others over.
    assert c.answered_in_c > 100, c.answered_in_c
    assert c.parked > 1000


@pytest.mark.parametrize("seed", [4, 8, 13])
def test_both_say_the_same_where_ports_are_used_again(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowly enough for what Python accepted to be the engine's by then."""
    take_back, returned = FastDatapath._take_back, []

    def counted(*args: Any) -> bool:
        returned.append(take_back(*args))
        return returned[-1]

    monkeypatch.setattr(FastDatapath, "_take_back", counted)
    monkeypatch.setattr(tcp, "TIME_WAIT", tcp.SECOND // 2)
    monkeypatch.setattr(tcp, "LAST_PORT", tcp.FIRST_PORT + 39)
    python, c = (weather(implementation, "psk", seed, 300, gap_ns=50_000_000) for implementation in ("python", "c"))
    # Half-open exchanges begin to expire then, those that were handed over later than the others.
    early = [[one for one in heard.answers if one[0] < world.START_NS + 60 * tcp.SECOND] for heard in (python, c)]
    assert len(early[0]) > 5_000
    assert first_difference(*early) is None
    assert first_difference(python.releases, c.releases) is None
    assert returned.count(True) > 100, len(returned)
