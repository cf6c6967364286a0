"""The agent of a cluster without a kernel: a stand-in for the API server, real watches and files, a recorder below."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.durations import Durations
from agent.issuing import Issuer
from agent.kubernetes.api import Access, ApiServer
from agent.kubernetes.holding import Holding
from agent.kubernetes.inbox import Inbox
from agent.kubernetes.lastknown import LastKnown
from agent.kubernetes.mode import Pass
from agent.kubernetes.reflector import Reflector, Timing
from agent.kubernetes.resources import watched
from agent.kubernetes.source import ClusterSource
from agent.reconciler import Reconciler
from agent.runtime import RuntimeDirectory
from policy.engine import PolicyEngine
from policy.objects import Pod
from tests.harness.api_stand_in import PATIENCE_S, ApiStandIn
from tests.harness.enforcement_recorder import Recorder
from trireme_py.auth_psk import PskAuthenticator
from trireme_py.model import Address

NODE = "node-1"
QUICK = Timing(away=(0.001, 0.01), refused=(0.001, 0.01), not_served=0.01)


class Places:
    """Knows where pods are: what the runtime and discovery tell the agent (:mod:`agent.kubernetes.sandboxes`)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.undecided: list[str] = []
        self._places: dict[str, Path] = {}
        self.addresses: dict[Path, tuple[Address, ...]] = {}
        """What the runtime has told of a namespace."""
        self.starting: set[Path] = set()
        """Where nothing has run yet."""

    def make(self, uid: str) -> Path:
        """Make a namespace, here a plain file, and say that the pod with this uid is in it."""
        path = self.root / f"cni-{uid}"
        path.write_text("")
        self._places[uid] = path
        return path

    def put(self, uid: str, path: Path) -> None:
        """Say that the pod with this uid is in the namespace at ``path``."""
        self._places[uid] = path

    def locate(self, pod: Pod) -> Path | None:
        path = self._places.get(pod.uid)
        return path if path is not None and path.exists() else None

    def addresses_at(self, path: Path) -> tuple[Address, ...]:
        return self.addresses.get(path, ())

    def is_starting(self, path: Path) -> bool:
        return path in self.starting

    def look(self, pods: Iterable[Pod]) -> list[str]:
        return list(self.undecided)


class ClusterRig:
    """One node; the agent can be restarted. Its thread is the test's: nothing happens but in :meth:`until`."""

    def __init__(self, root: Path, server: ApiStandIn, *, refuse: bool = False) -> None:
        namespaces = root / "netns"
        namespaces.mkdir()
        self.server = server
        self.port = server.port
        self.places = Places(namespaces)
        self.kernel = Recorder()
        self.runtime = RuntimeDirectory(root / "run")
        self.runtime.lock()
        self.refuse = refuse
        self.stop = threading.Event()
        self._reflectors: list[Reflector] = []
        self.passes = 0

    def start(self) -> None:
        """Start an agent: watch, wait for the first lists or go on with what was known, and reconcile once."""
        self.inbox = Inbox()
        self.engine = PolicyEngine()
        resources = watched(NODE)
        self.source = ClusterSource(
            resources,
            self.inbox,
            self.places,
            self.places,
            LastKnown(self.runtime.last_good, NODE),
            self.stop,
        )
        issuer = Issuer(PskAuthenticator(bytes(range(32)), "example.org"), 3600, os.urandom, time.time)
        self.reconciler = Reconciler(self.source, self.engine, issuer, self.kernel, self.runtime)
        api = ApiServer(Access("127.0.0.1", self.port, tls=False))
        self._reflectors = [
            Reflector(api, resource, self.inbox, QUICK) for resource in resources if not resource.on_demand
        ]
        self.holding = Holding(self.source, self.trouble, refuse=self.refuse)
        self.durations = Durations()
        self.turn = Pass(self.inbox, self.source, self.holding, self.engine, self.durations)
        for reflector in self._reflectors:
            reflector.start()
        self.reconciler.start()
        self.source.write(self.engine)

    def end(self) -> None:
        """End the agent as a signal does: rules stay."""
        for reflector in self._reflectors:
            reflector.stop()
        self._reflectors = []
        self.reconciler.stop()
        self.inbox.close()

    def trouble(self) -> str:
        """Why nothing is heard of pods."""
        return self._reflectors[-1].trouble

    def tick(self) -> None:
        self.turn.run(self.reconciler, tick=True)

    def until(self, done: Callable[[], object]) -> None:
        """Bring news into force, as they come, until ``done``."""
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert self.inbox.wait(deadline - time.monotonic()), self.kernel.steps
            self.turn.run(self.reconciler)
            self.passes += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """Do what :meth:`until` does on another thread meanwhile."""
        over = False

        def run() -> None:
            while not over:
                if self.inbox.wait(1.0):
                    self.turn.run(self.reconciler)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            over = True
            self.inbox.wake()
            thread.join()

    def until_steps(self, *steps: tuple[object, ...]) -> None:
        """Wait until exactly these steps have been taken since the last :meth:`Recorder.take`."""
        self.until(lambda: len(self.kernel.steps) >= len(steps))
        assert self.kernel.take() == list(steps)

    def pod(
        self,
        name: str,
        labels: dict[str, str] | None = None,
        *,
        uid: str | None = None,
        phase: str = "Running",
        **parts: Any,
    ) -> None:
        """Add or change ``shop/<name>``, of this node."""
        metadata = {"labels": labels or {"app": name}, **({"uid": uid} if uid else {}), **parts.pop("metadata", {})}
        status = parts.pop("status", {"phase": phase})
        self.server.put("pods", name, namespace="shop", metadata=metadata, status=status, **parts)

    def policy(self, name: str, app: str | None = None, **spec: Any) -> None:
        """Isolate ``app`` in ``shop``, or all its pods."""
        selector = {"matchLabels": {"app": app}} if app else {}
        self.server.put("networkpolicies", name, namespace="shop", spec={"podSelector": selector, **spec})

    def problems(self) -> list[str]:
        return [str(problem) for problem in self.reconciler.problems]
