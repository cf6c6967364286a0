"""The lanes of a comparison: pairs of pods, each behind a router of its own, that differ in what protects them.

All lanes are there at once and are loaded in turns, so that each turn of one has a turn of every other right beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from agent.lab import Lab, LabNamespace, LabPod
from agent.marks import FIRST_EPOCH, Marks
from agent.rules_restore import probe
from agent.ruleset import PodRules

ROOT: Final = Path(__file__).parents[1]
BUILD: Final = ROOT / "build" / "bench"
PORT: Final = 80


@dataclass(frozen=True, slots=True)
class Protection:
    """What a lane's pods are protected by: our data path (bench/protect.py)."""

    impl: str
    mode: str = "psk"
    policies: int = 1
    peers: int = 0
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Kind:
    """What makes a lane: its name in tables, and what is behind its queues."""

    name: str
    what: Protection | str
    """``none``, ``conntrack``, ``floor`` (C) or ``netfilterqueue``, if not ours."""


UNPROTECTED: Final = Kind("unprotected", "none")
TRACKED: Final = Kind("connection tracking, one rule", "conntrack")
"""What remembering anything of a connection in the kernel costs, whoever does it."""
FLOOR: Final = Kind("queue floor (C)", "floor")
KINDS: Final = (
    UNPROTECTED,
    FLOOR,
    Kind("NetfilterQueue, accept-only", "netfilterqueue"),
    Kind("ours, Python, PSK", Protection("python")),
    Kind("ours, C, PSK", Protection("c")),
    Kind("ours, C, PKI", Protection("c", "pki")),
)


class Program:
    """A program that says when it is ready and ends with its input; a context manager."""

    def __init__(self, argv: list[str], inside: LabNamespace | None = None) -> None:
        def start() -> subprocess.Popen[str]:
            return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

        self.process = inside.run(start) if inside is not None else start()

    def __enter__(self) -> Program:
        self._hear()
        return self

    def tell(self, command: str) -> None:
        """Give a command and wait until it is carried out."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        self._hear()

    def _hear(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args!r} ended with {self.process.wait()}")
        assert json.loads(line) == {"ready": 1}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.communicate()

    def cpu_ns(self) -> int:
        """Return the processor time of all its threads so far."""
        tasks = Path("/proc", str(self.process.pid), "task").iterdir()
        return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks)


def private_kb(pid: int) -> int:
    """Return the memory that a process shares with nobody."""
    lines = Path("/proc", str(pid), "smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def busy_s() -> float:
    """Return the seconds that all processors have not been idle so far (proc_stat(5)), in steps of a tick."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text("ascii").split()[1:9])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Lane:
    """A lane that stands."""

    kind: Kind
    lab: Lab
    client: LabPod
    server: LabPod
    program: Program | None
    turns: list[dict[str, Any]] = field(default_factory=list)

    def load(self, pod: LabPod, *words: object) -> dict[str, Any]:
        """Run bench/load.c in a pod to its end, and return what it measured."""
        argv = [str(BUILD / "load"), *map(str, words)]
        done = pod.run(lambda: subprocess.run(argv, capture_output=True, text=True, check=False))
        if done.returncode != 0:
            raise SystemExit(f"{self.kind.name}: {' '.join(argv)}: {done.stderr.strip()}")
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def connect(self, flight: int, seconds: float, most: int = 200_000) -> dict[str, Any]:
        """Load it with connections, ``flight`` at a time. Adds ``rate`` and ``cpu_us``, the protection's for each."""
        before = self.program.cpu_ns() if self.program else 0
        result = self.load(self.client, "connect", self.server.ipv4, PORT, flight, most, seconds)
        spent = (self.program.cpu_ns() if self.program else 0) - before
        count = max(result["connects"], 1)
        result["rate"] = count / max(result["elapsed"], 1) * 1e9
        result["cpu_us"] = spent / count / 1000
        return result

    def datagrams(self, flows: int, later: int, port: int = PORT) -> dict[str, Any]:
        return self.load(self.client, "datagrams", self.server.ipv4, port, flows, later)

    def stream(self, seconds: float) -> dict[str, float]:
        """Load it with one stream. Returns its ``octets``, its ``rate`` (octets a second), and ``busy``: the processor
        time of the whole machine meanwhile, in seconds."""
        before = busy_s()
        result = self.load(self.client, "stream", self.server.ipv4, PORT, seconds)
        octets = float(result["octets"])
        return {"octets": octets, "rate": octets / result["elapsed"] * 1e9, "busy": busy_s() - before}

    def queued(self) -> int:
        """Return how many packets have gone through the queues of both ends so far."""
        path = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
        tables = [pod.run(lambda: path.read_text(encoding="ascii").split()) for pod in (self.client, self.server)]
        return sum(int(columns[7]) for columns in tables if columns)


def open_lane(stack: ExitStack, number: int, kind: Kind) -> Lane:
    """Make the namespaces and start what runs in them; all of it ends with ``stack``."""
    lab = stack.enter_context(Lab(f"bench{number}"))
    client, server = lab.add_pod("a"), lab.add_pod("b")
    program = _protect(stack, lab, client, server, kind)
    stack.enter_context(Program([str(BUILD / "load"), "serve", str(PORT)], server))
    lane = Lane(kind, lab, client, server, program)
    lane.connect(16, 0.3)  # identities are exchanged, caches are warm
    return lane


def _protect(stack: ExitStack, lab: Lab, client: LabPod, server: LabPod, kind: Kind) -> Program | None:
    paths = [str(client.path), str(server.path)]
    match kind.what:
        case "none":
            return None
        case "conntrack":
            for pod in (client, server):
                pod.command("iptables-nft", "-A", "INPUT", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")
            return None
        case "floor":
            argv = [str(BUILD / "floor"), "1", *paths]
        case "netfilterqueue":
            argv = [sys.executable, "-m", "bench.accept_only", *paths]
        case Protection() as what:
            pods = {
                name: {"path": str(pod.path), "ipv4": str(pod.ipv4), "ipv6": str(pod.ipv6)}
                for name, pod in (("a", client), ("b", server))
            }
            wanted = {
                "impl": what.impl,
                "mode": what.mode,
                "policies": what.policies,
                "peers": what.peers,
                "workers": what.workers,
                "router": str(lab.router.path),
                "pods": pods,
            }
            return stack.enter_context(Program([sys.executable, "-m", "bench.protect", json.dumps(wanted)]))
        case other:
            raise ValueError(other)
    program = stack.enter_context(Program(argv))
    for pod in (client, server):
        probe().apply(pod.path, PodRules(Marks(), FIRST_EPOCH))
    return program
