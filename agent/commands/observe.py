"""``trireme observe``: follow live verdicts of the agent on this machine."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from socket import socket
from typing import Final

import click
import msgspec

from agent.commands.where import as_root, runtime_directory_option
from agent.flowlog import FlowRecord, PeerRecord
from agent.observe import LIVE, RING_EVENTS, subscribe
from trireme_py.errors import KernelError
from trireme_py.model import DropReason

_COLOURS: Final = {"allow": "green", "deny": "red", "audit": "yellow"}
_DURATION: Final = re.compile(r"(\d+)([smh])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}
_INDENT: Final = " " * 14
_CLOCKS: Final = "compare both nodes' clocks: timedatectl"
_NEXT: Final = {
    DropReason.UNKNOWN_SIGNER.value: "compare both nodes' pre-shared keys, or their authorities: trireme node show DIR",
    DropReason.TRUST_DOMAIN.value: "compare spec.trustDomain of both nodes",
    DropReason.EXPIRED.value: _CLOCKS,
    DropReason.NOT_YET_VALID.value: _CLOCKS,
    DropReason.UNEXPLAINED_TRANSLATION.value: "let spec.nodeNetworkNamespace name the namespace that translates, "
    "or see spec.requireTranslationEvidence",
}
"""What to do about an exchange that fails because two nodes, or a node and its network, are not set up alike."""
_FAILURES: Final = frozenset(reason.value for reason in DropReason if reason is not DropReason.POLICY)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which verdicts to show; a field that is empty shows all."""

    namespace: str = ""
    verdict: str = ""
    since_s: float = 0.0
    """Seconds since the Unix epoch."""

    def shows(self, record: FlowRecord) -> bool:
        """Tell whether ``record`` is wanted. A namespace counts at either end of the flow."""
        namespaces = {record.pod.split("/", 1)[0], record.peer.namespace if record.peer else ""}
        return (
            (not self.namespace or self.namespace in namespaces)
            and (not self.verdict or self.verdict == record.verdict)
            and datetime.fromisoformat(record.time).timestamp() >= self.since_s
        )


def _labels(peer: PeerRecord) -> str:
    shown = [f"{key}={value}" for key, value in sorted(peer.labels.items())]
    return " [" + ",".join(shown[:3]) + (",…" if len(shown) > 3 else "") + "]" if shown else ""


def _peer_name(record: FlowRecord) -> str:
    if record.peer is not None:
        return f"{record.peer.namespace}/{record.peer.pod}{_labels(record.peer)}"
    return (record.source if record.direction == "ingress" else record.destination).address


def _rule(record: FlowRecord) -> str:
    """Return where the rule stands in the policy, as the explanations of the policy engine write it."""
    if record.rule is None:
        return ""
    peers = "from" if record.direction == "ingress" else "to"
    return f" {record.direction}[{record.rule}]" + ("" if record.rule_peer is None else f" {peers}[{record.rule_peer}]")


def _identity_words(record: FlowRecord) -> str:
    if record.peer is None:
        return "identity: none"
    return "identity: proven" if record.peer.proven else "identity: claimed, not proven"


def render(record: FlowRecord) -> str:
    """Return the lines for one verdict: who, to whom, the verdict; by which rule, or what the nearest rule lacked."""
    actual = record.actual_destination or record.destination
    port = "" if actual.port is None else f":{actual.port}"
    peer = _peer_name(record)
    source, destination = (peer, record.pod) if record.direction == "ingress" else (record.pod, peer)
    verdict = click.style(record.verdict.upper(), fg=_COLOURS.get(record.verdict), bold=True)
    what = f"{verdict}  {record.direction}  {record.reason}  {record.protocol}"
    lines = [f"{record.time[11:23]}  {source} → {destination}{port}  {what}"]
    if record.policy:
        lines.append(f"{_INDENT}by {record.policy}{_rule(record)}   {_identity_words(record)}")
    elif record.verdict != "allow":
        lines.append(_INDENT + _identity_words(record))
    if record.nearest:
        word = "why" if record.reason in _FAILURES else "closest"
        lines.append(f"{_INDENT}{word}: {record.nearest}")
    if record.reason in _NEXT:
        lines.append(f"{_INDENT}next: {_NEXT[record.reason]}")
    return "\n".join(lines)


def _lines(connection: socket) -> Iterator[bytes]:
    with connection, connection.makefile("rb") as stream:
        yield from stream


def _duration(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    match = _DURATION.fullmatch(value)
    if match is None:
        raise click.BadParameter("use a number and s, m or h, such as 90s or 5m")
    return int(match[1]) * _SECONDS[match[2]]


@click.command(name="observe")
@click.option("-n", "--namespace", default="", metavar="NS", help="Only flows with a pod of this namespace.")
@click.option("--verdict", type=click.Choice(["allow", "deny", "audit"]), help="Only this verdict.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--last", type=click.IntRange(1, RING_EVENTS), metavar="N", help="The last N verdicts, then exit.")
@click.option("--since", callback=_duration, metavar="TIME", help="Verdicts since 90s, 5m, 1h ago, then exit.")
@click.option("-f", "--follow", is_flag=True, help="With --last or --since: go on with live verdicts.")
@runtime_directory_option
@click.pass_context
def command(
    ctx: click.Context,
    *,
    namespace: str,
    verdict: str | None,
    output: str,
    last: int | None,
    since: int | None,
    follow: bool,
    runtime_directory: Path,
) -> None:
    """Show who was let through to whom and why, live.

    Each verdict names the policy and the rule that made it, or the rule that came closest and what it lacked. The
    agent remembers the last 1000 verdicts.
    """
    wanted = Filter(namespace, verdict or "", time.time() - since if since is not None else 0.0)
    history = last is not None or since is not None
    remembered: deque[tuple[FlowRecord, bytes]] = deque(maxlen=last)
    live = False
    # Colour for people only: click strips it when the output is no terminal, NO_COLOR (no-color.org) by hand.
    ctx.color = False if os.environ.get("NO_COLOR") else None

    def show(record: FlowRecord, line: bytes) -> None:
        click.echo(line.decode().rstrip("\n") if output == "json" else render(record))

    try:
        connection = subscribe(runtime_directory / "observe.sock", as_root("observe", runtime_directory))
    except KernelError as error:
        click.echo(f"trireme observe: {error}", err=True)
        ctx.exit(2)
    try:
        for line in _lines(connection):
            if line == LIVE:
                if history:
                    for record, kept in remembered:
                        show(record, kept)
                    if not follow:
                        if not remembered:
                            click.echo("trireme observe: the agent remembers no such verdict", err=True)
                        return
                live = True
                continue
            record = msgspec.json.decode(line, type=FlowRecord)
            if not wanted.shows(record):
                continue
            if live:
                show(record, line)
            elif history:
                remembered.append((record, line))
    except KeyboardInterrupt:
        return  # the usual end of following
    click.echo("trireme observe: the agent closed the stream: it stopped, or this reader was too slow", err=True)
    ctx.exit(1)
