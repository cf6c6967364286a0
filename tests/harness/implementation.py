"""Which data path the tests run on: the option ``--impl`` of pytest (tests/conftest.py)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.fastqueue import FastQueue, FastThreads
from agent.nfqueue import CrashGuard, PodQueue
from trireme_py._fastpath import Endpoint, Engine, Workers
from trireme_py.datapath import Caught, Datapath
from trireme_py.endpoint import DatapathSettings
from trireme_py.fast import FastDatapath, Parked
from trireme_py.identities import Identities
from trireme_py.model import Hook, Instant, Result

name = "python"
"""``python`` or ``c``; set once, before any test runs."""
classes: dict[str, type[Datapath]] = {"python": Datapath, "c": FastDatapath}
"""A test may put others in their place."""


def make_datapath(identities: Identities, settings: DatapathSettings, **words: Any) -> Datapath:
    """The data path that the tests run on."""
    if name == "c":
        words["seed"] = os.urandom(16)
    return classes[name](identities, settings, entropy=os.urandom, **words)


class ParkEverything:
    """Gives a stand-in for the data path the methods that the fast path's shell needs: C knows nothing, so Python
    judges it all."""

    def __init__(self, stand_in: Any) -> None:
        self._stand_in = stand_in
        self._engine = Engine(os.urandom(16))
        self._endpoints: dict[int, Endpoint] = {}

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._stand_in, attribute)

    def engine_endpoint(self, endpoint: int) -> Endpoint:
        return self._endpoints.setdefault(endpoint, Endpoint(self._engine, 1024, 1024, 1024, 1024, 8192, 1024, 1024))

    def receive_parked(self, now: Instant, endpoint: int, hook: Hook, batch: Sequence[Parked]) -> list[Result]:
        results = self._stand_in.receive(now, endpoint, hook, [Caught(one.ticket, one.data) for one in batch])
        for one in batch:
            self._endpoints[endpoint].returned(hook is Hook.APPLICATION, one.data)
        return list(results)


def open_queue(
    namespace: Path,
    endpoint: int,
    datapath: Any,
    guard: CrashGuard,
    *,
    threads: FastThreads | None = None,
    **words: Any,
) -> PodQueue:
    """A pod's queue for the data path that the tests run on."""
    if name == "python":
        return PodQueue(namespace, endpoint, datapath, guard, **words)
    fast = datapath if hasattr(datapath, "receive_parked") else ParkEverything(datapath)
    return FastQueue(namespace, endpoint, fast, guard, threads or FastThreads(Workers(1), None), **words)
