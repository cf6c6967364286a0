"""An agent that waits for another to end, and goes on where that one left off: what an update of a DaemonSet does.

::

    shop/client (app=client), shop/guest (app=guest) ── router ── shop/server (app=server, TCP 80)
"""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.kubernetes.lastknown import MARK
from agent.lab import LabPod
from tests.harness.agent_process import PATIENCE_S, AgentProcess, Configuration, trireme
from tests.harness.traffic import REFUSAL_S, Server, ask, open_socket, refused
from tests.kernel.test_cluster_mode import PORT, Site, site

__all__ = ["site"]

pytestmark = pytest.mark.kernel

HELD = 3


@pytest.fixture
def guest(site: Site) -> LabPod:
    return site.lab.add_pod("guest")


@pytest.fixture
def busy(site: Site, guest: LabPod) -> Iterator[Site]:
    with Server(site.server, PORT):
        for name, pod in (("client", site.client), ("server", site.server), ("guest", guest)):
            site.pin(pod)
            site.pod(name, pod)
        site.policy("client")
        yield site


class Waiting(AgentProcess):
    """An agent that finds another one at work."""

    def __enter__(self) -> Waiting:
        self.wait_for("ready to take over")
        return self


def epochs(agent: AgentProcess) -> list[str]:
    return sorted(line.partition("pod=")[2] for line in agent.lines if "pod enforced" in line)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_next_agent_is_there_when_the_first_one_ends(busy: Site, guest: LabPod, end: signal.Signals) -> None:
    site = busy
    with (
        AgentProcess(site.configuration) as first,
        open_socket(site.client, site.server.ipv4) as connection,
        Waiting(site.configuration) as second,
    ):
        connection.settimeout(PATIENCE_S)
        connection.connect((str(site.server.ipv4), PORT))
        assert not epochs(second)
        assert ask(site.client, site.server.ipv4, PORT) == b"hello", "it has taken nothing from the first one"
        first.end(end)
        assert f"pods={HELD}" in second.wait_for("msg=ready")
        assert epochs(second) == epochs(first), "every pod goes on under its epoch"
        connection.sendall(b"alive")
        assert connection.recv(100) == b"alive"
        for address in (site.server.ipv4, site.server.ipv6):
            assert ask(site.client, address, PORT) == b"hello"
            assert refused(guest, address, PORT)


def test_connections_that_meet_the_change_are_delayed_at_most_and_forbidden_ones_never_made(
    busy: Site, guest: LabPod
) -> None:
    site, over = busy, threading.Event()

    def call(who: LabPod, patience_s: float) -> list[bool]:
        """Connect again and again until it is over; tell of each whether it was made."""
        made = []
        while not over.is_set():
            with open_socket(who, site.server.ipv4) as caller:
                caller.settimeout(patience_s)
                try:
                    caller.connect((str(site.server.ipv4), PORT))
                    caller.sendall(b"hello")
                    made.append(caller.recv(100) == b"hello")
                except OSError:
                    made.append(False)
        return made

    with ThreadPoolExecutor() as pool, AgentProcess(site.configuration) as first, Waiting(site.configuration) as second:
        try:
            permitted = [pool.submit(call, site.client, PATIENCE_S) for _ in range(4)]
            forbidden = [pool.submit(call, guest, REFUSAL_S) for _ in range(4)]
            first.end(signal.SIGTERM)
            first.wait_for("letting the pods go")
            second.wait_for("msg=ready")
            assert ask(site.client, site.server.ipv4, PORT) == b"hello"
        finally:
            over.set()
        assert all(all(caller.result()) for caller in permitted)
        assert sum(len(caller.result()) for caller in permitted) > len(permitted)
        assert not any(any(caller.result()) for caller in forbidden)


def test_what_changes_while_it_waits_is_in_force_when_its_turn_comes(busy: Site, guest: LabPod) -> None:
    site = busy
    with AgentProcess(site.configuration) as first, Waiting(site.configuration) as second:
        with first.after("policy in force", "pod=shop/server"):
            site.policy("guest")
        first.end(signal.SIGTERM)
        second.wait_for("msg=ready")
        assert epochs(second) != epochs(first)
        assert ask(guest, site.server.ipv4, PORT) == b"hello"
        assert refused(site.client, site.server.ipv4, PORT)


