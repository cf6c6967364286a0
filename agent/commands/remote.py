"""`kubectl trireme NAME` for commands that look at an agent: they run inside the agents' pods, node after node."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from agent.commands.exits import ERROR, Command
from trireme_py.errors import ConfigError

NAMESPACE: Final = "trireme-system"
SELECTOR: Final = "app.kubernetes.io/name=trireme,app.kubernetes.io/component=agent"
DAEMON_SET: Final = "daemonset/trireme-agent"
"""As the manifests have them."""
ONE_AT_A_TIME: Final = ("observe",)
"""Commands that may go on for ever."""


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent's pod."""

    node: str
    pod: str


def over_kubectl(name: str, text: str) -> click.Command:
    """Return the command that runs ``trireme NAME`` in the agents' pods. ``text``: its one-line help."""
    one = name in ONE_AT_A_TIME
    where = "on one node" if one else "on one node, or on all of them, one after another"
    node_help = "Required if there are several." if one else "[default: all]"

    @click.pass_context
    def run(
        ctx: click.Context, agents_namespace: str, node: str | None, context: str | None, rest: tuple[str, ...]
    ) -> None:
        kubectl = ["kubectl", *(["--context", context] if context else []), "--namespace", agents_namespace]
        try:
            agents = find_agents(kubectl, node)
            if one and len(agents) > 1:
                names = ", ".join(agent.node for agent in agents)
                raise ConfigError(f"there are several agents; name a node: --node NAME, of {names}")
            ctx.exit(_run_in(kubectl, agents, [name, *rest]))
        except ConfigError as error:
            click.echo(f"kubectl trireme {name}: {error}", err=True)
            ctx.exit(ERROR)

    return Command(
        name,
        callback=run,
        help=f"{text}\n\nRuns in the agents' pods: {where}. Options that are not listed here are those of "
        f"`trireme {name}`." + ("" if one else " The exit status is the highest of all."),
        context_settings={"ignore_unknown_options": True},
        params=[
            # Not -n: that is a command's own option, and means the same with kubectl as without.
            click.Option(["--agents-namespace"], default=NAMESPACE, show_default=True, metavar="NAME"),
            click.Option(["--node"], metavar="NAME", help=node_help),
            click.Option(["--context"], metavar="NAME", help="Of the kubeconfig."),
            click.Argument(["rest"], nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF THE COMMAND]..."),
        ],
    )


def in_a_pod(arguments: Sequence[str]) -> str:
    """Return the line that runs ``trireme`` in the pod of one agent, whichever that is."""
    line = ["kubectl", "--namespace", NAMESPACE, "exec", DAEMON_SET, "--container", "agent", "--", "trireme"]
    return shlex.join([*line, *arguments])


def find_agents(kubectl: list[str], node: str | None) -> list[Agent]:
    """Return the agents' pods that run, by node. Raises ConfigError if there is none.

    While a node's agent is being replaced it has two; the one that came first answers for it.
    """
    if shutil.which(kubectl[0]) is None:
        raise ConfigError("kubectl is not installed; on a node itself run: trireme")
    command = [*kubectl, "get", "pods", "--selector", SELECTOR, "--output", "json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise ConfigError(done.stderr.strip())
    running = [item for item in json.loads(done.stdout)["items"] if item["status"].get("phase") == "Running"]
    newest_first = sorted(running, key=lambda item: str(item["metadata"].get("creationTimestamp")), reverse=True)
    found = {agent.node: agent for agent in map(_agent, newest_first) if node in (None, agent.node)}
    agents = sorted(found.values(), key=lambda agent: agent.node)
    if not agents:
        where = f" on node {node}" if node else ""
        raise ConfigError(f"no agent runs{where}; see: {' '.join(kubectl)} get pods --output wide")
    return agents


def _agent(item: dict[str, Any]) -> Agent:
    return Agent(item["spec"].get("nodeName", ""), item["metadata"]["name"])


def _run_in(kubectl: list[str], agents: list[Agent], command: list[str]) -> int:
    """Run ``trireme`` with the words ``command`` in each pod; return the highest exit status."""
    worst = 0
    for agent in agents:
        if len(agents) > 1 and not any(word.endswith("json") for word in command):
            click.secho(f"node {agent.node}", bold=True)
        words = [*kubectl, "exec", agent.pod, "--container", "agent", "--", "trireme", *command]
        worst = max(worst, subprocess.run(words, stdin=subprocess.DEVNULL, check=False).returncode)  # noqa: S603
    return worst
