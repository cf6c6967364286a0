"""The network and the two nodes of one run: namespaces, configuration folders, keys and agent processes."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec
import yaml

from agent.config import API_VERSION, KIND
from agent.demo import resolver, story
from agent.demo.guests import Guest, ask
from agent.demo.ledger import Ask, Ledger, Seat
from agent.demo.tap import PORT, Tap
from agent.flowlog import FlowRecord
from agent.lab import Lab, LabPod
from agent.observe import LIVE, subscribe
from trireme_py.errors import KernelError, TriremeError

WORD: Final = "demo"
TRUST_DOMAIN: Final = "beer.example"
SERVICE_PORT: Final = 80
READY_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 5.0
LOG_TAIL_LINES: Final = 15
POLICY_FILE: Final = "policies.yaml"

SERVER_NODE: Final = "server"
CLIENT_NODE: Final = "client"
PLACEMENT: Final[Mapping[str, tuple[str, ...]]] = {
    SERVER_NODE: (story.TAP, story.RESOLVER, story.IMPOSTOR),
    CLIENT_NODE: (story.APPROVED, story.OTHER),
}
"""Which pods each node holds; each pod's namespace belongs to one agent."""


class StageError(TriremeError):
    """The stage could not be built: an agent or a command of ours did not do what it should."""


class Node:
    """One node: its configuration folder, its agent process and the reader of its verdicts."""

    def __init__(self, name: str, folder: Path, ledger: Ledger) -> None:
        self.name = name
        self.folder = folder
        self.config = folder / "config"
        self.runtime = folder / "run"
        self.log = folder / "agent.log"
        self._ledger = ledger
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self.config.mkdir(parents=True)

    def write(self, name: str, text: str) -> None:
        """Put a file into the configuration folder in one step: the agent never sees half of it."""
        fresh = self.folder / f"{name}.new"
        fresh.write_text(text, encoding="utf-8")
        fresh.rename(self.config / name)

    def remove(self, name: str) -> None:
        (self.config / name).unlink()

    def start(self) -> None:
        """Start the agent; it is ready when :meth:`wait_until_ready` returns."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "agent.cli", "agent", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours to handle: agents stop after the guests
            )
        threading.Thread(target=self._watch, name=f"watch-{self.name}", daemon=True).start()

    def wait_until_ready(self) -> None:
        """Wait until the agent answers on its observe socket, and read its verdicts from then on.

        Raises :class:`StageError` if it ends or takes too long.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                connection = subscribe(self.runtime / "observe.sock")
            except KernelError:
                assert self._process is not None
                if self._process.poll() is not None:
                    raise StageError(f"the agent of node {self.name} did not start") from None
                if time.monotonic() > deadline:
                    raise StageError(
                        f"the agent of node {self.name} is not ready after {READY_TIMEOUT_S:.0f} s"
                    ) from None
                time.sleep(0.05)  # there is nothing to wait on before the socket is there
            else:
                self._follow(connection)
                return

    def _follow(self, connection: socket.socket) -> None:

        def read() -> None:
            with connection, connection.makefile("rb") as lines:
                for line in lines:
                    if line != LIVE:
                        self._ledger.judged(msgspec.json.decode(line, type=FlowRecord))

        threading.Thread(target=read, name=f"follow-{self.name}", daemon=True).start()

    def _watch(self) -> None:
        assert self._process is not None
        code = self._process.wait()
        if not self._stopping.is_set():
            self._ledger.broke(f"the agent of node {self.name} ended with exit code {code}")

    def stop(self) -> None:
        """End the agent: politely, then not."""
        self._stopping.set()
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log_tail(self) -> str:
        """Return the last lines of the agent's log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:])


def trireme(folder: Path, *arguments: str) -> str:
    """Run a ``trireme`` command in ``folder`` and return what it printed. Raises :class:`StageError`."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "agent.cli", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StageError(f"trireme {' '.join(arguments)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Stage:
    """Everything one run needs, built on entry and removed on exit: network, nodes, tap and guests."""

    def __init__(self, mode: str, families: tuple[int, ...], folder: Path, ledger: Ledger) -> None:
        """``mode``: ``psk`` or ``pki``. ``folder``: an empty folder for keys, configuration and logs."""
        self._mode = mode
        self._folder = folder
        self._ledger = ledger
        self.seats = tuple(Seat(guest, family) for guest in story.GUESTS for family in families)
        self.queries = tuple(Seat(guest, family, resolves=True) for guest in story.GUESTS for family in families)
        self._lab = Lab(WORD)
        self._pods: dict[str, LabPod] = {}
        self._closers = ExitStack()
        self.nodes = {name: Node(name, folder / f"node-{name}", ledger) for name in PLACEMENT}

    def __enter__(self) -> Stage:
        with ExitStack() as building:
            building.callback(self._lab.close)
            self._build(building)
            self._closers = building.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What is half removed cannot be removed by name later: a second Ctrl-C waits.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._closers.close()
        finally:
            signal.signal(signal.SIGINT, previous)

    def _build(self, building: ExitStack) -> None:
        self._lab.__enter__()
        for name in story.LABELS:
            self._pods[name] = self._lab.add_pod(name)
        self.service = self._lab.add_service(self._pods[story.TAP], port=SERVICE_PORT, target_port=PORT)
        self.dns = self._lab.add_service(self._pods[story.RESOLVER], port=resolver.PORT, target_port=resolver.PORT)
        for guest in story.GUESTS:
            for server in PLACEMENT[SERVER_NODE]:
                self._lab.masquerade(self._pods[guest], self._pods[server])
        credentials = _CREDENTIALS[self._mode](self._folder, tuple(self.nodes.values()))
        for node in self.nodes.values():
            node.write("agent.yaml", self._agent_yaml(node, credentials))
            node.write("namespace.yaml", story.namespace_yaml())
            for pod in PLACEMENT[node.name]:
                self.set_labels(pod, story.LABELS[pod])
            building.callback(node.stop)
            node.start()
        for node in self.nodes.values():
            node.wait_until_ready()
        tap = Tap(self._pods[story.TAP], self._ledger)
        building.callback(tap.close)
        addresses: dict[int, resolver.Address] = {4: self.service.ipv4, 6: self.service.ipv6}
        for name in (story.RESOLVER, story.IMPOSTOR):
            building.callback(resolver.Resolver(self._pods[name], name, addresses, self._ledger).close)

    def _agent_yaml(self, node: Node, credentials: Mapping[str, str]) -> str:
        return yaml.safe_dump(
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "spec": {
                    "trustDomain": TRUST_DOMAIN,
                    "mode": self._mode,
                    "credentials": dict(credentials),
                    "podRanges": ["10.77.0.0/16", "fd77::/16"],  # those of agent.lab
                    "nodeNetworkNamespace": str(self._lab.router.path),
                    "metrics": "off",
                    "flowLog": str(node.folder / "flows.jsonl"),
                    "runtimeDirectory": str(node.runtime),
                },
            },
            sort_keys=False,
        )

    def seat_guests(self) -> None:
        """Let the guests begin to ask for beer, through the Service's addresses."""
        for seat in self.seats:
            address = self.service.ipv4 if seat.family == 4 else self.service.ipv6
            self._seat(seat, partial(ask, seat, address, SERVICE_PORT))

    def seat_queries(self) -> None:
        """Let the guests begin to look up the tap's name, through the addresses of the resolver's Service."""
        for seat in self.queries:
            address = self.dns.ipv4 if seat.family == 4 else self.dns.ipv6
            self._seat(seat, partial(resolver.look_up, seat, address))

    def _seat(self, seat: Seat, visit: Callable[[], Ask]) -> None:
        guest = Guest(self._pods[seat.guest], seat, visit, self._ledger)
        self._closers.callback(guest.close)
        self._closers.callback(guest.stop)  # runs first, and for all: they stop side by side

    def take_over(self) -> None:
        """From now on the Service of the resolver leads to the impostor."""
        self.dns = self._lab.retarget(self.dns, self._pods[story.IMPOSTOR])

    def set_labels(self, pod: str, labels: Mapping[str, str]) -> None:
        """Write the pod's object, on the node that holds it."""
        for node in self.nodes.values():
            if pod in PLACEMENT[node.name]:
                node.write(f"pod-{pod}.yaml", story.pod_yaml(pod, labels, self._pods[pod]))

    def apply_policies(self, policies: str) -> None:
        """Every node gets every policy, as in a cluster."""
        for node in self.nodes.values():
            node.write(POLICY_FILE, policies)

    def delete_policies(self) -> None:
        for node in self.nodes.values():
            node.remove(POLICY_FILE)


