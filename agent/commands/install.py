"""``trireme install``: the installation of agents, node by node, in a cluster."""

from __future__ import annotations

from pathlib import Path

import click

from trireme_py.errors import TriremeError


@click.group(name="install")
def command() -> None:
    """End the installation of agents in a cluster.

    While it lasts, a pod without an identity counts as not yet identified. It ends by itself when the agent of every
    node has announced its identities.
    """


@command.command()
@click.option("-n", "--namespace", metavar="NAME", help="The agents' namespace.  [default: that of this pod]")
@click.option(
    "--kubeconfig", type=click.Path(path_type=Path), metavar="FILE", help="[default: this pod's service account]"
)
@click.pass_context
def finish(ctx: click.Context, namespace: str | None, kubeconfig: Path | None) -> None:
    """End it now, for every agent: pods without an identity are refused where policy asks for one.

    In a pod of an agent: kubectl -n NAMESPACE exec daemonset/trireme-agent -- trireme install finish
    """
    from agent.kubernetes import leases  # noqa: PLC0415 - as for the agent: --help stays quick
    from agent.kubernetes.access import api_server, own_namespace  # noqa: PLC0415

    try:
        place = namespace or own_namespace("-n NAMESPACE")
        lasted = leases.finish(api_server(kubeconfig, "trireme-install"), place)
    except (OSError, TriremeError) as error:
        click.echo(f"trireme install finish: {error}", err=True)
        ctx.exit(2)
    click.echo("finished; every agent knows within 15 seconds" if lasted else "it was over already")
