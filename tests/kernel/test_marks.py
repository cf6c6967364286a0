"""When an accepted connection gets its mark: packets that wait in a queue together, and what each of them is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from agent.lab import Lab, LabPod
from agent.marks import FIRST_EPOCH, Marks
from agent.nfqueue import CrashGuard, PodQueue
from agent.rules_restore import probe
from agent.ruleset import PodRules
from tests.harness import world
from tests.harness.implementation import open_queue
from tests.harness.injector import RawInjector
from tests.harness.segments import ACK, FIN, RST, tcp
from tests.harness.shop import Shop
from trireme_py.model import Instant

pytestmark = pytest.mark.kernel

PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A pod with an accepted connection of its own, whose queue nobody reads yet."""

    pod: LabPod
    queue: PodQueue
    segment: Callable[[int, bytes], bytes]
    """Make a segment of the connection, as the pod sends it, of flags and payload."""
    destination: str
    version: int

    def marked(self, *packets: bytes) -> int:
        """Have these wait together, and be judged. Return how many of them marked their connection."""
        with RawInjector(self.pod) as wire:
            for packet in packets:
                wire.send(packet, self.destination, self.version)
        assert self.queue.kernel_counters().waiting == len(packets)
        self.queue.start()
        deadline = time.monotonic() + PATIENCE_S
        while self.queue.kernel_counters().waiting:
            assert time.monotonic() < deadline, self.queue.kernel_counters()
            self.queue.service(Instant(time.monotonic_ns(), time.time()))
        return self._saved()

    def _saved(self) -> int:
        program = "iptables-save" if self.version == 4 else "ip6tables-save"
        (line,) = (
            line
            for line in self.pod.command(program, "-c", "-t", "mangle").splitlines()
            if "-A TRM-OUT" in line and "--save-mark" in line
        )
        return int(line[1 : line.index(":")])


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch, data_path: str, family: int) -> Iterator[Waiting]:
    monkeypatch.setattr(world, "IMPLEMENTATION", data_path)
    shop = Shop()
    connection = shop.assert_works(family=family)
    own, own_port, other, other_port = connection.key
    ends = (own, own_port), (other, other_port)
    destination = str(ip_address(other))
    with Lab("marks") as lab:
        pod = lab.add_pod("a")
        probe().apply(pod.path, PodRules(Marks(), FIRST_EPOCH))
        queue = open_queue(pod.path, 0, shop.client.datapath, CrashGuard(), marks=Marks(), epoch=FIRST_EPOCH)
        try:
            yield Waiting(
                pod, queue, lambda flags, payload: tcp(*ends, 1000, 1000, flags, payload), destination, family
            )
        finally:
            queue.close()


def test_the_mark_goes_on_the_last_of_those_that_must_not_be_overtaken(waiting: Waiting) -> None:
    data = waiting.segment(ACK, b"data")
    assert waiting.marked(data, data, data) == 1


def test_an_acknowledgement_that_waits_keeps_no_connection_from_its_mark(waiting: Waiting) -> None:
    """Were the agent killed now, the connection would go on."""
    data, acknowledgement = waiting.segment(ACK, b"data"), waiting.segment(ACK, b"")
    assert waiting.marked(data, acknowledgement, acknowledgement) == 3


@pytest.mark.parametrize("flags", [ACK | FIN, RST | ACK])
def test_the_end_of_a_connection_is_not_overtaken(waiting: Waiting, flags: int) -> None:
    data, end = waiting.segment(ACK, b"data"), waiting.segment(flags, b"")
    assert waiting.marked(data, end) == (flags == ACK | FIN)
