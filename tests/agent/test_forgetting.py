"""The agent's part in forgetting: what conntrack twice did not have is named to the data path, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from agent import conntrack
from agent.conntrack_dump import LiveConnection
from agent.enforcement import PodEnforcement
from agent.failmode import FailMode
from agent.marks import Marks
from agent.nfqueue import CrashGuard
from tests.harness import world
from tests.harness.shop import CLIENT, Shop
from tests.harness.standin_policy import only_from
from tests.harness.tcp import Connection
from trireme_py.datapath import Datapath
from trireme_py.flows import Tuple5

T = TypeVar("T")


class Loop:
    """In the place of the data path's thread: does what it is told at once."""

    queues = ()

    def call(self, function: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(function())
        return future

    def add(self, queue: object) -> None:
        """Nobody reads."""


class Rules:
    """In the place of the rules: nobody has changed them."""

    def apply(self, *_: object) -> bool:
        return False


@dataclass
class Queue:
    """In the place of a pod's queue."""

    epoch: int = 1


@dataclass
class Scene:
    """A server whose agent sweeps; conntrack has what the server's kernel has."""

    shop: Shop
    enforcement: PodEnforcement
    meanwhile: Callable[[], object] = lambda: None
    """What happens after the data path was asked, and before it hears of the answer."""

    @property
    def datapath(self) -> Datapath:
        assert self.shop.server.datapath is not None
        return self.shop.server.datapath

    def sweep(self, *_: object) -> frozenset[LiveConnection]:
        found = set()
        for own, port, other, other_port in self.shop.server.host.connections:
            found.add(LiveConnection(6, (other, other_port, own, port), (own, port, other, other_port), 0))
        return frozenset(found)


@pytest.fixture(params=["python", "c"])
def scene(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Scene:
    monkeypatch.setattr(world, "IMPLEMENTATION", request.param)
    shop = Shop()
    pod = shop.server
    assert pod.datapath is not None
    held = PodEnforcement(
        pod.datapath, cast(Any, Loop()), CrashGuard(), cast(Any, Rules()),
        marks=Marks(), queue=1, fail_mode=FailMode.CLOSED, open_queue=lambda *_, **__: cast(Any, Queue()),
    )  # fmt: skip
    held.attach(
        0, pod.name, tmp_path, addresses=pod.addresses, identity=pod.identity, policy=only_from(CLIENT), epoch=1
    )
    found = Scene(shop, held)
    monkeypatch.setattr(conntrack, "sweep", found.sweep)
    remembered = type(pod.datapath).remembered

    def asked(datapath: Datapath, endpoint: int) -> object:
        known = remembered(datapath, endpoint)
        found.meanwhile()
        return known

    monkeypatch.setattr(type(pod.datapath), "remembered", asked)
    return found


def names(scene: Scene) -> set[Tuple5]:
    scene.meanwhile = lambda: None
    return set(scene.datapath.remembered(0))


def at_the_server(connection: Connection) -> Tuple5:
    own, port, other, other_port = connection.key
    return 6, other, other_port, own, port


def end(scene: Scene, connection: Connection) -> None:
    """Both kernels have forgotten it, and so has conntrack."""
    own, port, other, other_port = connection.key
    scene.shop.server.host.connections[other, other_port, own, port].end("over")
    connection.end("over")


def test_what_conntrack_did_not_have_twice_is_forgotten(scene: Scene) -> None:
    living, dead = scene.shop.assert_works(), scene.shop.assert_works()
    end(scene, dead)
    scene.enforcement.verify()
    assert names(scene) == {at_the_server(living), at_the_server(dead)}
    scene.enforcement.verify()
    assert names(scene) == {at_the_server(living)}


def test_what_is_accepted_during_a_sweep_is_remembered(scene: Scene) -> None:
    """Threads in C accept connections whatever Python is at."""
    young = []

    def accept() -> None:
        young.append(scene.shop.assert_works())

    dead = scene.shop.assert_works()
    end(scene, dead)
    scene.enforcement.verify()
    scene.meanwhile = accept
    scene.enforcement.verify()
    assert young
    assert names(scene) == {at_the_server(one) for one in young}


def test_once_each_is_not_twice(scene: Scene) -> None:
    """Between two connections on the same ports nothing was remembered, and conntrack not read."""
    dead = scene.shop.assert_works()
    end(scene, dead)
    scene.enforcement.verify()
    scene.shop.server.forget_accepted()
    scene.enforcement.verify()
    scene.shop.world.run(200)
    scene.shop.client.host._next_port = dead.key[1]
    young = scene.shop.assert_works()
    assert young.key == dead.key
    end(scene, young)  # or conntrack does not show it yet
    scene.enforcement.verify()
    assert names(scene) == {at_the_server(young)}
