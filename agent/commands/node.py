"""``trireme node``: this node's key and certificate, three files in a folder."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import click

from agent.credentials import load_node
from agent.enroll import (
    NODE_CERTIFICATE,
    NODE_KEY,
    NODE_REQUEST,
    create_request,
    fingerprint,
    read_request,
    utc,
)
from trireme_py.certificate import MAX_CERTIFICATE
from trireme_py.errors import CredentialError


@click.group(name="node")
def command() -> None:
    """Enrol this node: make its key, request its certificate.

    The key is made here and stays here; the request goes to the authority, the certificate comes back.
    """


@command.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="The node's name.  [default: this machine's]")
@click.pass_context
def request(ctx: click.Context, directory: Path, name: str | None) -> None:
    """Make this node's key in DIRECTORY and a request for its certificate.

    A key that is there already is kept: run it again to renew the certificate.
    """
    try:
        new = create_request(directory, name or socket.gethostname().lower())
        asked = read_request(directory / NODE_REQUEST)
    except CredentialError as error:
        click.echo(f"trireme node request: {error}", err=True)
        ctx.exit(2)
    click.echo(f"{'made' if new else 'kept'} {directory / NODE_KEY} (mode 0600); it stays on this node")
    click.echo(f"wrote {directory / NODE_REQUEST}")
    click.echo(f"node {asked.node}, key {fingerprint(asked.key)}")
    click.echo(f"next, where the authority is: trireme ca sign {NODE_REQUEST} --ca DIR --out {NODE_CERTIFICATE}")


@command.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--ca", "authority", type=click.Path(path_type=Path), metavar="FILE", help="[default: node.crt itself]")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def show(ctx: click.Context, directory: Path, authority: Path | None, output: str) -> None:
    """Show and check the key and certificate in DIRECTORY. Exit status 1: they do not hold now."""
    certificate = directory / NODE_CERTIFICATE
    try:
        node = load_node(directory / NODE_KEY, certificate, authority or certificate)
    except CredentialError as error:
        click.echo(f"trireme node show: {error}", err=True)
        ctx.exit(2)
    begin, end, now = node.certificate.not_before, node.certificate.not_after, time.time()
    state = "expired" if now >= end else "not yet valid" if now < begin else "valid"
    facts: dict[str, str | int | list[str]] = {
        "node": node.certificate.node,
        "trust_domain": node.certificate.trust_domain,
        "state": state,
        "not_before": f"{utc(begin):%Y-%m-%dT%H:%M:%SZ}",
        "not_after": f"{utc(end):%Y-%m-%dT%H:%M:%SZ}",
        "key": fingerprint(node.certificate.public_key),
        "authorities": [fingerprint(key) for key in node.authorities],
        "compact_octets": len(node.compact),
    }
    if output == "json":
        click.echo(json.dumps(facts))
    else:
        for name, value in facts.items():
            shown = ", ".join(value) if isinstance(value, list) else value
            limit = f" of {MAX_CERTIFICATE}" if name == "compact_octets" else ""
            click.echo(f"{name.replace('_', ' '):<15} {shown}{limit}")
    if state != "valid":
        click.echo(f"trireme node show: {certificate}: {state}; run: trireme node request {directory}", err=True)
        ctx.exit(1)
