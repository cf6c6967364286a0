"""Holds pods to their policy: the data path, its thread, the pods' queues and their rules, as one.

The order of steps is the point of this module. A queue is open before the first rule sends a packet to it; an epoch is
known to the data path and to the queue before the rules name it; rules outlive everything else.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from agent import conntrack
from agent.failmode import FailMode, FailureCause, verdict_for_failure
from agent.interfaces import addresses_of
from agent.logs import fields
from agent.loop import Loop
from agent.marks import Marks
from agent.metrics import QUEUE_ERRORS, QueueReading
from agent.nfqueue import CrashGuard, PodQueue
from agent.own_node import NodeRules
from agent.rules import RuleBackend
from agent.ruleset import OwnNode, PodRules
from trireme_py.datapath import Datapath, Gauges
from trireme_py.errors import KernelError
from trireme_py.flows import Live, Tuple5
from trireme_py.identities import LocalIdentity
from trireme_py.model import Address, Direction, DropReason, PolicyView, Reason, Verdict

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOP_PATIENCE_S: Final = 30
"""The data path's thread answers between two packets; this is a thousand times longer than it ever takes."""
WIND_UP_S: Final = 0.5
"""How long a stopping agent waits for exchanges that are under way, while new ones wait for the next agent. A round
trip is enough for one; a client that has gone in the midst of its own would keep us for 20 s."""
WIND_UP_LOOK_S: Final = 0.005


@dataclass(slots=True)
class _Attached:
    pod: str
    namespace: Path
    queue: PodQueue
    suspects: dict[Tuple5, Live | None] = field(default_factory=dict)
    """Remembered connections that conntrack did not have when it was last asked."""


@dataclass(frozen=True, slots=True)
class DatapathReading:
    """The counters of the data path and its shell at one moment."""

    queues: QueueReading
    gauges: Gauges
    drops: Mapping[DropReason, int]
    unproven_translations: int
    crashes: int
    unrecorded: Mapping[tuple[Direction, Reason], int]
    """Connections that the fast path has accepted and that became no event."""
    lookups: Mapping[str, int]
    """Assertions that peers presented, by what became of them."""