def test_one_that_waits_can_be_stopped_and_leaves_everything_as_it_is(busy: Site, guest: LabPod) -> None:
    site = busy
    with AgentProcess(site.configuration) as first:
        wait_until((site.configuration.runtime / "last-good" / MARK).exists)
        before = files(site.configuration)
        with Waiting(site.configuration) as second:
            assert second.end(signal.SIGTERM) == 0
        assert files(site.configuration) == before
        assert ask(site.client, site.server.ipv4, PORT) == b"hello"
        assert refused(guest, site.server.ipv4, PORT)
        assert first.process.poll() is None


def test_one_that_cannot_start_takes_nothing_from_the_one_that_runs(busy: Site, guest: LabPod) -> None:
    site = busy
    with AgentProcess(site.configuration) as first:
        site.configuration.write(
            "agent.yaml", (site.configuration.folder / "agent.yaml").read_text() + "  rules: bad\n"
        )
        second = AgentProcess(site.configuration)
        assert second.process.wait(PATIENCE_S) == 2
        site.configuration.write(
            "agent.yaml", (site.configuration.folder / "agent.yaml").read_text().replace("bad", "nft")
        )
        (site.configuration.folder.parent / "psk.key").unlink()
        second = AgentProcess(site.configuration)
        assert second.process.wait(PATIENCE_S) == 2
        assert "psk.key" in second.wait_for("trireme agent:")
        assert first.process.poll() is None
        assert ask(site.client, site.server.ipv4, PORT) == b"hello"
        assert refused(guest, site.server.ipv4, PORT)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("metrics", "192.0.2.1:9643", "spec.metrics 192.0.2.1:9643: Cannot assign requested address"),
        ("flowLog", "/proc/flows.jsonl", "flow log /proc/flows.jsonl"),
        ("nodeNetworkNamespace", "trm-nowhere", "spec.nodeNetworkNamespace"),
    ],
)
def test_one_that_could_not_hold_the_pods_takes_nothing_from_the_one_that_does(
    busy: Site, guest: LabPod, field: str, value: str, said: str
) -> None:
    site = busy
    with AgentProcess(site.configuration) as first:
        set_field(site.configuration, field, value)
        second = AgentProcess(site.configuration)
        assert second.process.wait(PATIENCE_S) == 2
        assert said in second.wait_for("trireme agent:")
        assert first.process.poll() is None
        assert ask(site.client, site.server.ipv4, PORT) == b"hello"
        assert refused(guest, site.server.ipv4, PORT)


def test_a_port_that_somebody_else_has_when_its_turn_comes_cuts_no_pod_off(busy: Site, guest: LabPod) -> None:
    """While it waits it cannot tell him from the agent before it, which has the same port until it ends."""
    site = busy
    with AgentProcess(site.configuration) as first, socket.create_server(("127.0.0.1", 0)) as other:
        at = f"127.0.0.1:{other.getsockname()[1]}"
        set_field(site.configuration, "metrics", at)
        with Waiting(site.configuration) as second:
            first.end(signal.SIGTERM)
            second.wait_for("an address is not there yet", f"spec.metrics {at}")
            assert f"pods={HELD}" in second.wait_for("msg=ready")
            assert ask(site.client, site.server.ipv4, PORT) == b"hello"
            assert refused(guest, site.server.ipv4, PORT)
            status = trireme("status", "--runtime-directory", str(site.configuration.runtime))
            assert f"spec.metrics {at}: Address already in use" in status.stdout
            other.close()
            assert second.scrape()["trireme_config_problems"] == 0


def set_field(configuration: Configuration, field: str, value: str) -> None:
    text = (configuration.folder / "agent.yaml").read_text()
    configuration.write("agent.yaml", re.sub(f"  {field}: .*", f"  {field}: {value}", text))


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def files(configuration: Configuration) -> dict[Path, bytes]:
    """Return the files of the runtime directory."""
    return {path: path.read_bytes() for path in configuration.runtime.rglob("*") if path.is_file()}
