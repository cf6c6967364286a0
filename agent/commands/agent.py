"""``trireme agent``: run the node agent."""

from __future__ import annotations

from pathlib import Path

import click

from agent import logs
from trireme_py.errors import TriremeError


@click.command(name="agent")
@click.option(
    "--config",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder with Kubernetes YAML and one AgentConfig.",
)
@click.pass_context
def command(ctx: click.Context, folder: Path) -> None:
    """Enforce the policies of a folder on the pods of this machine.

    DIR holds ordinary Kubernetes YAML (Namespace, Pod, NetworkPolicy, ClusterNetworkPolicy) and one AgentConfig, and
    is watched. A Pod is bound to its network namespace by the annotation trireme.io/network-namespace. SIGTERM stops
    the agent and leaves the rules in place; `trireme cleanup` removes them.
    """
    # The parts of the agent load here, so that `trireme --help` and the offline commands stay quick.
    from agent.main import allow_many_files, run  # noqa: PLC0415

    logs.set_up()
    allow_many_files()
    try:
        run(folder)
    except TriremeError as error:
        for line in str(error).splitlines():
            click.echo(f"trireme agent: {line}", err=True)
        ctx.exit(2)