class PodEnforcement:
    """Implements :class:`agent.enforcing.Enforcement`. Use it from one thread, which is not the data path's."""

    def __init__(
        self,
        datapath: Datapath,
        loop: Loop,
        guard: CrashGuard,
        backend: RuleBackend,
        *,
        marks: Marks,
        queue: int,
        fail_mode: FailMode,
        node: NodeRules | None = None,
        open_queue: Callable[..., PodQueue] = PodQueue,
    ) -> None:
        """``node``: by whose rules pods know their own node; None: they do not, and it is judged by address.

        ``open_queue``: makes a pod's queue for this data path, as PodQueue does.
        """
        self._datapath = datapath
        self._loop = loop
        self._guard = guard
        self._backend = backend
        self._marks = marks
        self._queue = queue
        self._fail_mode = fail_mode
        self._node = node
        self._open_queue = open_queue
        self._attached: dict[int, _Attached] = {}
        self._past = QueueReading()
        """Counters of queues that are closed, so that sums never fall."""

    def addresses(self, namespace: Path) -> tuple[Address, ...]:
        return tuple(sorted(addresses_of(namespace)))

    def epoch_in_force(self, namespace: Path) -> int | None:
        return self._backend.read_state(namespace, self._marks)

    def epochs_in_use(self, namespace: Path) -> set[int]:
        return conntrack.epochs_in_use(namespace, self._marks)

    def serving(self, endpoint: int) -> bool:
        return any(queue.endpoint == endpoint for queue in self._loop.queues)

    def attach(
        self,
        endpoint: int,
        pod: str,
        namespace: Path,
        *,
        addresses: tuple[Address, ...],
        identity: LocalIdentity | None,
        policy: PolicyView,
        epoch: int,
        lay: bool = True,
    ) -> None:
        queue = self._open_queue(
            namespace,
            endpoint,
            self._datapath,
            self._guard,
            marks=self._marks,
            epoch=epoch,
            mode=self._fail_mode,
            queue=self._queue,
        )
        self._attached[endpoint] = _Attached(pod, namespace, queue)

        def take_on() -> None:
            self._datapath.add_endpoint(endpoint, pod, addresses, identity, policy)
            self._loop.add(queue)

        self._on_loop(take_on)
        try:
            if lay:
                self.lay(endpoint)
        except KernelError:
            self.detach(endpoint)
            raise

    def lay(self, endpoint: int) -> None:
        self.lay_node()
        self._lay(self._attached[endpoint])

    def lay_node(self) -> None:
        """Lay the node's own rules if that was not done yet; the pods' rely on them. Raises KernelError."""
        if self._node is not None:
            self._node.lay()

    def set_identity(self, endpoint: int, identity: LocalIdentity) -> None:
        self._on_loop(lambda: self._datapath.set_identity(endpoint, identity))

    def forget_peers(self) -> None:
        """Other keys are in use: let everybody be verified anew."""
        self._on_loop(self._datapath.forget_peers)

    def set_policy(self, endpoint: int, policy: PolicyView, epoch: int) -> None:
        attached = self._attached[endpoint]

        def swap() -> None:
            self._datapath.set_policy(endpoint, policy)
            attached.queue.epoch = epoch

        self._on_loop(swap)

    def lay_epoch(self, endpoint: int) -> None:
        attached = self._attached[endpoint]
        self._backend.set_epoch(attached.namespace, self._rules(attached.queue.epoch))

    def wind_up(self) -> None:
        """Let no TCP connection begin any more, and return when those that were about to have come to their end.

        To be called before the last :meth:`detach`. Half an exchange is lost with the agent, and an application that
        counts its connection as made would wait for long; a SYN that is dropped now comes again in a second.
        """
        self._on_loop(self._datapath.wind_up)
        began_s = time.monotonic()
        while (left := self._on_loop(self._unfinished)) and time.monotonic() < began_s + WIND_UP_S:
            time.sleep(WIND_UP_LOOK_S)
        took_ms = round((time.monotonic() - began_s) * 1000)
        log.info("letting the pods go", extra=fields(exchanges_left=left, waited_ms=took_ms))

    def _unfinished(self) -> int:
        waiting = sum(read_queue(queue).backlog for queue in self._loop.queues)
        return waiting + self._datapath.unproven()

    def detach(self, endpoint: int) -> None:
        attached = self._attached.pop(endpoint)

        def let_go() -> None:
            if self.serving(endpoint):
                self._past = add_readings(self._past, replace(read_queue(attached.queue), backlog=0))
            attached.queue.release(self._datapath.remove_endpoint(endpoint))
            self._loop.remove(endpoint)

        self._on_loop(let_go)

    def remove_rules(self, namespace: Path) -> None:
        self._backend.remove(namespace)

    def follow_node(self) -> None:
        """Have every pod know the addresses that its node has now. Raises KernelError with what was refused."""
        if self._node is None or not self._node.changed():
            return
        addresses = frozenset(self._node.own.addresses)
        self._on_loop(lambda: self._datapath.set_node_addresses(addresses))
        self._on_each(lambda _, attached: self._lay(attached))

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Lay the rules again, the node's and every pod's, where somebody changed them; forget what has ended.

        With ``parts`` calls for all, each ``part`` once, nobody waits for the rules of every pod.
        Raises KernelError with what each namespace answered that refused.
        """
        refusals = []
        try:
            if self._node is not None and part == 0:
                self._node.verify()
        except KernelError as error:
            refusals.append(str(error))

        def look(endpoint: int, attached: _Attached) -> None:
            if endpoint % parts != part:
                return
            if self._lay(attached):
                log.error(
                    "rules had been changed by somebody else and were laid again",
                    extra=fields(pod=attached.pod, namespace=attached.namespace),
                )
            self._forget_dead(endpoint, attached)

        self._on_each(look, refusals)

    def _lay(self, attached: _Attached) -> bool:
        return self._backend.apply(attached.namespace, self._rules(attached.queue.epoch))

    def _on_each(self, step: Callable[[int, _Attached], object], refusals: Iterable[str] = ()) -> None:
        """Do ``step`` for each pod. A pod may have power over its namespace, and must not keep the others from it."""
        refused = list(refusals)
        for endpoint, attached in self._attached.items():
            if not attached.namespace.exists():
                continue  # on its way out; the pod is let go at the next tick
            try:
                step(endpoint, attached)
            except KernelError as error:
                refused.append(f"{attached.pod}: {error}")
        if refused:
            raise KernelError("; ".join(refused))

    def read(self) -> DatapathReading:
        """Read all counters between two packets; may be called from any thread."""

        def here() -> DatapathReading:
            queues = self._past
            for queue in self._loop.queues:
                queues = add_readings(queues, read_queue(queue))
            return DatapathReading(
                queues,
                self._datapath.gauges(),
                dict(self._datapath.drops),
                self._datapath.unproven_translations,
                self._guard.crashes,
                self._datapath.unrecorded(),
                self._datapath.lookups(),
            )

        return self._on_loop(here)

    def _forget_dead(self, endpoint: int, attached: _Attached) -> None:
        """Forget connections that conntrack twice in a row did not have; a young one is not marked there at once."""
        known = self._on_loop(lambda: self._datapath.remembered(endpoint))
        if not known:
            attached.suspects = {}
            return
        living: set[Tuple5] = set()
        for one in conntrack.sweep(attached.namespace, self._marks):
            for source, sport, destination, dport in (one.original, one.reply):
                living.add((one.protocol, source, sport, destination, dport))
                living.add((one.protocol, destination, dport, source, sport))
        suspects = attached.suspects
        dead = attached.suspects = {tuple5: live for tuple5, live in known.items() if tuple5 not in living}
        # The same one twice, and not two in turn on the same ports.
        gone = {tuple5: live for tuple5, live in dead.items() if tuple5 in suspects and suspects[tuple5] is live}
        if gone:
            self._on_loop(lambda: self._datapath.forget(endpoint, gone))

    def _rules(self, epoch: int) -> PodRules:
        # What the kernel does while nobody listens is the answer of the one function that decides about failure.
        bypass = verdict_for_failure(self._fail_mode, FailureCause.SHUTDOWN) is Verdict.PASS
        return PodRules(self._marks, epoch, self._queue, bypass, self._node.own if self._node else OwnNode())

    def _on_loop(self, function: Callable[[], T]) -> T:
        try:
            return self._loop.call(function).result(LOOP_PATIENCE_S)
        except TimeoutError:
            # Nothing judges any more and nothing here can mend it. Dying is safe: rules and marks stay, what is new
            # waits, and whoever started this process starts the next one.
            log.critical("the data path's thread does not answer; ending", extra=fields(after_s=LOOP_PATIENCE_S))
            os._exit(70)  # EX_SOFTWARE, sysexits.h


def read_queue(queue: PodQueue) -> QueueReading:
    """Return the counters of one queue, the kernel's and the shell's. Only on the loop's thread."""
    kernel, shell = queue.kernel_counters(), queue.counters
    errors = (shell.verdict_failures, shell.send_failures, shell.lost_tickets, shell.forgotten)
    return QueueReading(
        packets=kernel.total,
        kernel_dropped=kernel.queue_dropped,
        user_dropped=kernel.user_dropped,
        backlog=kernel.waiting,
        truncated=shell.truncated,
        failures=Counter(shell.failures),
        errors=Counter(dict(zip(QUEUE_ERRORS, errors, strict=True))),
    )


def add_readings(one: QueueReading, other: QueueReading) -> QueueReading:
    """Return the sum of two readings."""
    return QueueReading(
        packets=one.packets + other.packets,
        kernel_dropped=one.kernel_dropped + other.kernel_dropped,
        user_dropped=one.user_dropped + other.user_dropped,
        backlog=one.backlog + other.backlog,
        truncated=one.truncated + other.truncated,
        failures=Counter(one.failures) + Counter(other.failures),
        errors=Counter(one.errors) + Counter(other.errors),
    )
