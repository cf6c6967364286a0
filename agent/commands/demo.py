"""``trireme demo``: beer of the day."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

import click

from agent.demo.play import perform
from agent.demo.screen import Screen
from agent.demo.stage import WORD
from agent.lab import reexec_as_root, remove_stale
from trireme_py.errors import TriremeError


def _exit_on_term(_number: int, _frame: object) -> NoReturn:
    """Leave through every ``finally``: namespaces and agents are removed on SIGTERM as on Ctrl-C."""
    raise SystemExit(128 + signal.SIGTERM)


@click.command(name="demo")
@click.option("--mode", type=click.Choice(["psk", "pki", "both"]), default="both", show_default=True)
@click.option("--family", type=click.Choice(["4", "6", "both"]), default="both", show_default=True, help="IP version.")
@click.option("--plain", is_flag=True, help="Plain lines even on a terminal.")
def command(mode: str, family: str, plain: bool) -> None:
    """Play beer of the day: see identity enforced on this machine.

    A server hands out the German beer of the day; two clients ask it again and again, one of them approved. Everything
    happens in network namespaces of its own, which are removed at the end. Needs root, or user namespaces.

    Exits 0 only if what happened is what should have.
    """
    try:
        reexec_as_root()
        remove_stale(WORD)
    except TriremeError as error:
        click.echo(f"trireme demo: {error}", err=True)
        sys.exit(2)
    signal.signal(signal.SIGTERM, _exit_on_term)
    modes = ["psk", "pki"] if mode == "both" else [mode]
    families = (4, 6) if family == "both" else (int(family),)
    try:
        passed = perform(modes, families, Screen(plain=plain))
    except KeyboardInterrupt:
        click.echo("trireme demo: stopped; everything it made is removed", err=True)
        sys.exit(130)
    sys.exit(0 if passed else 1)
