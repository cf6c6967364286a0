from __future__ import annotations

import importlib
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from click.testing import CliRunner

from agent import checks
from agent.cli import main
from agent.commands.status import findings, render
from agent.commands.where import as_root
from agent.config import DEFAULT_RUNTIME_DIRECTORY
from agent.runtime import RuntimeDirectory
from agent.status import Queues, Status, StatusServer, read_status
from trireme_py.errors import KernelError

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
WELL = Status(
    version="1.2.3",
    kind="kubernetes",
    mode="pki",
    trust_domain="cluster.local",
    backend="iptables-nft",
    datapath="python",
    started=NOW - timedelta(hours=5),
    node="worker-1",
    pods=12,
    policies=34,
    revision=418,
    flows={"allow": 182310, "deny": 42},
    queues=Queues(packets=1000, backlog=1),
    identities_until=NOW + timedelta(minutes=48),
    certificate_until=NOW + timedelta(days=6),
)


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["status", "--runtime-directory", str(folder), *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_what_is_well_fits_on_one_screen() -> None:
    assert list(render(WELL, NOW)) == [
        "trireme-py 1.2.3   kubernetes   enforcement: on   failMode: closed",
        "Agent        node worker-1, ready, up 5 h",
        "Pods         12 enforced",
        "Policy       34 policies, revision 418",
        "Data path    python, backend iptables-nft, 1000 packets judged, 0 lost, 1 waiting",
        "Identity     pki of cluster.local, identities valid for 48 min, certificate valid for 6 d",
        "Flows        allow 182310   deny 42   audit 0",
        "Problems     none",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"silent": ("data path: nothing for 31 s",)}, "data path: nothing for 31 s"),
        ({"missing": ("no certificate yet",)}, "not ready: no certificate yet"),
        (
            {"installation": "lasts", "waited_for": "1: n2"},
            "(nodes without identities: 1: n2); to end it now: trireme install",
        ),
        ({"audit": True}, "nothing is refused by policy"),
        ({"queues": Queues(dropped=3)}, "dropped 3 packets"),
        ({"crashes": 1}, "1 unexpected exception of"),
        ({"unprotected": ("shop/vpn: CAP_NET_ADMIN",)}, "not protected: shop/vpn: CAP_NET_ADMIN"),
        ({"problems": ("Pod shop/web: no namespace",)}, "Pod shop/web: no namespace"),
    ],
)
def test_what_is_not_well_is_listed_last(change: dict[str, object], words: str) -> None:
    status = msgspec.structs.replace(WELL, **change)
    (found,) = findings(status)
    assert words in found
    assert list(render(status, NOW))[-2:] == ["Problems     1", f"  {found}"]


def test_one_is_not_many() -> None:
    shown = list(render(msgspec.structs.replace(WELL, policies=1, queues=Queues(packets=1)), NOW))
    assert shown[3] == "Policy       1 policy, revision 418"
    assert "1 packet judged" in shown[4]
    (line,) = [
        one.text
        for one in checks.agent(msgspec.structs.replace(WELL, pods=1, policies=1), "1.2.3", NOW)
        if one.anchor == "a-pods"
    ]
    assert line == "1 pod under enforcement, 1 policy in force"


def test_a_thread_that_is_silent_is_told_once() -> None:
    text = "reconciler: nothing for 31 s"
    assert len(findings(msgspec.structs.replace(WELL, silent=(text,), missing=(text,)))) == 1


def test_the_socket_is_root_s_and_tells_whoever_connects(tmp_path: Path) -> None:
    path = RuntimeDirectory(tmp_path).status_socket
    server = StatusServer(path, lambda: WELL)
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert read_status(path) == WELL
        code, shown, _ = run(tmp_path)
        assert (code, shown.splitlines()[-1]) == (0, "Problems     none")
        code, shown, _ = run(tmp_path, "-o", "json")
        assert code == 0
        assert json.loads(shown)["flows"] == {"allow": 182310, "deny": 42}
        assert json.loads(shown)["started"] == "2026-11-23T07:00:00Z"
    finally:
        server.close()
    assert not path.exists()


def test_findings_are_the_exit_status(tmp_path: Path) -> None:
    server = StatusServer(RuntimeDirectory(tmp_path).status_socket, lambda: msgspec.structs.replace(WELL, crashes=1))
    try:
        assert run(tmp_path)[0] == 1
    finally:
        server.close()


def test_without_an_agent_the_next_command_is_named(tmp_path: Path) -> None:
    code, shown, said = run(tmp_path)
    assert (code, shown) == (2, "")
    assert "trireme agent --config DIR" in said
    assert run(tmp_path, "--output", "yaml")[0] == 3


@contextmanager
def nobody() -> Iterator[None]:
    """Be a user without rights for a while, where this is root."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.parametrize("name", ["status", "check", "observe"])
def test_who_is_not_root_is_told_so(name: str) -> None:
    """And not that an option is wrong: the agent may run well."""
    importlib.import_module(f"agent.commands.{name}")  # nobody may not be able to
    with TemporaryDirectory() as parent:  # nobody can look into it, unlike into pytest's
        Path(parent).chmod(0o755)
        directory = Path(parent) / "run"
        directory.mkdir(mode=0o000)
        with nobody():
            done = CliRunner().invoke(main, [name, "--runtime-directory", str(directory)])
    assert done.exit_code == 2, done.output
    assert f"run: sudo trireme {name} --runtime-directory {directory}\n" in done.output
    assert f"{directory}/{'observe' if name == 'observe' else 'status'}.sock: is for root alone" in done.output
    assert as_root(name, Path(DEFAULT_RUNTIME_DIRECTORY)) == f"sudo trireme {name}"


def test_one_that_cannot_be_told_does_not_end_the_server(tmp_path: Path) -> None:
    path, calls = tmp_path / "status.sock", threading.Semaphore(0)

    def read() -> Status:
        if calls.acquire(blocking=False):
            return WELL
        calls.release()
        raise RuntimeError("not this time")

    server = StatusServer(path, read)
    try:
        with pytest.raises(KernelError, match="restart it"):
            read_status(path)
        assert read_status(path) == WELL
    finally:
        server.close()


@pytest.mark.parametrize(
    ("program", "shown"), [("trireme", "Usage: trireme status"), ("kubectl-trireme", "Usage: kubectl trireme status")]
)
def test_as_a_plugin_of_kubectl_it_says_so(tmp_path: Path, program: str, shown: str) -> None:
    command = tmp_path / program
    command.symlink_to(Path(sys.executable).with_name("trireme"))
    done = subprocess.run([command, "status", "--help"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith(shown)
