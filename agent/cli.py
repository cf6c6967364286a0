"""``trireme``: the root of the command line.

Commands load when they are used, so that ``trireme --help`` is instant and a command only needs its own libraries.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any, Final

import click

COMMANDS: Final = {
    "agent": "Run the node agent.",
    "ca": "Make and use the certificate authority of a trust domain.",
    "check": "Check what this node can and cannot do, and how its agent is.",
    "cleanup": "Remove every rule and file the agent left in the namespaces it held.",
    "demo": "Beer of the day: see identity enforced on this machine.",
    "install": "End the installation of agents in a cluster.",
    "key": "Make a pre-shared key.",
    "node": "Enrol this node: make its key, request its certificate.",
    "observe": "Follow live verdicts of the agent on this machine.",
    "policy": "Check, explain, test and compare policies; no root needed.",
    "signer": "Sign the certificates of a cluster's nodes.",
    "status": "Show what the agent on this machine does now.",
}
"""Command name to its one-line help; the command itself is ``agent.commands.<name>:command``."""
IN_AGENTS: Final = ("check", "observe", "status")
"""Commands that look at the agent of a node. `kubectl trireme` runs them in the agents' pods."""


class LazyGroup(click.Group):
    """A group whose commands are imported by name on first use."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Go by the name that the user typed: `kubectl NAME` runs the program `kubectl-NAME`."""
        if info_name and info_name.startswith("kubectl-"):
            info_name = info_name.replace("-", " ", 1)
        return super().make_context(info_name, args, parent, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name in IN_AGENTS and (ctx.info_name or "").startswith("kubectl "):
            from agent.commands.remote import over_kubectl  # noqa: PLC0415 - loaded when used, as all commands

            return over_kubectl(cmd_name, COMMANDS[cmd_name])
        try:
            command = importlib.import_module(f"agent.commands.{cmd_name}").command
        except ImportError as error:
            if "_fastpath" not in str(error):
                raise
            raise click.ClickException(
                f"the fast path in C is not built for this Python ({error}); 'make fastpath' builds it in a checkout, "
                f"'pip install --force-reinstall trireme-py' in an installation"
            ) from error
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest what was meant; click itself knows only of commands that are loaded."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = difflib.get_close_matches(name, COMMANDS)
            meant = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise click.UsageError(f"No such command {name!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="trireme-py", prog_name="trireme")
def main() -> None:
    """Enforce Kubernetes NetworkPolicy between identities, not IP addresses."""


if __name__ == "__main__":
    main()
