from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from agent import checks
from agent.checks import Check, State
from agent.cli import main
from agent.commands.check import render
from agent.runtime import RuntimeDirectory
from agent.status import Queues, Status, StatusServer

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
WELL = Status(
    version="1.2.3",
    kind="kubernetes",
    mode="pki",
    trust_domain="cluster.local",
    backend="iptables-nft",
    datapath="python",
    started=NOW - timedelta(hours=5),
    pods=12,
    policies=34,
    queues=Queues(packets=1000),
    identities_until=NOW + timedelta(minutes=48),
    certificate_until=NOW + timedelta(days=6),
    installation="finished",
)


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["check", *arguments])
    return done.exit_code, done.stdout, done.stderr


def wrong(status: Status) -> list[Check]:
    return [one for one in checks.agent(status, "1.2.3", NOW) if one.state is not State.PASSED]


def test_an_agent_that_is_well_passes_everything() -> None:
    assert wrong(WELL) == []


@pytest.mark.parametrize(
    ("change", "state", "anchor", "words"),
    [
        ({"version": "1.2.2"}, State.WARNING, "a-version", "its version is 1.2.2, this command's is 1.2.3"),
        ({"silent": ("x: nothing",), "missing": ("x: nothing",)}, State.ERROR, "a-threads", "x: nothing"),
        ({"missing": ("no certificate yet",)}, State.ERROR, "a-ready", "not ready: no certificate yet"),
        ({"audit": True}, State.WARNING, "a-audit", "nothing is refused"),
        ({"fail_mode": "open"}, State.WARNING, "a-fail-open", "pass unjudged"),
        (
            {"installation": "lasts", "waited_for": "1: n2"},
            State.WARNING,
            "a-installation",
            "as not yet identified (nodes without identities: 1: n2)",
        ),
        ({"unprotected": ("shop/vpn: CAP_NET_ADMIN",)}, State.WARNING, "a-unprotected", "hold shop/vpn"),
        ({"not_enforced": 2}, State.WARNING, "a-pods", "2 pods of this node"),
        ({"queues": Queues(dropped=3)}, State.WARNING, "a-queue-drops", "dropped 3 packets"),
        ({"crashes": 1}, State.WARNING, "a-crashes", "1 unexpected"),
        ({"problems": ("no such namespace",)}, State.ERROR, "a-problems", "no such namespace"),
        (
            {
                "certificate_until": None,
                "problems": ("psk.key: gone; copy it",),
                "key_problem": "psk.key: gone; copy it",
            },
            State.ERROR,
            "i-key",
            "psk.key: gone",
        ),
        ({"identities_until": NOW}, State.ERROR, "i-identities", "ended at 2026-11-23 12:00 UTC"),
        ({"certificate_until": NOW + timedelta(hours=40)}, State.WARNING, "i-certificate", "ends 2026-11-25 04:00"),
        ({"certificate_until": NOW + timedelta(hours=11)}, State.ERROR, "i-certificate", "ends 2026-11-23 23:00"),
    ],
)
def test_what_is_not_well_is_one_line_with_a_next_step(
    change: dict[str, object], state: State, anchor: str, words: str
) -> None:
    (found,) = wrong(msgspec.structs.replace(WELL, **change))
    assert (found.state, found.anchor) == (state, anchor)
    assert words in found.text
    assert found.next


def test_every_check_is_documented_and_nothing_else() -> None:
    named = set(re.findall(r'"([kai]-[a-z-]+)"', (ROOT / "agent" / "checks.py").read_text(encoding="utf-8")))
    named |= {"k-rules-nft", "k-rules-legacy"}  # put together there
    text = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    assert named == set(re.findall(r"^### ([kai]-[a-z-]+)$", text, re.MULTILINE))
    assert "## What the kernel must have" in text


