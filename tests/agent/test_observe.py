from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from agent.commands.observe import command, render
from agent.flowlog import record_of
from agent.observe import LIVE, RING_EVENTS, ObserveServer, subscribe
from tests.harness.flow_events import CART, event
from trireme_py.errors import KernelError
from trireme_py.model import Direction, DropReason, PlainLabels, Reason

NOW = datetime.now(UTC).timestamp()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ObserveServer]:
    server = ObserveServer(tmp_path / "observe.sock")
    server.start()
    yield server
    server.close()


def lines(connection: socket.socket, until: int) -> list[bytes]:
    """Read ``until`` lines."""
    with connection.makefile("rb") as stream:
        return [stream.readline() for _ in range(until)]


def wait_for_ring(server: ObserveServer, events: int) -> None:
    """Return when a new subscriber is given ``events`` remembered verdicts."""
    while True:
        with subscribe(server.path) as connection, connection.makefile("rb") as stream:
            if sum(1 for _ in iter(stream.readline, LIVE)) == events:
                return


def test_a_subscriber_gets_the_ring_then_live_verdicts(server: ObserveServer) -> None:
    server.publish([event(pod="shop/old")])
    wait_for_ring(server, 1)
    with subscribe(server.path) as connection:
        remembered, live = lines(connection, 2)
        assert json.loads(remembered)["pod"] == "shop/old"
        assert live == LIVE
        server.publish([event(pod="shop/new")])
        (new,) = lines(connection, 1)
        assert json.loads(new)["pod"] == "shop/new"


def test_the_ring_keeps_the_newest(server: ObserveServer) -> None:
    server.publish([event(pod=f"shop/p{number}") for number in range(RING_EVENTS + 5)])
    wait_for_ring(server, RING_EVENTS)
    with subscribe(server.path) as connection:
        assert json.loads(lines(connection, 1)[0])["pod"] == "shop/p5"


def test_a_subscriber_that_does_not_read_is_dropped_and_counted_others_go_on(server: ObserveServer) -> None:
    with subscribe(server.path) as slow, subscribe(server.path) as quick:
        assert lines(quick, 1) == [LIVE]
        big = replace(CART, labels=PlainLabels({f"label-{n}": "x" * 60 for n in range(60)}))
        with quick.makefile("rb") as stream:
            while not server.slow_subscribers:
                server.publish([event(peer=big)] * 100)
                for _ in range(100):
                    stream.readline()
            server.publish([event(pod="shop/last")])
            while json.loads(stream.readline())["pod"] != "shop/last":
                pass
        assert server.slow_subscribers == 1
        slow.settimeout(30)
        while slow.recv(1 << 20):
            pass  # what had been sent before, then the end


def test_the_socket_is_for_root_alone_and_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "observe.sock"
    path.write_text("left behind")
    server = ObserveServer(path)
    server.start()
    assert path.stat().st_mode & 0o777 == 0o600
    server.close()
    assert not path.exists()


def test_it_remembers_before_it_answers(tmp_path: Path) -> None:
    server = ObserveServer(tmp_path / "observe.sock")
    server.publish([event(pod="shop/early")])
    with pytest.raises(KernelError):
        subscribe(server.path)
    server.start()
    wait_for_ring(server, 1)
    server.close()


def test_a_path_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    server = ObserveServer(tmp_path / "absent" / "observe.sock")
    with pytest.raises(KernelError, match=r"No such file.*spec\.runtimeDirectory"):
        server.start()
    server.close()


def test_no_agent_is_said_with_the_next_command(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="trireme agent --config"):
        subscribe(tmp_path / "observe.sock")
    result = CliRunner().invoke(command, ["--runtime-directory", str(tmp_path)])
    assert result.exit_code == 2
    assert "is the agent running?" in result.output


def test_a_denial_reads_names_verdict_and_what_the_nearest_rule_lacked() -> None:
    assert render(record_of(event())).splitlines() == [
        "12:04:11.382  shop/cart [app=cart] → shop/db:5432  \x1b[31m\x1b[1mDENY\x1b[0m  ingress  no_match  TCP",
        "              identity: claimed, not proven",
        "              closest: NetworkPolicy/shop/allow-web rule 1 needs app=web (has app=cart)",
    ]


