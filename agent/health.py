"""``/livez`` and ``/readyz``: whether the agent's threads move, and whether its pods are under enforcement.

Neither asks the API server: an agent that cannot reach it goes on enforcing, and restarting it would help nobody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, Protocol

from agent.serving import HttpServer

PATIENCE_S: Final = 30.0
"""How long a thread may show nothing. Laying the rules of a full node's pods takes a good part of it."""

Missing = Callable[[], Iterable[str]]
"""Returns what is missing for the agent to be ready, each in words; nothing if it is."""


class Caller(Protocol):
    """What runs functions on the data path's thread (:class:`agent.loop.Loop`)."""

    def call(self, function: Callable[[], None]) -> Future[None]: ...


@dataclass(slots=True)
class _Sign:
    count: Callable[[], int]
    seen: int
    moved_s: float


class Health:
    """Knows which threads have stopped moving. Any thread may ask."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._signs: dict[str, _Sign] = {}
        self._missing: Missing = lambda: ["it is starting"]
        self._lock = threading.Lock()

    def watch(self, thread: str, count: Callable[[], int]) -> None:
        """Take ``thread`` for alive while ``count`` changes; it is read whenever somebody asks."""
        with self._lock:
            self._signs[thread] = _Sign(count, count(), self._clock())

    def started(self, missing: Missing) -> None:
        """The agent runs; what may still be missing, ``missing`` says."""
        self._missing = missing

    def stopping(self) -> None:
        """No thread is asked any more when this returns: they end."""
        with self._lock:
            self._signs.clear()
            self._missing = lambda: ["it is stopping"]

    def silent(self) -> list[str]:
        """Return the threads that have shown nothing for :data:`PATIENCE_S`, each in words."""
        found = []
        with self._lock:
            now_s = self._clock()
            for thread, sign in self._signs.items():
                count = sign.count()
                if count != sign.seen:
                    sign.seen, sign.moved_s = count, now_s
                elif now_s - sign.moved_s > PATIENCE_S:
                    found.append(f"{thread}: nothing for {now_s - sign.moved_s:.0f} s")
        return found

    def missing(self) -> list[str]:
        """Return what keeps the agent from being ready, each in words."""
        return [*self.silent(), *self._missing()]


class Rounds:
    """Counts how often the data path's thread has answered: one question at a time, asked when the last is answered."""

    def __init__(self, loop: Caller) -> None:
        self._loop = loop
        self._answered = 0
        self._asked: Future[None] | None = None

    def __call__(self) -> int:
        if self._asked is None or self._asked.done():
            self._answered += 1
            self._asked = self._loop.call(lambda: None)
        return self._answered


class HealthServer(HttpServer):
    """Answers 200 when all is well, else 503 with one line for each thing that is not."""

    def __init__(self, address: str, port: int, health: Health) -> None:
        """Listen; port 0 takes a free one. Raises ConfigError if the address cannot be had."""
        answers = {"/livez": health.silent, "/readyz": health.missing}

        def answer(environment: dict[str, Any], start: Any) -> Iterable[bytes]:
            ask = answers.get(environment.get("PATH_INFO", ""))
            wrong = [f"not one of {', '.join(answers)}"] if ask is None else ask()
            status = "404 Not Found" if ask is None else "503 Service Unavailable" if wrong else "200 OK"
            start(status, [("Content-Type", "text/plain; charset=utf-8")])
            return ["".join(f"{line}\n" for line in wrong or ["ok"]).encode()]

        super().__init__("health", address, port, answer)
