"""The data path's thread: it alone calls the data path and touches the queues.

Other threads hand it functions to run (:meth:`Loop.call`), so that policies and identities change between two packets
and never during one.
"""

from __future__ import annotations

import logging
import os
import queue
import selectors
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final, TypeVar

from agent.logs import fields
from agent.nfqueue import HOLD_LIMIT_NS, CrashGuard, DataPath, PodQueue
from trireme_py.model import FlowEvent, Instant

log = logging.getLogger(__name__)

T = TypeVar("T")

_HOUSEKEEPING_S: Final = HOLD_LIMIT_NS / 1e9
"""The loop wakes this often even if nothing happens."""


def read_clock() -> Instant:
    """Read both clocks once."""
    return Instant(mono_ns=time.monotonic_ns(), wall_s=time.time())


class Loop:
    """Serves every pod's queue from one thread. Start it, hand it queues with :meth:`add`, stop it."""

    def __init__(self, datapath: DataPath, guard: CrashGuard, publish: Callable[[Sequence[FlowEvent]], None]) -> None:
        """``publish`` gets the flow events on the loop's thread and must not block."""
        self._datapath = datapath
        self._guard = guard
        self._publish = publish
        self._queues: dict[int, PodQueue] = {}
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._stopping = False
        self._thread = threading.Thread(target=self._run_or_die, name="datapath", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close every queue. The rules stay: packets that need a verdict wait for the next agent."""
        self.call(self._stop).result()
        self._thread.join()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run ``function`` on the loop's thread, after the packets it is at; the future tells what came of it.

        Called on the loop's own thread, it runs at once.
        """
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)

        if threading.current_thread() is self._thread:
            run()
        else:
            self._commands.put(run)
            os.eventfd_write(self._wakeup, 1)
        return future

    def add(self, pod: PodQueue) -> None:
        """Serve ``pod`` from now on. Only on the loop's thread."""
        pod.start()
        self._queues[pod.endpoint] = pod
        self._selector.register(pod, selectors.EVENT_READ, pod)

    def remove(self, endpoint: int) -> None:
        """Close an endpoint's queue and let go of its namespace. Only on the loop's thread."""
        pod = self._queues.pop(endpoint, None)
        if pod is not None:
            self._selector.unregister(pod)
            pod.close()

    @property
    def queues(self) -> tuple[PodQueue, ...]:
        """The queues it serves. Counters may be read from any thread."""
        return tuple(self._queues.values())

    def _stop(self) -> None:
        self._stopping = True

    def _run_or_die(self) -> None:
        """A process whose queues nobody reads is worse than none: pods would stay shut, and nobody would start another.
        Rules and marks outlive it."""
        try:
            self._run()
        except Exception:
            log.critical("the data path's thread failed; ending", exc_info=True)
            os._exit(70)  # EX_SOFTWARE, sysexits.h

    def _run(self) -> None:
        while not self._stopping:
            deadline = self._guard(self._datapath.next_deadline)
            pending = [pod for pod in self._queues.values() if pod.pending]
            ready = self._selector.select(0 if pending else _seconds_until(deadline))
            now = read_clock()
            announced = [key.data for key, _ in ready if isinstance(key.data, PodQueue)]
            for pod in dict.fromkeys(announced + pending):
                self._serve(pod, now)
            self._release(now, deadline)
            events = self._guard(self._datapath.drain_events)
            if events:
                self._guard(lambda events=events: self._publish(events))  # type: ignore[misc]
            self._obey()
        for endpoint in list(self._queues):
            self.remove(endpoint)
        self._selector.close()
        os.close(self._wakeup)

    def _serve(self, pod: PodQueue, now: Instant) -> None:
        try:
            pod.service(now)
        except OSError as error:
            # Without a reader the kernel goes on as it does while no agent runs: the fail mode is in the rules.
            log.error("closing a queue that cannot be read", extra=fields(endpoint=pod.endpoint, error=error))
            self.remove(pod.endpoint)

    def _release(self, now: Instant, deadline: int | None) -> None:
        due = deadline is not None and deadline <= now.mono_ns
        take = (lambda: self._datapath.expire(now)) if due else self._datapath.take_releases
        for endpoint, release in self._guard(take) or ():
            if endpoint in self._queues:
                self._queues[endpoint].release((release,))
        for endpoint, data in self._guard(self._datapath.take_sends) or ():
            if endpoint in self._queues:
                self._queues[endpoint].send(data)
        for pod in self._queues.values():
            pod.drop_forgotten(now)

    def _obey(self) -> None:
        try:
            os.eventfd_read(self._wakeup)
        except BlockingIOError:
            return
        while not self._commands.empty():
            self._commands.get()()


def _seconds_until(deadline: int | None) -> float:
    if deadline is None:
        return _HOUSEKEEPING_S
    return min(max(deadline - time.monotonic_ns(), 0) / 1e9, _HOUSEKEEPING_S)
