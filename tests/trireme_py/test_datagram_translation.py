"""The exchange on UDP through Services and masquerading routers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.harness.resolver import POLICIES, PORT, Resolver, serve
from tests.harness.segments import packed
from tests.harness.world import World
from trireme_py.datagram_flows import SILENT_NS
from trireme_py.model import DropReason

FAMILIES = pytest.mark.parametrize("family", [4, 6])
ISOLATED = pytest.mark.parametrize("isolated", POLICIES)
ROUND_TRIP_MS = 20


SERVICE = {4: packed("10.96.0.10"), 6: packed("fd00:96::10")}


def through_service(world: World, scene: Resolver, family: int, *, masquerade: bool) -> bytes:
    service = SERVICE[family]
    world.router.services[service, PORT] = [(scene.server.address(family), PORT)]
    if masquerade:
        own = packed("192.0.2.1") if family == 4 else packed("fd00:96::1")
        world.router.masquerade[scene.client.address(family)] = own
    return service


@ISOLATED
@FAMILIES
@pytest.mark.parametrize("masquerade", [False, True])
def test_through_a_service(isolated: str, family: int, masquerade: bool) -> None:
    scene = Resolver(isolated)
    service = through_service(scene.world, scene, family, masquerade=masquerade)
    for sport in range(40_000, 40_004):
        for number in range(3):
            scene.client.say(service, b"%d %d" % (sport, number), sport=sport)
            scene.world.run(0.3)
            assert scene.answered()[-1] == b"re:%d %d" % (sport, number), scene.world.transcript
    assert scene.world.invalid == 0
    assert not {*scene.client.drops, *scene.server.drops} - {DropReason.CONSUMED}


def test_two_backends_one_of_them_refused() -> None:
    """Whichever the Service leads to, the refused one reads nothing and the other is asked as ever."""
    scene = Resolver("client")
    other = scene.mallory()
    serve(other)
    scene.world.router.services[SERVICE[4], PORT] = [
        (scene.server.address(), PORT), (other.address(), PORT),
    ]  # fmt: skip
    for sport in range(40_000, 40_040):
        scene.client.say(SERVICE[4], b"%d" % sport, sport=sport)
        scene.world.run(0.5)
    assert len(scene.asked()) == 20
    assert other.heard == []


def test_a_ticket_used_from_another_address_is_none() -> None:
    """A masqueraded pod comes from another of the router's addresses: the exchange is done once more."""
    scene = Resolver()
    service = through_service(scene.world, scene, 4, masquerade=True)
    scene.client.say(service, b"one")
    scene.world.run(1)
    scene.world.router.masquerade[scene.client.address()] = packed("192.0.2.2")
    scene.world.captured.clear()
    scene.client.say(service, b"two", sport=40_001)
    scene.world.run(1)
    assert scene.kinds() == ["RESUME", "ANSWER", "PROOF", "-"]
    assert scene.asked() == [b"one", b"two"]
    assert scene.answered() == [b"re:one", b"re:two"]


def test_without_evidence_of_the_translation_nothing_leaves() -> None:
    scene = Resolver("client")
    scene.world.router.evident = False
    service = packed("192.0.2.53")
    scene.world.router.services[service, PORT] = [(scene.server.address(), PORT)]
    for sport in range(40_000, 40_005):
        scene.client.say(service, sport=sport)
        scene.world.run(0.5)
    assert scene.asked() == []
    datapath = scene.client.datapath
    assert datapath is not None
    datapath._shared.settings = replace(datapath._shared.settings, require_translation_evidence=False)
    scene.world.run(SILENT_NS / 1e9)
    scene.client.say(service, sport=41_000)
    scene.world.run(0.5)
    assert scene.asked() == [b"question"]
    assert datapath.unproven_translations == 1
