"""The agent's end of the CNI plugin, asked by the real plugin about real namespaces."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from agent import netns
from agent.kubernetes.cni import REQUESTS, CniServer
from agent.kubernetes.cni_wire import MAGIC, MAX_INPUT, REQUEST
from agent.kubernetes.sandboxes import Sandboxes
from agent.kubernetes.starts import Sandbox
from policy.objects import Pod
from tests.harness.cni import RESULT, Recorder, build, finish, run, stanza, start
from trireme_py.errors import KernelError

pytestmark = pytest.mark.kernel

INCOMPATIBLE, BAD_ENVIRONMENT, UNDECODABLE, BAD_CONFIGURATION, TRY_LATER, INTERNAL = 1, 4, 6, 7, 11, 100
ARGUMENTS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=db;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1"
OF_POD = {"CNI_NETNS": "/var/run/netns/cni-1", "CNI_ARGS": ARGUMENTS}
BARE = {**RESULT, "ips": []}
"""The namespaces of most tests here have no interface; what addresses are for, test_cni_sandboxes.py shows."""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cni"))


class Site:
    """A node with one namespace, and the agent's part that listens."""

    def __init__(self, folder: Path, plugin: Path, starts: Recorder) -> None:
        self.plugin = plugin
        self.starts = starts
        self.path = folder / "cni.sock"
        self.sandboxes = Sandboxes(folder / "sandboxes.json")
        self.folder = folder / "netns"
        self.namespace = netns.create(self.folder / "cni-1")
        self.server = CniServer(self.path, starts, self.sandboxes, [self.folder])
        self.server.start()

    def close(self) -> None:
        self.server.close()
        netns.remove(self.namespace)

    def ask(self, command: str = "ADD", version: str = "1.0.0", **changes: Any) -> tuple[int, Any]:
        said = {**stanza(self.path, version), "prevResult": BARE, **changes}
        return run(self.plugin, command, said, OF_POD)

    @property
    def located(self) -> Path | None:
        return self.sandboxes.locate(Pod(namespace="shop", name="db", uid="u1"))


@pytest.fixture
def starts() -> Recorder:
    return Recorder()


@pytest.fixture
def site(tmp_path: Path, plugin: Path, starts: Recorder) -> Iterator[Site]:
    site = Site(tmp_path, plugin, starts)
    yield site
    site.close()


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_a_pod_is_held_and_the_result_passed_on_as_it_came(site: Site, starts: Recorder, version: str) -> None:
    before = {**BARE, "cniVersion": version, "later": {"field": [1, None, 1.0]}}
    assert site.ask(version=version, prevResult=before) == (0, before)
    assert starts.asked == [Sandbox("shop/db", "u1", "c1", site.namespace, ())]
    assert 0 < starts.patience_s[0] < 10
    assert site.located == site.namespace
    assert (site.server.held, site.server.refused) == (1, 0)


def test_its_namespace_is_known_while_it_is_being_held(site: Site, starts: Recorder) -> None:
    seen: list[Path | None] = []
    starts._hold = lambda _: seen.append(site.located)
    assert site.ask()[0] == 0
    assert seen == [site.namespace]


def test_the_pod_s_own_addresses_are_handed_on(site: Site, starts: Recorder) -> None:
    netns.run_inside(site.namespace, lambda: os.system("ip addr add 10.91.0.2/24 dev lo"))
    addresses = [
        {"address": "10.91.0.2/24", "interface": 1},
        {"address": "10.91.0.1/24", "interface": 0},
        {"address": "fe80::1/64"},
    ]
    assert site.ask(prevResult={**RESULT, "ips": addresses})[0] == 0
    assert starts.asked[0].addresses == (ip_address("10.91.0.2").packed,)


def test_a_namespace_without_the_addresses_that_were_given_is_refused(site: Site, starts: Recorder) -> None:
    code, error = site.ask(prevResult=RESULT)
    assert (code, error["code"]) == (1, TRY_LATER)
    assert "shop/db" in error["msg"]
    assert str(site.folder) in error["msg"]
    assert starts.asked == []


def test_a_pod_that_cannot_be_held_does_not_start(site: Site, starts: Recorder) -> None:
    def hold(_: Sandbox) -> None:
        raise KernelError('iptables said "no"; run: trireme check')

    starts._hold = hold
    code, error = site.ask(version="0.4.0")
    assert (code, error) == (
        1,
        {"cniVersion": "0.4.0", "code": TRY_LATER, "msg": 'trireme: iptables said "no"; run: trireme check'},
    )
    assert site.located is None
    assert (site.server.held, site.server.refused) == (0, 1)


def test_a_mistake_of_ours_fails_one_start_and_no_more(site: Site, starts: Recorder) -> None:
    def hold(_: Sandbox) -> None:
        raise RuntimeError("a slip")

    starts._hold = hold
    code, error = site.ask()
    assert (code, error["code"]) == (1, INTERNAL)
    assert "slip" not in error["msg"], "what it is about belongs in the log"
    assert site.located is None
    starts._hold = lambda _: None
    assert site.ask()[0] == 0


