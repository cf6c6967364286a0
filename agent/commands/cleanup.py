"""``trireme cleanup``: remove every rule and file the agent left."""

from __future__ import annotations

from pathlib import Path

import click

from agent import config, netns
from agent.config import DEFAULT_RUNTIME_DIRECTORY, AgentConfig
from agent.leaving import leave
from agent.runtime import RuntimeDirectory
from policy.files import load_folder
from policy.objects import NETWORK_NAMESPACE_ANNOTATION
from trireme_py.errors import ConfigError, TriremeError


@click.command(name="cleanup")
@click.option(
    "--config",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also clean the namespaces of the pods in DIR, and use its runtimeDirectory.",
)
@click.option(
    "--runtime-directory",
    type=click.Path(path_type=Path),
    help=f"The agent's runtimeDirectory.  [default: that of --config, else {DEFAULT_RUNTIME_DIRECTORY}]",
)
@click.pass_context
def command(ctx: click.Context, folder: Path | None, runtime_directory: Path | None) -> None:
    """Remove every rule and file the agent left in the namespaces it held. The agent must not be running.

    In a cluster also its CNI plugin. Afterwards nothing of ours is left, and the pods are as open as if they had never
    been enforced.
    """
    try:
        loaded = _config(folder, required=runtime_directory is None) if folder is not None else None
        path = runtime_directory or (loaded.runtime_directory if loaded else Path(DEFAULT_RUNTIME_DIRECTORY))
        cni = loaded.kubernetes.cni if loaded and loaded.kubernetes else None
        runtime = RuntimeDirectory(path)
        existed, used = path.exists(), runtime.used
        cleaned: list[str] = []

        def say(text: str) -> None:
            cleaned.append(text)
            click.echo(text)

        runtime.lock()
        failed = leave(runtime, cni, say, _annotated(folder) if folder is not None else ())
        runtime.release()
        for text in failed:
            click.echo(f"trireme cleanup: {text}", err=True)
        if failed:
            ctx.exit(1)
        if not used and not cleaned:
            click.echo(f"nothing is recorded in {path}, and nothing was removed from any namespace")
        if existed and not path.exists():
            click.echo(f"removed {path}")
        elif used:
            click.echo(f"removed what was the agent's in {path}; the rest is not ours")
    except TriremeError as error:
        click.echo(f"trireme cleanup: {error}", err=True)
        ctx.exit(2)


def _config(folder: Path, *, required: bool) -> AgentConfig | None:
    """Return the configuration in ``folder``; None if it cannot be used and nothing depends on it."""
    try:
        return config.load(folder)
    except ConfigError as error:
        if not required:
            return None
        raise ConfigError(f"{error}\nname the directory instead: trireme cleanup --runtime-directory DIR") from error


def _annotated(folder: Path) -> set[str]:
    names = (pod.annotations.get(NETWORK_NAMESPACE_ANNOTATION) for pod in load_folder(folder).pods)
    return {str(netns.namespace_path(name)) for name in names if name}
