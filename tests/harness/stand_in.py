"""A stand-in for the data path, for tests of the kernel side: a function of the test judges each packet.

Everything around it is real: namespaces, rules, queues, the loop.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from agent.failmode import FailMode
from agent.lab import LabPod
from agent.loop import Loop
from agent.marks import FIRST_EPOCH, Marks
from agent.nfqueue import CrashGuard, PodQueue
from agent.rules import RuleBackend
from agent.ruleset import PodRules
from tests.harness.implementation import open_queue
from trireme_py.datapath import Caught
from trireme_py.model import DropReason, FlowEvent, Hook, Instant, Release, Result, Verdict

ACCEPT = Result(Verdict.ACCEPT)
PASS = Result(Verdict.PASS)
HOLD = Result(Verdict.HOLD)
DROP = Result(Verdict.DROP, DropReason.POLICY)

Judge = Callable[[Hook, Caught], Result]


@dataclass(frozen=True, slots=True)
class Seen:
    """One packet the stand-in was asked about."""

    endpoint: int
    hook: Hook
    data: bytes

    @property
    def protocol(self) -> int:
        return self.data[9] if self.data[0] >> 4 == 4 else self.data[6]

    @property
    def payload(self) -> bytes:
        """What follows the IP header (no options, no extension headers in these tests)."""
        return self.data[20:] if self.data[0] >> 4 == 4 else self.data[40:]


class StandIn:
    """Implements :class:`agent.nfqueue.DataPath` by asking ``judge``, which a test may replace at any time."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.seen: list[Seen] = []
        self.batches: list[int] = []
        self._changed = threading.Condition()

    def receive(self, now: Instant, endpoint: int, hook: Hook, batch: Sequence[Caught]) -> list[Result]:
        with self._changed:
            self.seen += (Seen(endpoint, hook, caught.data) for caught in batch)
            self.batches.append(len(batch))
            self._changed.notify_all()
        return [self.judge(hook, caught) for caught in batch]

    def wait_for(self, condition: Callable[[list[Seen]], bool]) -> None:
        """Wait until what was seen meets ``condition``."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.seen), timeout=10), self.seen

    def next_deadline(self) -> int | None:
        return None

    def expire(self, now: Instant) -> list[tuple[int, Release]]:
        raise AssertionError("no deadline was given")

    def take_releases(self) -> list[tuple[int, Release]]:
        return []

    def take_sends(self) -> list[tuple[int, bytes]]:
        return []

    def drain_events(self) -> list[FlowEvent]:
        return []


@dataclass(frozen=True, slots=True)
class Served:
    """Pods whose packets a stand-in judges."""

    stand_in: StandIn
    loop: Loop
    guard: CrashGuard
    queues: tuple[PodQueue, ...]
    rules: PodRules
    backend: RuleBackend


@contextlib.contextmanager
def served(
    backend: RuleBackend, judge: Judge, *pods: LabPod, marks: Marks | None = None, mode: FailMode = FailMode.CLOSED
) -> Iterator[Served]:
    """Lay rules in each pod and serve their queues; the endpoint's number is the pod's place in the arguments."""
    rules = PodRules(marks or Marks(), FIRST_EPOCH)
    stand_in, guard = StandIn(judge), CrashGuard()
    loop = Loop(stand_in, guard, lambda events: None)
    loop.start()
    try:
        queues = []
        for endpoint, pod in enumerate(pods):
            queue = open_queue(
                pod.path, endpoint, stand_in, guard, marks=rules.marks, epoch=rules.epoch, mode=mode, queue=rules.queue
            )
            loop.call(lambda queue=queue: loop.add(queue)).result()  # type: ignore[misc]
            queues.append(queue)
            backend.apply(pod.path, rules)
        yield Served(stand_in, loop, guard, tuple(queues), rules, backend)
    finally:
        loop.stop()


def address(pod: LabPod, family: int) -> str:
    """A pod's address of one family, as text."""
    return str(pod.ipv4 if family == socket.AF_INET else pod.ipv6)


def listen(pod: LabPod, family: int, port: int = 8080) -> socket.socket:
    return pod.run(lambda: socket.create_server((address(pod, family), port), family=family))


def connect(pod: LabPod, to: str | IPv4Address | IPv6Address, port: int = 8080, timeout: float = 10) -> socket.socket:
    return pod.run(lambda: socket.create_connection((str(to), port), timeout=timeout))


def datagram_socket(pod: LabPod, family: int, port: int = 0) -> socket.socket:
    def open_one() -> socket.socket:
        one = socket.socket(family, socket.SOCK_DGRAM)
        one.bind((address(pod, family), port))
        one.settimeout(10)
        return one

    return pod.run(open_one)


def transfer(sender: socket.socket, receiver: socket.socket, octets: int) -> None:
    """Send that many octets, nobody's pattern, and hold what arrives against them."""
    block = hashlib.blake2b(b"block").digest() * 1024
    sent, arrived = hashlib.sha256(), hashlib.sha256()

    def send() -> None:
        left = octets
        while left:
            piece = block[:left]
            sender.sendall(piece)
            sent.update(piece)
            left -= len(piece)

    thread = threading.Thread(target=send)
    thread.start()
    left = octets
    receiver.settimeout(20)
    while left:
        piece = receiver.recv(min(left, 1 << 16))
        assert piece, "the connection ended early"
        arrived.update(piece)
        left -= len(piece)
    thread.join()
    assert arrived.digest() == sent.digest()