def test_a_deleted_pod_is_let_go(site: Site, starts: Recorder) -> None:
    assert site.ask()[0] == 0
    assert site.ask("DEL", prevResult=None) == (0, None)
    assert starts.let_go == ["c1"]
    assert site.located is None


def test_a_check_holds_the_pod_and_says_nothing(site: Site, starts: Recorder) -> None:
    assert site.ask("CHECK") == (0, None)
    assert len(starts.asked) == 1


def test_what_is_no_pod_of_kubernetes_passes(site: Site, starts: Recorder) -> None:
    said = stanza(site.path, prevResult=BARE)
    assert run(site.plugin, "ADD", said, {"CNI_NETNS": "/var/run/netns/cni-1"}) == (0, BARE)
    assert starts.asked == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prevResult": {"ips": [{"address": "nowhere"}]}}, UNDECODABLE),
        ({"prevResult": {"ips": [{"address": "10.0.0.1/8", "interface": 5}], "interfaces": [{}]}}, UNDECODABLE),
        ({"prevResult": []}, UNDECODABLE),
        ({"version": "0.2.0"}, INCOMPATIBLE),
        ({"version": "2.0.0"}, INCOMPATIBLE),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(site: Site, changes: dict[str, Any], expected: int) -> None:
    code, error = site.ask(**changes)
    assert (code, error["code"]) == (1, expected)


def test_a_plugin_in_front_is_needed(site: Site) -> None:
    code, error = run(site.plugin, "ADD", stanza(site.path), OF_POD)
    assert (code, error["code"]) == (1, BAD_CONFIGURATION)


@pytest.mark.parametrize("name", ["CNI_CONTAINERID", "CNI_NETNS"])
def test_what_the_runtime_leaves_out_is_named(site: Site, name: str) -> None:
    code, error = run(site.plugin, "ADD", stanza(site.path, prevResult=BARE), {**OF_POD, name: ""})
    assert (code, error["code"]) == (1, BAD_ENVIRONMENT)
    assert name in error["msg"]


def test_input_that_is_not_json_is_refused(site: Site) -> None:
    # The socket is named so that the plugin finds it; what follows is not JSON any more.
    code, error = run(site.plugin, "ADD", json.dumps(stanza(site.path)).encode() + b"]", OF_POD)
    assert (code, error["code"]) == (1, UNDECODABLE)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"TRC1",
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(4096),
        REQUEST.pack(MAGIC, 1000, 1 << 30, 0),
        REQUEST.pack(MAGIC, 1000, 0, MAX_INPUT + 1),
        REQUEST.pack(MAGIC, 1000, 10, 10) + b"CNI",
        REQUEST.pack(MAGIC, 1000, 4, 2) + b"\xff\0=\0[]",
    ],
)
def test_what_is_no_request_ends_nothing(site: Site, starts: Recorder, text: bytes) -> None:
    for _ in range(REQUESTS + 1):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(site.path))
            connection.sendall(text)
    assert site.ask()[0] == 0
    assert len(starts.asked) == 1


def test_pods_that_are_held_do_not_keep_others_from_leaving(site: Site, starts: Recorder) -> None:
    go = threading.Event()
    starts._hold = lambda _: (go.wait(), None)[1]
    said = stanza(site.path, prevResult=BARE)
    waiting = [start(site.plugin, "ADD", said, {**OF_POD, "CNI_CONTAINERID": f"c{n}"}) for n in range(40)]
    assert site.ask("DEL") == (0, None)
    assert starts.let_go == ["c1"]
    go.set()
    assert {finish(process)[0] for process in waiting} == {0}
    assert len(starts.asked) == 40


def test_a_server_with_all_hands_full_closes(site: Site, starts: Recorder) -> None:
    go, full = threading.Event(), threading.Barrier(REQUESTS + 1)
    starts._hold = lambda _: (full.wait(), go.wait(), None)[2]
    environment = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", **OF_POD}
    said = "".join(f"{name}={value}\0" for name, value in environment.items()).encode()
    text = json.dumps(stanza(site.path, prevResult=BARE)).encode()
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(REQUESTS)]
    for one in waiting:
        one.connect(str(site.path))
        one.sendall(REQUEST.pack(MAGIC, 600_000, len(said), len(text)) + said + text)
    full.wait()
    site.server.close()
    go.set()
    for one in waiting:
        one.close()


def test_the_next_agent_holds_what_the_last_one_left(tmp_path: Path, plugin: Path) -> None:
    asked, never = threading.Event(), threading.Event()

    def hold(_: Sandbox) -> None:
        asked.set()
        never.wait()
        raise KernelError("stopped")

    site = Site(tmp_path, plugin, Recorder(hold))
    said = stanza(site.path, prevResult=BARE, timeout_s=60)
    process = start(plugin, "ADD", said, OF_POD)
    asked.wait()
    site.server.close()
    never.set()
    code, error = finish(process)
    assert (code, error["code"]) == (1, TRY_LATER)
    starts = Recorder()
    process = start(plugin, "ADD", said, OF_POD)
    server = CniServer(site.path, starts, site.sandboxes, [site.folder])
    server.start()
    assert finish(process)[0] == 0
    assert len(starts.asked) == 1
    server.close()
    netns.remove(site.namespace)
    assert not site.path.exists()
