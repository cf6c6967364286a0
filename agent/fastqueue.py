"""One pod's queue, served by the C fast path.

Threads in C read the queue and answer what they know (docs/fastpath.md). What they park comes here, and is judged as
:class:`agent.nfqueue.PodQueue` judges everything.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from agent import netns
from agent.conntrack import open_netfilter
from agent.failmode import FailMode, FailureCause, verdict_for_failure
from agent.marks import Marks
from agent.nfqueue import Arrival, CrashGuard, DataPath, PodQueue, QueueCounters
from agent.ruleset import DEFAULT_QUEUE
from trireme_py._fastpath import Conntrack, Endpoint, Queue, Workers
from trireme_py.fast import Parked
from trireme_py.model import Hook, Instant, Result, Verdict

AT_ONCE: Final = 256
"""Parked packets that are judged together."""
_NUMBERS: Final = (0, 4)  # the kernel's names for the two hooks, in the order of the fast path's


class FastDataPath(DataPath, Protocol):
    """What this shell needs of :class:`trireme_py.fast.FastDatapath`."""

    def engine_endpoint(self, endpoint: int) -> Endpoint:
        """Return the endpoint's half in C."""

    def receive_parked(self, now: Instant, endpoint: int, hook: Hook, batch: Sequence[Parked]) -> Sequence[Result]:
        """Judge packets that the fast path parked; one result each, in the same order."""


@dataclass(frozen=True, slots=True)
class FastThreads:
    """What the queues of one agent share."""

    workers: Workers
    conntrack: Conntrack | None
    """The node's, to see what a dialled address was translated to; None: no such connection is answered in C."""


def worker_count() -> int:
    """Return how many threads serve queues: half the processors, as the pods want the others."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


class _Handle:
    """A parked packet, with the methods of NetfilterQueue's packets."""

    __slots__ = ("_data", "_id", "_queue", "_replacement", "handover", "hook", "mark")

    def __init__(self, queue: Queue, parked: tuple[int, int, int, bytes, bytes]) -> None:
        self._queue = queue
        self._id, self.mark, hook, self._data, self.handover = parked
        self.hook = _NUMBERS[hook]
        self._replacement: bytes | None = None

    def get_payload(self) -> bytes:
        return self._data

    def set_mark(self, mark: int) -> None:
        self.mark = mark

    def set_payload(self, data: bytes) -> None:
        self._replacement = data

    def drop(self) -> None:
        self._queue.answer(self._id, False, 0, None)

    def repeat(self) -> None:
        self._queue.answer(self._id, True, self.mark, self._replacement)


class FastQueue(PodQueue):
    """A pod's queue whose warm connections never reach Python. Otherwise as its parent."""

    __slots__ = ("_counted", "_epoch", "_fast", "_threads")

    def __init__(
        self,
        namespace: Path,
        endpoint: int,
        datapath: FastDataPath,
        guard: CrashGuard,
        threads: FastThreads,
        *,
        marks: Marks,
        epoch: int,
        mode: FailMode = FailMode.CLOSED,
        queue: int = DEFAULT_QUEUE,
    ) -> None:
        self._queue = None
        self._fast = datapath
        self._threads = threads
        self._counted = (0, 0, 0, 0, 0, 0)
        """The counters in C, once the queue is closed."""
        super().__init__(namespace, endpoint, datapath, guard, marks=marks, epoch=epoch, mode=mode, queue=queue)

    def _open(self, namespace: Path, queue: int) -> None:
        netlink = netns.run_inside(namespace, open_netfilter)
        marks = self._marks
        foreign_passes = verdict_for_failure(self._mode, FailureCause.RULE_ERROR) is Verdict.PASS
        carried = (Verdict.PASS, Verdict.PASS_CLEAR, Verdict.ACCEPT)
        passes, clears, accepts = (marks.answer(verdict, 0, self.epoch) for verdict in carried)
        self._queue = Queue(netlink.detach(), queue, (marks.mask, passes, clears, accepts), foreign_passes)

    def start(self) -> None:
        endpoint = self._fast.engine_endpoint(self.endpoint)
        self._queue.start(self._threads.workers, endpoint, self._threads.conntrack)

    def fileno(self) -> int:
        descriptor: int = self._queue.fileno()
        return descriptor

    def close(self) -> None:
        self._counted = self._queue.counters()
        self._queue.close()
        self._let_go()

    @property
    def epoch(self) -> int:
        """The epoch that accepted connections are marked with, here and in C."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = epoch
        if self._queue is not None:
            self._queue.set_accept(self._marks.answer(Verdict.ACCEPT, 0, epoch))

    @property
    def counters(self) -> QueueCounters:
        arrived, left, truncated, foreign, refused, _ = self._counters_in_c()
        own = self._own_counters
        return replace(
            own,
            packets=Counter({Hook.NETWORK: arrived, Hook.APPLICATION: left}),
            truncated=truncated,
            failures=own.failures + Counter({FailureCause.RULE_ERROR: foreign}),
            verdict_failures=own.verdict_failures + refused,
        )

    @property
    def turned_away(self) -> int:
        """Packets that the fast path dropped in place of parking them: no room, or too many a second. The data path's
        drops have them, too."""
        return self._counters_in_c()[5]

    def _counters_in_c(self) -> tuple[int, int, int, int, int, int]:
        counters: tuple[int, int, int, int, int, int] = self._queue.counters() if self._queue else self._counted
        return counters

    def _read(self) -> None:
        for parked in self._queue.take(AT_ONCE):
            self._arrive(_Handle(self._queue, parked))

    def _read_on(self) -> None:
        self._queue.poll()
        self._read()

    def _ask(self, now: Instant, hook: Hook, tickets: list[int], run: list[Arrival]) -> Sequence[Result]:
        batch = [
            Parked(ticket, arrival.data, arrival.packet.handover) for ticket, arrival in zip(tickets, run, strict=True)
        ]
        return self._fast.receive_parked(now, self.endpoint, hook, batch)