def test_an_allow_on_egress_names_the_rule_where_it_stands() -> None:
    allowed = event(allowed=True, reason=Reason.POLICY, policy="NetworkPolicy/shop/x", rule=0, nearest="", proven=True)
    first, second = render(record_of(replace(allowed, direction=Direction.EGRESS))).splitlines()
    assert "shop/db → shop/cart [app=cart]:5432" in first
    assert "ALLOW" in first
    assert second.strip() == "by NetworkPolicy/shop/x egress[0]   identity: proven"


def test_an_exchange_that_two_nodes_cannot_have_names_what_to_compare() -> None:
    denied = record_of(event(peer=None, nearest="unknown_signer: another pre-shared key"))
    refused = msgspec.structs.replace(denied, reason=DropReason.UNKNOWN_SIGNER.value)
    assert [line.strip() for line in render(refused).splitlines()[-2:]] == [
        "why: unknown_signer: another pre-shared key",
        "next: compare both nodes' pre-shared keys, or their authorities: trireme node show DIR",
    ]


def test_a_peer_without_identity_is_its_address() -> None:
    assert "10.77.1.2 → shop/db:5432" in render(record_of(event(peer=None, reason=Reason.UNIDENTIFIED)))


def run(server: ObserveServer, *arguments: str, env: dict[str, str] | None = None, color: bool = False) -> Result:
    folder = ["--runtime-directory", str(server.path.parent)]
    return CliRunner().invoke(command, [*folder, *arguments], env=env, color=color)


def pods(result: Result) -> list[Any]:
    assert result.exit_code == 0, result.output
    return [json.loads(line)["pod"] for line in result.output.splitlines()]


def test_filters_by_namespace_verdict_number_and_age(server: ObserveServer) -> None:
    server.publish(
        [
            event(pod="shop/a", wall_s=NOW - 4000),
            event(pod="shop/b", wall_s=NOW),
            event(pod="bank/c", wall_s=NOW, peer=None),
            event(pod="bank/d", wall_s=NOW),
            event(pod="shop/e", wall_s=NOW, allowed=True, reason=Reason.POLICY),
        ]
    )
    wait_for_ring(server, 5)
    assert pods(run(server, "-o", "json", "--last", "2")) == ["bank/d", "shop/e"]
    assert pods(run(server, "-o", "json", "--last", "9", "--verdict", "allow")) == ["shop/e"]
    assert pods(run(server, "-o", "json", "--last", "9", "-n", "bank")) == ["bank/c", "bank/d"]
    assert pods(run(server, "-o", "json", "--last", "2", "-n", "shop", "--verdict", "deny")) == ["shop/b", "bank/d"]
    assert pods(run(server, "-o", "json", "--since", "1h")) == ["shop/b", "bank/c", "bank/d", "shop/e"]
    nothing = run(server, "--last", "9", "--verdict", "audit")
    assert (nothing.exit_code, nothing.stderr) == (0, "trireme observe: the agent remembers no such verdict\n")


def test_colour_only_where_wanted(server: ObserveServer) -> None:
    server.publish([event()])
    wait_for_ring(server, 1)
    assert "\x1b[" not in run(server, "--last", "1").output  # no terminal
    assert "\x1b[" in run(server, "--last", "1", color=True).output
    assert "\x1b[" not in run(server, "--last", "1", color=True, env={"NO_COLOR": "1"}).output


def test_a_time_that_is_none_is_a_usage_error(server: ObserveServer) -> None:
    result = run(server, "--since", "yesterday")
    assert result.exit_code == 2
    assert "90s" in result.output


def test_following_ends_with_the_agent(tmp_path: Path) -> None:
    server = ObserveServer(tmp_path / "observe.sock")
    server.start()
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run(server, "-o", "json")))
    thread.start()
    while not server.subscribers:
        os.sched_yield()
    server.publish([event(pod="shop/live")])
    wait_for_ring(server, 1)
    server.close()
    thread.join(30)
    output = results[0].output
    assert '"pod":"shop/live"' in output
    assert "the agent closed the stream" in output
    assert results[0].exit_code == 1


def test_a_line_can_be_read_back(server: ObserveServer) -> None:
    server.publish([event()])
    wait_for_ring(server, 1)
    with subscribe(server.path) as connection:
        (line,) = lines(connection, 1)
    assert msgspec.json.decode(line, type=type(record_of(event()))) == record_of(event())
