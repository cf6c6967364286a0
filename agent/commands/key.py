"""``trireme key``: pre-shared keys."""

from __future__ import annotations

import os
from pathlib import Path

import click

from agent.enroll import create_psk
from trireme_py.errors import CredentialError


@click.group(name="key")
def command() -> None:
    """Make a pre-shared key."""


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_context
def new(ctx: click.Context, file: Path) -> None:
    """Write a fresh pre-shared key to FILE, readable by you alone.

    Every node of the trust domain needs the same file: copy it over a channel you trust, and keep mode 0600.
    """
    try:
        create_psk(file, os.urandom)
    except CredentialError as error:
        click.echo(f"trireme key new: {error}", err=True)
        ctx.exit(2)
    click.echo(f"wrote {file} (mode 0600)")
    click.echo("next: copy it to each node, and name it in the agent's configuration as spec.credentials.presharedKey")
