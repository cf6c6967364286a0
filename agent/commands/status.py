"""``trireme status``: what the agent on this machine does now."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from agent.commands.exits import ERROR, FINDING, Command
from agent.commands.where import as_root, runtime_directory_option
from agent.runtime import RuntimeDirectory
from agent.status import Status, read_status
from agent.words import count
from trireme_py.errors import KernelError


@click.command(name="status", cls=Command)
@runtime_directory_option
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def command(ctx: click.Context, runtime_directory: Path, output: str) -> None:
    """Show what the agent on this machine does now.

    Counters begin with its start. Exit status 0: all is well, 1: something is not, 2: no agent answers, 3: wrong usage.
    """
    try:
        status = read_status(RuntimeDirectory(runtime_directory).status_socket, as_root("status", runtime_directory))
    except KernelError as error:
        click.echo(f"trireme status: {error}", err=True)
        ctx.exit(ERROR)
    if output == "json":
        click.echo(msgspec.json.encode(status))
    else:
        for line in render(status, datetime.now(UTC)):
            click.echo(line)
    ctx.exit(FINDING if findings(status) else 0)


def findings(status: Status) -> list[str]:
    """Return what is not as it should be, each in words with the next command."""
    found = [f"{text}; the agent ends itself if it stays so" for text in status.silent]
    found += [f"not ready: {text}" for text in status.missing if text not in status.silent]
    if status.installation == "lasts":
        nodes = f" (nodes without identities: {status.waited_for})" if status.waited_for else ""
        text = f"the installation lasts: a pod without an identity counts as not yet identified{nodes}"
        found.append(f"{text}; to end it now: trireme install finish")
    if status.audit:
        found.append("audit: nothing is refused by policy; set spec.audit to false to enforce")
    if status.queues.dropped:
        packets = count(status.queues.dropped, "packet")
        found.append(f"the kernel dropped {packets}: queue or socket full; see docs/metrics.md")
    if status.crashes:
        found.append(f"{count(status.crashes, 'unexpected exception')} of the data path; see the agent's log")
    found += [f"not protected: {text}" for text in status.unprotected]
    return found + list(status.problems)


def render(status: Status, now: datetime) -> Iterator[str]:
    """Yield the lines of the table."""
    enforcement = "audit only" if status.audit else "on"
    yield f"trireme-py {status.version}   {status.kind}   enforcement: {enforcement}   failMode: {status.fail_mode}"
    at = f"node {status.node}, " if status.node else ""
    state = "not ready" if status.missing else "ready"
    yield f"Agent        {at}{state}, up {_span((now - status.started).total_seconds())}"
    beside = f", {status.not_enforced} known and not enforced here" if status.not_enforced else ""
    yield f"Pods         {status.pods} enforced{beside}"
    yield f"Policy       {count(status.policies, 'policy', 'policies')}, revision {status.revision}"
    queues = status.queues
    yield (
        f"Data path    {status.datapath}, backend {status.backend}, {count(queues.packets, 'packet')} judged, "
        f"{queues.dropped} lost, {queues.backlog} waiting"
    )
    ends = [
        f"{name} valid for {_span((until - now).total_seconds())}"
        for name, until in (("identities", status.identities_until), ("certificate", status.certificate_until))
        if until is not None
    ]
    yield f"Identity     {', '.join([f'{status.mode} of {status.trust_domain}', *ends])}"
    shown = "   ".join(f"{verdict} {status.flows.get(verdict, 0)}" for verdict in ("allow", "deny", "audit"))
    yield f"Flows        {shown}"
    found = findings(status)
    if not found:
        yield "Problems     none"
        return
    yield f"Problems     {len(found)}"
    yield from (f"  {text}" for text in found)


def _span(seconds: float) -> str:
    """Write a time in its largest unit that leaves two digits or one: 45 s, 12 min, 30 h, 6 d."""
    if seconds < 0:
        return "0 s"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