def _preshared_key(folder: Path, nodes: tuple[Node, ...]) -> Mapping[str, str]:
    """One key for all nodes, copied to each."""
    trireme(folder, "key", "new", "psk.key")
    for node in nodes:
        shutil.copy2(folder / "psk.key", node.folder / "psk.key")  # copy2 keeps mode 0600
    return {"presharedKey": "../psk.key"}


def _certificates(folder: Path, nodes: tuple[Node, ...]) -> Mapping[str, str]:
    """An authority, and for each node a key that stays there; only the request and the certificate travel."""
    trireme(folder, "ca", "init", "ca", "--trust-domain", TRUST_DOMAIN)
    for node in nodes:
        trireme(node.folder, "node", "request", "identity", "--name", node.name)
        shutil.copy(node.folder / "identity" / "node.csr", folder / f"{node.name}.csr")
        trireme(folder, "ca", "sign", f"{node.name}.csr", "--ca", "ca", "--out", f"{node.name}.crt", "--yes")
        shutil.copy(folder / f"{node.name}.crt", node.folder / "identity" / "node.crt")
    # node.crt holds the authority's certificate behind the node's own.
    return {
        "key": "../identity/node.key",
        "certificate": "../identity/node.crt",
        "authority": "../identity/node.crt",
    }


_CREDENTIALS: Final[Mapping[str, Callable[[Path, tuple[Node, ...]], Mapping[str, str]]]] = {
    "psk": _preshared_key,
    "pki": _certificates,
}
"""Each makes the keys of all nodes by the commands a user would run, and returns ``spec.credentials``."""
