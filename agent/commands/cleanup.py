"""``trireme cleanup``: remove every rule and file the agent left."""

from __future__ import annotations

from pathlib import Path

import click

from agent import config, netns
from agent.config import DEFAULT_RUNTIME_DIRECTORY
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

    Afterwards nothing of ours is left, and the pods are as open as if they had never been enforced.
    """
    try:
        path = runtime_directory or _runtime_directory(folder)
        existed = path.exists()
        runtime = RuntimeDirectory(path)
        runtime.lock()
        namespaces = {recorded.network_namespace for recorded in runtime.read()}
        if (node := runtime.read_node()) is not None:
            namespaces.add(str(node))
        if folder is not None:
            namespaces |= _annotated(folder)
        failed = [error for namespace in sorted(namespaces) if (error := _clean(Path(namespace)))]
        if failed:
            runtime.release()
            for text in failed:
                click.echo(f"trireme cleanup: {text}", err=True)
            ctx.exit(1)
        gone = runtime.remove()
        runtime.release()
        if existed:
            click.echo(f"removed {path}" if gone else f"removed what was the agent's in {path}; the rest is not ours")
    except TriremeError as error:
        click.echo(f"trireme cleanup: {error}", err=True)
        ctx.exit(2)


def _runtime_directory(folder: Path | None) -> Path:
    if folder is None:
        return Path(DEFAULT_RUNTIME_DIRECTORY)
    try:
        return config.load(folder).runtime_directory
    except ConfigError as error:
        raise ConfigError(f"{error}\nname the directory instead: trireme cleanup --runtime-directory DIR") from error


def _annotated(folder: Path) -> set[str]:
    names = (pod.annotations.get(NETWORK_NAMESPACE_ANNOTATION) for pod in load_folder(folder).pods)
    return {str(netns.namespace_path(name)) for name in names if name}


def _clean(namespace: Path) -> str:
    """Remove our rules from ``namespace``; return what went wrong, or nothing."""
    from agent.backends import removers  # noqa: PLC0415

    if not netns.exists(namespace):
        return ""  # the rules went with it
    try:
        for backend in removers():
            backend.remove(namespace)
    except TriremeError as error:
        return f"{namespace}: {error}; correct this and run trireme cleanup again"
    click.echo(f"cleaned {namespace}")
    return ""
