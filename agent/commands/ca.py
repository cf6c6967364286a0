"""``trireme ca``: the certificate authority of a trust domain, two files in a folder."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from agent.enroll import (
    AUTHORITY_CERTIFICATE,
    AUTHORITY_KEY,
    authority_key,
    create_authority,
    fingerprint,
    load_certificates,
    read_request,
    sign_request,
    trust_domain_of,
)
from agent.secretfile import write_new
from trireme_py.errors import CredentialError


@click.group(name="ca")
def command() -> None:
    """Make and use the certificate authority of a trust domain.

    Whoever has its key can be any pod: keep the folder off the nodes.
    """


@command.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--trust-domain", required=True, metavar="NAME", help="Such as prod.example.org; every node has the same."
)
@click.option("--days", type=click.IntRange(1, 7300), default=3650, show_default=True, help="How long it holds.")
@click.pass_context
def init(ctx: click.Context, directory: Path, trust_domain: str, days: int) -> None:
    """Make the authority's key and certificate in DIRECTORY."""
    try:
        certificate = create_authority(directory, trust_domain, datetime.now(UTC), days)
        key = authority_key(directory / AUTHORITY_CERTIFICATE, certificate)
    except CredentialError as error:
        click.echo(f"trireme ca init: {error}", err=True)
        ctx.exit(2)
    click.echo(f"authority of {trust_domain} in {directory}, until {certificate.not_valid_after_utc:%Y-%m-%d}")
    click.echo(f"key {fingerprint(key)}")
    click.echo("next, on each node: trireme node request DIR")


@command.command()
@click.argument("request", type=click.Path(path_type=Path))
@click.option(
    "--ca",
    "directory",
    type=click.Path(path_type=Path),
    default=".",
    show_default=True,
    metavar="DIR",
    help="The authority's folder.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="CERT", help="The file to send back.")
@click.option("--days", type=click.IntRange(1, 1095), default=365, show_default=True, help="How long it holds.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def sign(ctx: click.Context, request: Path, directory: Path, out: Path, days: int, *, yes: bool) -> None:
    """Sign a node's REQUEST, after showing what it says.

    Compare the fingerprint with the one the node showed: the certificate lets its holder speak for any pod.
    """
    try:
        asked = read_request(request)
        path = directory / AUTHORITY_CERTIFICATE
        _check_authority(directory)
        authority = load_certificates(path, f"trireme ca init {directory} --trust-domain NAME")[0]
        click.echo(f"node          {asked.node}")
        click.echo(f"key           {fingerprint(asked.key)}")
        click.echo(f"trust domain  {trust_domain_of(path, authority)}")
        click.echo(f"for           {days} days")
        if not yes and not click.confirm("Sign it?"):
            click.echo("nothing was signed", err=True)
            ctx.exit(1)
        write_new(out, sign_request(directory, asked, datetime.now(UTC), days))
    except CredentialError as error:
        click.echo(f"trireme ca sign: {error}", err=True)
        ctx.exit(2)
    click.echo(f"wrote {out}")
    click.echo("next: copy it to the node, into the folder of its key, as node.crt; there: trireme node show DIR")


def _check_authority(directory: Path) -> None:
    """Refuse a folder without an authority. To make one would be the wrong advice: nodes believe the one there is."""
    for name in (AUTHORITY_CERTIFICATE, AUTHORITY_KEY):
        try:
            (directory / name).stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            text = f"{directory}: holds no {name}; name the authority's folder: --ca DIR"
            raise CredentialError(text) from error
        except OSError:
            return  # who reads it says what is wrong with it
