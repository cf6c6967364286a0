"""Pods that wait at their start: each until the reconciler has brought it under enforcement."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from agent.kubernetes.sandboxes import is_of
from agent.kubernetes.starts import NotStarted, Sandbox
from agent.source import inode_of
from policy.objects import Pod

GONE_PATIENCE_S: Final = 5.0
"""How long a removal waits for the reconciler, which may be at the rules of another pod."""


class Pods(Protocol):
    """What is known of pods (:class:`agent.kubernetes.source.ClusterSource`). Asked from any thread."""

    def pod(self, name: str) -> Pod | None: ...

    @property
    def unholdable(self) -> Mapping[str, str]: ...

    def look_again(self) -> None: ...

    def leave(self, namespace: Path, inode: tuple[int, int]) -> None: ...


class Held(Protocol):
    """What is under enforcement (:class:`agent.reconciler.Reconciler`)."""

    failed: dict[str, str]

    def held_at(self, pod: str) -> Path | None: ...


@dataclass(frozen=True, slots=True)
class _Waiting:
    sandbox: Sandbox
    done: Future[None] = field(default_factory=Future)


class Holding:
    """Implements :class:`agent.kubernetes.starts.PodStarts`."""

    def __init__(self, pods: Pods, trouble: Callable[[], str], *, refuse: bool) -> None:
        """``trouble``: why nothing is heard of pods at the moment; empty while all is well.

        ``refuse``: a pod that rules cannot hold does not start.
        """
        self._pods = pods
        self._refuse = refuse
        self._trouble = trouble
        self._lock = threading.Lock()
        self._starting: dict[str, _Waiting] = {}
        """By container. Bounded by the callers, each of which waits."""
        self._held: dict[str, tuple[Path, tuple[int, int]]] = {}
        """By container: the namespaces of the sandboxes that were held, until they go."""
        self._leaving: list[Future[None]] = []
        self._asked: tuple[tuple[str, _Waiting], ...] = ()
        self._told: tuple[Future[None], ...] = ()

    def hold(self, sandbox: Sandbox, timeout_s: float) -> None:
        waiting = _Waiting(sandbox)
        with self._lock:
            self._starting[sandbox.container] = waiting
        self._pods.look_again()
        try:
            waiting.done.result(timeout_s)
        except TimeoutError:
            raise NotStarted(self._why(sandbox)) from None
        finally:
            with self._lock:
                self._starting.pop(sandbox.container, None)
        path = sandbox.network_namespace
        if (inode := inode_of(path)) is not None:
            with self._lock:
                # A runtime may forget to say that a sandbox has gone; a file that has gone says it as well.
                self._held = {name: held for name, held in self._held.items() if inode_of(held[0]) == held[1]}
                self._held[sandbox.container] = path, inode

    def gone(self, container: str) -> None:
        done: Future[None] = Future()
        with self._lock:
            if (held := self._held.pop(container, None)) is not None:
                self._pods.leave(*held)
            self._leaving.append(done)
        self._pods.look_again()
        with suppress(TimeoutError):
            done.result(GONE_PATIENCE_S)

    def _why(self, sandbox: Sandbox) -> str:
        pod = self._pods.pod(sandbox.pod)
        trouble = self._trouble()
        place = f" (the watch of pods: {trouble})" if trouble else ""
        if pod is None:
            return f"pod {sandbox.pod}: not known from the API server yet{place}"
        if not is_of(pod, sandbox.uid):
            return f"pod {sandbox.pod}: the API server has told only of an earlier pod of that name{place}"
        return f"pod {sandbox.pod}: its rules could not be laid in time; the agent's log says more"

    # -- The reconciler's thread --------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A pass begins: it is about those who have asked by now."""
        with self._lock:
            self._asked = tuple(self._starting.items())
            self._told, self._leaving = tuple(self._leaving), []

    def answer(self, held: Held) -> None:
        """The pass is over: let those go whose time has come."""
        for _, waiting in self._asked:
            name = waiting.sandbox.pod
            pod = self._pods.pod(name)
            if waiting.done.done() or pod is None or not is_of(pod, waiting.sandbox.uid):
                continue
            path = held.held_at(name)
            reason = self._pods.unholdable.get(name) if self._refuse else None
            if reason:
                waiting.done.set_exception(NotStarted(f"pod {name}: {reason} (spec.kubernetes.unprotected: refuse)"))
            elif pod.host_network or _same(path, waiting.sandbox.network_namespace):
                waiting.done.set_result(None)
            elif pod.completed:
                waiting.done.set_exception(NotStarted(f"pod {name}: has run to its end"))
            elif name in held.failed:
                waiting.done.set_exception(NotStarted(f"pod {name}: {held.failed[name]}"))
        for done in self._told:
            done.set_result(None)
        self._asked, self._told = (), ()


def _same(one: Path | None, other: Path) -> bool:
    inode = inode_of(one) if one is not None else None
    return inode is not None and inode == inode_of(other)
