"""``trireme signer``: certificates for the nodes of a cluster, by the CSR API."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Final

import click

from agent import logs
from agent.signals import on_stop
from trireme_py.errors import ConfigError, TriremeError

AGENT: Final = "trireme-agent"


@click.command(name="signer")
@click.option(
    "--ca",
    "directory",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="The authority's folder, as trireme ca init makes it.",
)
@click.option(
    "--agent",
    metavar="NAMESPACE/NAME",
    help=f"The agents' service account.  [default: {AGENT} in the namespace of this pod]",
)
@click.option(
    "--kubeconfig", type=click.Path(path_type=Path), metavar="FILE", help="[default: this pod's service account]"
)
@click.pass_context
def command(ctx: click.Context, directory: Path, agent: str | None, kubeconfig: Path | None) -> None:
    """Approve and sign the requests that node agents make for their own node, and deny all others.

    Only requests for the signer trireme.io/node are looked at. Who asks is what the API server says of the requester's
    token, not what the request says. Several may run at once.
    """
    from agent.kubernetes.access import api_server  # noqa: PLC0415 - as for the agent: --help stays quick
    from agent.kubernetes.inbox import Inbox  # noqa: PLC0415
    from agent.kubernetes.signer import Signer  # noqa: PLC0415
    from agent.kubernetes.signing import serve  # noqa: PLC0415

    stop, inbox = threading.Event(), Inbox()
    on_stop([stop.set, inbox.wake])
    try:
        api = api_server(kubeconfig, "trireme-signer")
        signer = Signer(api, directory, _user(agent), time.time)
        signer.trust_domain()  # an authority that is not there is said at start, not at the first request
        logs.set_up()
        serve(api, signer, stop, inbox)
    except TriremeError as error:
        click.echo(f"trireme signer: {error}", err=True)
        ctx.exit(2)


def _user(agent: str | None) -> str:
    from agent.kubernetes.access import own_namespace  # noqa: PLC0415

    namespace, slash, name = (agent or f"{own_namespace('--agent NAMESPACE/NAME')}/{AGENT}").partition("/")
    if not namespace or not slash or not name or "/" in name:
        raise ConfigError(f"--agent: {agent!r} is not NAMESPACE/NAME, such as trireme-system/{AGENT}")
    return f"system:serviceaccount:{namespace}:{name}"
