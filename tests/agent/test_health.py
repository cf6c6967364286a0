from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from agent.health import PATIENCE_S, Health, HealthServer, Rounds
from agent.loop import Loop
from agent.nfqueue import CrashGuard
from trireme_py.errors import ConfigError


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def ask(server: HealthServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(server.url + path, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_thread_that_stops_moving_is_named_and_one_that_moves_again_is_well() -> None:
    clock, counts = Clock(), {"data path": 0, "reconciler": 0}
    health = Health(clock)
    health.watch("data path", lambda: counts["data path"])
    health.watch("reconciler", lambda: counts["reconciler"])
    clock.now_s += PATIENCE_S + 1
    counts["reconciler"] += 1
    assert health.silent() == ["data path: nothing for 31 s"]
    counts["data path"] += 1
    assert health.silent() == []
    clock.now_s += PATIENCE_S + 1
    assert len(health.silent()) == 2


def test_probes_are_answered_before_during_and_after_the_start() -> None:
    clock, count, without = Clock(), [0], ["no certificate yet"]
    health = Health(clock)
    server = HealthServer("127.0.0.1", 0, health)
    try:
        assert ask(server, "/livez") == (200, "ok\n")
        assert ask(server, "/readyz") == (503, "it is starting\n")
        health.watch("reconciler", lambda: count[0])
        health.started(lambda: without)
        assert ask(server, "/readyz") == (503, "no certificate yet\n")
        without.clear()
        assert ask(server, "/readyz") == (200, "ok\n")
        clock.now_s += PATIENCE_S + 1
        assert ask(server, "/livez") == (503, "reconciler: nothing for 31 s\n")
        assert ask(server, "/readyz") == (503, "reconciler: nothing for 31 s\n")
        health.stopping()
        assert ask(server, "/livez") == (200, "ok\n")
        assert ask(server, "/readyz") == (503, "it is stopping\n")
        assert ask(server, "/metrics") == (404, "not one of /livez, /readyz\n")
    finally:
        server.close()


def test_an_address_in_use_is_named() -> None:
    first = HealthServer("127.0.0.1", 0, Health())
    try:
        port = int(first.url.rpartition(":")[2])
        with pytest.raises(ConfigError, match=r"spec\.health .*in use.*ss -ltnp"):
            HealthServer("127.0.0.1", port, Health())
    finally:
        first.close()


class Idle:
    """A data path without packets."""

    def next_deadline(self) -> None:
        return None

    def drain_events(self) -> list[object]:
        return []

    def take_releases(self) -> list[object]:
        return []

    def take_sends(self) -> list[object]:
        return []


def test_the_data_path_s_thread_is_asked_and_one_that_hangs_is_found() -> None:
    loop = Loop(Idle(), CrashGuard(), lambda events: None)  # type: ignore[arg-type]
    loop.start()
    clock = Clock()
    health = Health(clock)
    health.watch("data path", Rounds(loop))
    loop.call(lambda: None).result(30)
    clock.now_s += PATIENCE_S + 1
    assert health.silent() == []
    hung, go_on = threading.Event(), threading.Event()
    loop.call(lambda: (hung.set(), go_on.wait())[0])  # type: ignore[func-returns-value]
    hung.wait(30)
    health.silent()  # the question that is not answered
    clock.now_s += PATIENCE_S + 1
    assert health.silent() == ["data path: nothing for 31 s"]
    go_on.set()
    loop.call(lambda: None).result(30)
    assert health.silent() == []
    loop.stop()


class Never:
    def __init__(self) -> None:
        self.asked = 0

    def call(self, function: Callable[[], None]) -> Future[None]:
        self.asked += 1
        return Future()


def test_questions_to_a_thread_that_hangs_do_not_pile_up() -> None:
    never = Never()
    rounds = Rounds(never)
    assert [rounds() for _ in range(5)] == [1, 1, 1, 1, 1]
    assert never.asked == 1
