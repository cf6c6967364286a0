"""The whole agent on a real kernel: a folder in, verdicts, logs, metrics and rules out.

::

    shop/client (app=client) ── router ── shop/server (app=server, TCP 80)

One agent holds both pods, so each connection is judged at both of its ends.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.enroll import create_psk
from agent.lab import Lab, LabPod
from agent.rules_restore import RestoreBackend, Variant
from tests.harness import implementation
from tests.harness.agent_process import PATIENCE_S, AgentProcess, Configuration, trireme
from tests.harness.promtool import complaints
from tests.harness.traffic import Server, ask, open_socket, refused

pytestmark = pytest.mark.kernel

PORT = 80


@dataclass(frozen=True, slots=True)
class Network:
    lab: Lab
    client: LabPod
    server: LabPod


@pytest.fixture
def network() -> Iterator[Network]:
    """New for each test: a connection of an earlier one that is not quite over would be counted, and seen."""
    with Lab("agentp") as lab:
        yield Network(lab, lab.add_pod("client"), lab.add_pod("server"))


@pytest.fixture
def application(network: Network) -> Iterator[Server]:
    with Server(network.server, PORT) as server:
        yield server


@pytest.fixture
def configuration(network: Network, tmp_path: Path) -> Iterator[Configuration]:
    configuration = Configuration(tmp_path, str(network.lab.router.path))
    configuration.pod("client", network.client)
    configuration.pod("server", network.server)
    yield configuration
    done = trireme("cleanup", "--config", str(configuration.folder), "--runtime-directory", str(configuration.runtime))
    assert done.returncode == 0, done.stderr
    assert not rules(network.client) + rules(network.server)
    assert not configuration.runtime.exists()


def rules(pod: LabPod) -> list[str]:
    """Every rule and chain of ours in a pod, both families and both variants."""
    saved = "".join(pod.command(f"{family}-{v.value}-save") for family in ("iptables", "ip6tables") for v in Variant)
    return [line for line in saved.splitlines() if "TRM" in line]


def answered(connection: socket.socket, message: bytes) -> bool:
    """Tell whether a message comes back."""
    try:
        connection.sendall(message)
        return connection.recv(100) == message
    except OSError:
        return False


def epoch(pod: LabPod) -> str:
    return next(line for line in rules(pod) if "connmark" in line).split("--mark ")[1].split("/")[0]


def test_a_policy_written_to_the_folder_is_enforced_counted_and_seen(
    network: Network, application: Server, configuration: Configuration
) -> None:
    client, server = network.client, network.server
    with AgentProcess(configuration) as agent:
        for address in (server.ipv4, server.ipv6):
            assert ask(client, address, PORT) == b"hello"
        with agent.after("policy in force", "pod=shop/server"):
            configuration.policy("nobody")
        for address in (server.ipv4, server.ipv6):
            assert refused(client, address, PORT)
        with agent.after("policy in force", "pod=shop/server"):
            configuration.policy("client")
        for address in (server.ipv4, server.ipv6):
            assert ask(client, address, PORT) == b"hello"

        samples = agent.scrape()
        assert samples["trireme_flows_total{direction=ingress,reason=no_isolation,verdict=allow}"] == 2
        assert samples["trireme_flows_total{direction=egress,reason=no_isolation,verdict=allow}"] == 4
        assert samples["trireme_flows_total{direction=ingress,reason=policy,verdict=allow}"] == 2
        assert samples["trireme_flows_total{direction=ingress,reason=no_match,verdict=deny}"] == 2
        assert samples["trireme_packets_dropped_total{reason=policy}"] >= 2
        assert samples["trireme_nfqueue_packets_total"] >= 2 * 3 * 4
        assert samples["trireme_nfqueue_dropped_total"] == samples["trireme_nfqueue_user_dropped_total"] == 0
        assert samples["trireme_nfqueue_errors_total{kind=verdict}"] == samples["trireme_datapath_crashes_total"] == 0
        assert samples["trireme_local_endpoints"] == 2
        assert samples["trireme_policies"] == 1
        assert samples["trireme_identities_cached"] == 2
        assert samples["trireme_config_problems"] == 0
        what = f"backend=iptables-nft,datapath={implementation.name},mode=psk,version=0.1.0"
        assert samples[f"trireme_agent_info{{{what}}}"] == 1

        seen = trireme("observe", "--runtime-directory", str(configuration.runtime), "--last", "9", "--verdict", "deny")
        assert seen.returncode == 0
        first, by, closest = seen.stdout.splitlines()[:3]
        assert "shop/client [app=client] → shop/server:80  DENY  ingress  no_match  TCP" in first
        assert "NetworkPolicy/shop/only" in by
        assert "needs app=nobody" in closest

    lines = [json.loads(line) for line in configuration.flow_log.read_text().splitlines()]
    assert sum(line["verdict"] == "deny" for line in lines) == 2
    assert sum(line["verdict"] == "allow" for line in lines) == 8
    assert all(line["peer"]["proven"] for line in lines if line["verdict"] == "allow")


def test_promtool_finds_nothing_in_a_real_scrape(configuration: Configuration) -> None:
    with AgentProcess(configuration) as agent:
        text = agent.scrape_text()
    assert complaints(text) == ""


@pytest.mark.slow(reason="the agent looks at the file every 10 s, as often as three times here")
def test_the_pre_shared_key_is_changed_under_a_connection(
    network: Network, application: Server, configuration: Configuration, tmp_path: Path
) -> None:
    key, new = tmp_path / "psk.key", tmp_path / "new.key"
    create_psk(new, os.urandom)
    old = key.read_text()
    configuration.policy("client")
    with AgentProcess(configuration) as agent, open_socket(network.client, network.server.ipv4) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect((str(network.server.ipv4), PORT))
        assert answered(connection, b"one")
        for step in (f"{old}\n{new.read_text()}", f"{new.read_text()}\n{old}", new.read_text()):
            since = len(agent.lines)
            fresh = tmp_path / "psk.key.new"
            fresh.write_text(step)
            fresh.chmod(0o600)
            fresh.replace(key)
            for pod in ("client", "server"):
                agent.wait_for("identity issued", f"pod=shop/{pod}", since=since)
            assert ask(network.client, network.server.ipv4, PORT) == b"hello"
            assert answered(connection, b"more")
        samples = agent.scrape()
    assert samples["trireme_flows_total{direction=ingress,reason=policy,verdict=allow}"] == 4
    assert not [name for name in samples if name.startswith("trireme_flows_total") and "verdict=deny" in name]
    assert not any(text.split()[0] in line for text in (old, new.read_text()) for line in agent.lines)


def test_a_live_connection_is_cut_when_policy_no_longer_allows_it(
    network: Network, application: Server, configuration: Configuration
) -> None:
    with AgentProcess(configuration) as agent, open_socket(network.client, network.server.ipv4) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect((str(network.server.ipv4), PORT))
        connection.sendall(b"one")
        assert connection.recv(10) == b"one"
        with agent.after("policy in force", "pod=shop/server"):
            configuration.policy("nobody")
        assert not answered(connection, b"two")
        assert application.received == [b"one"]


def test_a_broken_file_is_reported_and_the_last_good_state_stays_in_force(
    network: Network, application: Server, configuration: Configuration
) -> None:
    configuration.policy("nobody")
    with AgentProcess(configuration) as agent:
        good = (configuration.folder / "policy.yaml").read_text()
        with agent.after("config problem", "policy.yaml:5", "field=spec.podSelectr"):
            configuration.write("policy.yaml", good.replace("podSelector", "podSelectr", 1))
        assert refused(network.client, network.server.ipv4, PORT)
        assert agent.scrape()["trireme_config_problems"] == 1
        # Another file still applies: the client becomes somebody else.
        with agent.after("identity issued", "pod=shop/client"):
            pod = (configuration.folder / "pod-client.yaml").read_text()
            configuration.write("pod-client.yaml", pod.replace("app: client", "app: guest"))
        with agent.after("policy in force", "pod=shop/server"):
            configuration.policy("guest")
        assert ask(network.client, network.server.ipv4, PORT) == b"hello"
        agent.wait_for("config problem solved")
        assert agent.scrape()["trireme_config_problems"] == 0


@pytest.mark.slow(reason="the agent looks at the file every 10 s, and twice here")
def test_a_key_file_that_cannot_be_used_is_shown_until_it_can(configuration: Configuration) -> None:
    key = configuration.folder.parent / "psk.key"
    with AgentProcess(configuration) as agent:
        with agent.after("cannot be used", "mode 0644"):
            key.chmod(0o644)
        assert agent.scrape()["trireme_config_problems"] == 1
        where = ("--runtime-directory", str(configuration.runtime))
        assert "psk.key: mode 0644 lets others at a secret" in trireme("status", *where).stdout
        assert "× pre-shared key: " in trireme("check", *where).stdout  # noqa: RUF001
        with agent.after("can be used again"):
            key.chmod(0o600)
        assert agent.scrape()["trireme_config_problems"] == 0
        assert "√ pre-shared key of example.org" in trireme("check", *where).stdout


def test_a_stopped_agent_leaves_the_rules_and_cleanup_removes_them(
    network: Network, application: Server, configuration: Configuration
) -> None:
    with AgentProcess(configuration) as agent:
        busy = trireme("cleanup", "--runtime-directory", str(configuration.runtime))
        assert busy.returncode == 2
        assert f"an agent runs here (process {agent.process.pid})" in busy.stderr
        assert agent.end(signal.SIGTERM) == 0
    assert rules(network.client)
    assert rules(network.server)
    assert refused(network.client, network.server.ipv4, PORT)
    done = trireme("cleanup", "--runtime-directory", str(configuration.runtime))
    assert (done.returncode, done.stderr) == (0, "")
    assert not rules(network.client) + rules(network.server)
    assert ask(network.client, network.server.ipv4, PORT) == b"hello"
    again = trireme("cleanup", "--runtime-directory", str(configuration.runtime))
    said = f"nothing is recorded in {configuration.runtime}, and nothing was removed from any namespace\n"
    assert (again.returncode, again.stdout) == (0, said)


def test_a_killed_agent_established_goes_on_new_waits_and_the_next_continues(
    network: Network, application: Server, configuration: Configuration
) -> None:
    client, server = network.client, network.server
    configuration.policy("client")
    with AgentProcess(configuration) as agent, open_socket(client, server.ipv4) as established:
        established.settimeout(PATIENCE_S)
        established.connect((str(server.ipv4), PORT))
        # Raised twice, so that continuing is not the same as beginning anew.
        for allowed in ("nobody-else", "client"):
            with agent.after("policy in force", "pod=shop/server"):
                configuration.policy(allowed)
        before = epoch(server)
        with open_socket(client, server.ipv4) as fresh:
            fresh.settimeout(PATIENCE_S)
            fresh.connect((str(server.ipv4), PORT))
            fresh.sendall(b"before")
            assert fresh.recv(10) == b"before"
            agent.end(signal.SIGKILL)

            fresh.sendall(b"meanwhile")
            assert fresh.recv(10) == b"meanwhile"
            answers: list[bytes] = []
            waiting = threading.Thread(
                target=lambda: answers.append(ask(client, server.ipv6, PORT, timeout=PATIENCE_S)), daemon=True
            )
            waiting.start()
            waiting.join(1.5)
            assert waiting.is_alive(), "nobody can open a connection while nobody judges it"

            with AgentProcess(configuration) as restarted:
                restarted.wait_for("pod enforced", "pod=shop/server", f"epoch={int(before, 16) >> 16 & 0x7F}")
                assert epoch(server) == before
                waiting.join(PATIENCE_S)
                assert answers == [b"hello"]
                fresh.sendall(b"after")
                assert fresh.recv(10) == b"after"
                queued = restarted.scrape()["trireme_nfqueue_packets_total"]
                for _ in range(20):
                    fresh.sendall(b"more")
                    assert fresh.recv(10) == b"more"
                assert restarted.scrape()["trireme_nfqueue_packets_total"] == queued


def test_a_pod_that_leaves_the_folder_is_let_go(network: Network, configuration: Configuration) -> None:
    with AgentProcess(configuration) as agent:
        with agent.after("pod let go", "pod=shop/client"):
            configuration.remove("pod-client.yaml")
        with agent.after("pod enforced", "pod=shop/client"):
            configuration.pod("client", network.client)
        with agent.after("pod let go", "pod=shop/server"):
            configuration.remove("pod-server.yaml")
        agent.end(signal.SIGTERM)
    assert rules(network.client)
    assert not rules(network.server)


def test_a_namespace_that_comes_later_is_bound_when_it_is_there(network: Network, configuration: Configuration) -> None:
    text = (configuration.folder / "pod-client.yaml").read_text()
    with Lab("agentl") as other:
        name = f"{network.client.name[: -len('-client')].replace('agentp', 'agentl')}-late"
        configuration.write(
            "pod-late.yaml",
            text.replace("name: client", "name: late").replace(str(network.client.path), f"/run/netns/{name}"),
        )
        with AgentProcess(configuration) as agent:
            agent.wait_for("config problem", f"/run/netns/{name} is not there")
            with agent.after("pod enforced", "pod=shop/late"):
                pod = other.add_pod("late")
            assert rules(pod)


def test_fail_open_is_an_explicit_choice(network: Network, application: Server, configuration: Configuration) -> None:
    text = (configuration.folder / "agent.yaml").read_text()
    configuration.write("agent.yaml", text + "  failMode: open\n")
    configuration.policy("nobody")
    with AgentProcess(configuration) as agent:
        assert refused(network.client, network.server.ipv4, PORT), "an open installation still enforces"
        agent.end(signal.SIGTERM)
    assert ask(network.client, network.server.ipv4, PORT) == b"hello"


def test_audit_reports_and_enforces_nothing(
    network: Network, application: Server, configuration: Configuration
) -> None:
    text = (configuration.folder / "agent.yaml").read_text()
    configuration.write("agent.yaml", text + "  audit: true\n")
    configuration.policy("nobody")
    with AgentProcess(configuration) as agent:
        assert ask(network.client, network.server.ipv4, PORT) == b"hello"
        assert agent.scrape()["trireme_flows_total{direction=ingress,reason=audit,verdict=audit}"] == 1


def test_a_wrong_configuration_ends_the_start_with_every_problem(configuration: Configuration) -> None:
    text = (configuration.folder / "agent.yaml").read_text()
    configuration.write("agent.yaml", text.replace("mode: psk", "mode: pks") + "  queues: 7\n")
    done = trireme("agent", "--config", str(configuration.folder))
    assert done.returncode == 2
    assert [line.split(": ", 2)[2].split(":")[0] for line in done.stderr.splitlines()] == ["spec.mode", "spec.queues"]
    configuration.write("agent.yaml", text)


def test_a_metrics_port_that_is_taken_ends_the_start_before_a_pod_is_touched(
    network: Network, application: Server, configuration: Configuration
) -> None:
    text = (configuration.folder / "agent.yaml").read_text()
    with socket.create_server(("127.0.0.1", 0)) as other:
        configuration.write("agent.yaml", text.replace("127.0.0.1:0", f"127.0.0.1:{other.getsockname()[1]}"))
        done = trireme("agent", "--config", str(configuration.folder))
    assert done.returncode == 2
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("trireme agent:")]
    assert "spec.metrics 127.0.0.1:" in said
    assert "Address already in use" in said
    assert not rules(network.client) + rules(network.server)
    assert ask(network.client, network.server.ipv4, PORT) == b"hello"


@pytest.mark.parametrize(("fail_mode", "what"), [("closed", "wait for an agent"), ("open", "pass unjudged")])
def test_a_start_that_fails_while_rules_are_in_place_says_so_and_how_they_are_removed(
    network: Network, configuration: Configuration, fail_mode: str, what: str
) -> None:
    text = (configuration.folder / "agent.yaml").read_text() + f"  failMode: {fail_mode}\n"
    configuration.write("agent.yaml", text)
    with AgentProcess(configuration):
        pass
    key = configuration.folder.parent / "psk.key"
    key.chmod(0o644)
    done = trireme("agent", "--config", str(configuration.folder))
    assert done.returncode == 2
    first, second = [line for line in done.stderr.splitlines() if line.startswith("trireme agent:")]
    assert "psk.key: mode 0644" in first
    assert f"rules stay in place: new connections of 2 pods {what}" in second
    command = second.rpartition("run: trireme ")[2].split()
    assert command == ["cleanup", "--config", str(configuration.folder)]
    assert trireme(*command).returncode == 0
    assert not rules(network.client) + rules(network.server)


def test_a_world_readable_key_is_refused(configuration: Configuration) -> None:
    key = configuration.folder.parent / "psk.key"
    key.chmod(0o644)
    done = trireme("agent", "--config", str(configuration.folder))
    assert done.returncode == 2
    assert "psk.key" in done.stderr
    assert "chmod" in done.stderr or "0600" in done.stderr


def test_the_usual_soft_limit_of_open_files_does_not_limit_the_pods(configuration: Configuration) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard - 1), hard))
    try:
        with AgentProcess(configuration) as agent:
            assert resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_service_manager_is_told(
    configuration: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with AgentProcess(configuration):
            assert manager.recv(100) == b"READY=1"
        assert manager.recv(100) == b"STOPPING=1"


def test_both_back_ends_clean_up_after_each_other(network: Network, configuration: Configuration) -> None:
    """The rules of an earlier installation lie in the other variant; cleanup finds them there, too."""
    text = (configuration.folder / "agent.yaml").read_text()
    configuration.write("agent.yaml", text + "  rules: legacy\n")
    with AgentProcess(configuration) as agent:
        assert RestoreBackend(Variant.LEGACY).name in agent.wait_for("msg=ready")
    assert rules(network.client)
