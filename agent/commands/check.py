"""``trireme check``: what this node can and cannot do, and how its agent is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import click
import msgspec

from agent import checks
from agent.checks import Check, State
from agent.commands.exits import ERROR, FINDING, Command
from agent.commands.where import as_root, runtime_directory_option
from agent.runtime import RuntimeDirectory
from agent.status import read_status
from trireme_py.errors import KernelError

_COLOURS = {State.PASSED: "green", State.WARNING: "yellow", State.ERROR: "red"}
_WORDS = {State.PASSED: "passed", State.WARNING: "warning", State.ERROR: "error"}


@click.command(name="check", cls=Command)
@runtime_directory_option
@click.option("--kernel", "kernel_only", is_flag=True, help="Ask the kernel alone: before there is an agent.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def command(ctx: click.Context, runtime_directory: Path, *, kernel_only: bool, output: str) -> None:
    """Check what this node can and cannot do, and how its agent is. Nothing is changed.

    Each line that is not well names the next command and a place in docs/checks.md. Exit status 0: all passed, 1:
    warnings, 2: errors, 3: wrong usage.
    """
    # Colour for people only: click strips it when the output is no terminal, NO_COLOR (no-color.org) by hand.
    ctx.color = False if os.environ.get("NO_COLOR") else None
    found = list(checks.kernel())
    if not kernel_only:
        found += ask_agent(runtime_directory)
    if output == "json":
        documents = [
            {"group": one.group, "check": one.anchor, "state": _WORDS[one.state], "text": one.text, "next": one.next}
            for one in found
        ]
        click.echo(msgspec.json.encode({"v": 1, "checks": documents}))
    else:
        for line in render(found):
            click.echo(line)
    states = {one.state for one in found}
    ctx.exit(ERROR if State.ERROR in states else FINDING if State.WARNING in states else 0)


def ask_agent(runtime_directory: Path) -> list[Check]:
    """Return the checks of the agent whose runtime directory this is."""
    try:
        status = read_status(RuntimeDirectory(runtime_directory).status_socket, as_root("check", runtime_directory))
    except KernelError as error:
        text, _, step = str(error).partition("; ")
        return [Check("agent", "a-runs", State.ERROR, text, step)]
    return list(checks.agent(status, version("trireme-py"), datetime.now(UTC)))


def render(found: Sequence[Check]) -> Iterator[str]:
    """Yield the lines of the table: a part for each group, then the sum."""
    for group, members in groupby(found, key=lambda one: one.group):
        yield group
        yield "-" * len(group)
        for one in members:
            yield f"{click.style(one.state.value, fg=_COLOURS[one.state])} {one.text}"
            if one.state is not State.PASSED:
                yield f"    next: {one.next}"
                yield f"    see docs/checks.md#{one.anchor}"
        yield ""
    counts = Counter(one.state for one in found)
    worst = next(
        state for state in (State.ERROR, State.WARNING, State.PASSED) if counts[state] or state is State.PASSED
    )
    numbers = [f"{counts[state]} {_WORDS[state]}{_plural(state, counts[state])}" for state in State if counts[state]]
    yield f"Status check results are {worst.value}   ({', '.join(reversed(numbers))})"


def _plural(state: State, count: int) -> str:
    return "s" if state is not State.PASSED and count > 1 else ""
