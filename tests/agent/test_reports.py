"""The addresses of metrics and probes: taken before a pod is touched, or when the agent before ends."""

from __future__ import annotations

import logging
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent import config
from agent.reports import Reports
from trireme_py.errors import ConfigError

AGENT = """\
apiVersion: trireme.io/v1alpha1
kind: AgentConfig
spec: {{trustDomain: example.org, mode: psk, credentials: {{presharedKey: psk.key}}, metrics: "{0}", health: "{1}"}}
"""


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as closing:
        yield closing


@pytest.fixture
def other() -> Iterator[socket.socket]:
    """Another program that listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def reports(folder: Path, closing: ExitStack, metrics: str = "off", health: str = "off") -> Reports:
    (folder / "agent.yaml").write_text(AGENT.format(metrics, health))
    return Reports(config.load(folder), closing)


def place(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            code: int = answer.status
            return code
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("field", ["metrics", "health"])
def test_the_first_agent_does_not_start_without_its_addresses(
    tmp_path: Path, closing: ExitStack, other: socket.socket, field: str
) -> None:
    with pytest.raises(ConfigError, match=rf"spec\.{field} {place(other)}: Address already in use; .*ss -ltnp"):
        reports(tmp_path, closing, **{field: place(other)}).listen()


def test_what_another_agent_has_is_no_reason_not_to_wait_for_it(
    tmp_path: Path, closing: ExitStack, other: socket.socket
) -> None:
    reports(tmp_path, closing, place(other), place(other)).try_addresses()


@pytest.mark.parametrize("field", ["metrics", "health"])
def test_an_address_that_is_not_this_machine_s_is_one(tmp_path: Path, closing: ExitStack, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"spec\.{field} 192\.0\.2\.1:9643: Cannot assign"):
        reports(tmp_path, closing, **{field: "192.0.2.1:9643"}).try_addresses()


def test_an_address_that_is_free_is_left_free(tmp_path: Path, closing: ExitStack, other: socket.socket) -> None:
    at = place(other)
    other.close()
    reports(tmp_path, closing, at).try_addresses()
    reports(tmp_path, closing, at).listen()
    assert status(f"http://{at}/metrics") == 503, "the agent is not complete"


def test_an_address_that_is_busy_when_it_is_our_turn_is_a_problem_until_it_is_free(
    tmp_path: Path, closing: ExitStack, other: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    at = place(other)
    agent = reports(tmp_path, closing, health=at)
    for _ in range(3):
        assert agent.step()
    (problem,) = agent.problems
    assert f"spec.health {at}: Address already in use" in problem
    assert len(caplog.records) == 1, "said once, though tried three times"
    other.close()
    with caplog.at_level(logging.INFO):
        assert agent.step() is None
    assert "the address is there now" in caplog.messages
    assert agent.problems == ()
    assert status(f"http://{at}/livez") == 200