def test_capabilities_are_read_from_the_process_status() -> None:
    assert checks.missing_capabilities("Name:\tx\nCapEff:\t0000000000203000\n") == []
    assert checks.missing_capabilities("CapEff:\t0000000000003000\n") == ["SYS_ADMIN"]
    assert checks.missing_capabilities("CapEff:\t0000000000000000\n") == ["NET_ADMIN", "NET_RAW", "SYS_ADMIN"]


def test_each_match_and_target_of_a_rule_is_tried_by_itself() -> None:
    rule = ("-p", "udp", "-m", "bpf", "--bytecode", "1,6 0 0 0", "-j", "NFQUEUE", "--queue-num", "7")
    assert list(checks.extensions(rule)) == [
        ("-m bpf", ("-p", "udp", "-m", "bpf", "--bytecode", "1,6 0 0 0")),
        ("-j NFQUEUE", ("-j", "NFQUEUE", "--queue-num", "7")),
    ]
    assert list(checks.extensions(("-m", "mark", "!", "--mark", "0x0/0xff", "-g", "TRM-DONE"))) == [
        ("-m mark", ("-m", "mark", "!", "--mark", "0x0/0xff"))
    ]
    assert list(checks.extensions(("-j", "TRM-EPOCH"))) == []


def test_the_sum_names_the_worst() -> None:
    passed = Check("kernel", "k-ipv6", State.PASSED, "IPv4 and IPv6")
    warning = Check("agent", "a-audit", State.WARNING, "audit", "set spec.audit")
    error = Check("agent", "a-ready", State.ERROR, "not ready", "see its log")
    assert list(render([passed]))[-1] == "Status check results are √   (1 passed)"
    shown = list(map(click.unstyle, render([passed, warning, error, error])))
    assert shown[-1] == "Status check results are ×   (2 errors, 1 warning, 1 passed)"  # noqa: RUF001
    assert shown[:2] == ["kernel", "------"]
    assert shown[shown.index("‼ audit") + 1 :][:2] == ["    next: set spec.audit", "    see docs/checks.md#a-audit"]


@pytest.mark.kernel
def test_this_kernel_passes_and_the_exit_status_tells_of_the_agent(tmp_path: Path) -> None:
    code, shown, _ = run("--kernel")
    assert code == 0
    assert "√ iptables-nft takes every rule; the agent takes this one" in shown
    code, shown, _ = run("--runtime-directory", str(tmp_path))
    assert code == 2
    assert "trireme agent --config DIR" in shown
    soon = datetime.now(UTC) + timedelta(days=6)
    running = msgspec.structs.replace(
        WELL, version=version("trireme-py"), identities_until=soon, certificate_until=soon
    )
    for status, expected in ((running, 0), (msgspec.structs.replace(running, audit=True), 1)):
        server = StatusServer(RuntimeDirectory(tmp_path).status_socket, lambda status=status: status)  # type: ignore[misc]
        try:
            code, shown, _ = run("--runtime-directory", str(tmp_path), "-o", "json")
        finally:
            server.close()
        assert code == expected, shown
        assert (
            {one["state"] for one in json.loads(shown)["checks"]} == {"passed", "warning"} if expected else {"passed"}
        )
    assert run("--colour")[0] == 3


@pytest.mark.kernel
def test_a_kernel_without_a_match_is_told_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("iptables", "ip6tables"):
        for variant in ("nft", "legacy"):
            fake = tmp_path / f"{program}-{variant}-restore"
            real = f"/usr/sbin/{program}-{variant}-restore"
            fake.write_text(
                f'#!/bin/sh\ntext=$(cat)\ncase "$text" in *bpf*) echo no bpf >&2; exit 1;; esac\n'
                f'printf "%s\\n" "$text" | exec {real} "$@"\n'
            )
            fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    code, shown, _ = run("--kernel")
    assert code == 2
    assert "× iptables-nft does not take -m bpf\n" in shown  # noqa: RUF001
    assert "× iptables-legacy does not take -m bpf\n" in shown  # noqa: RUF001
