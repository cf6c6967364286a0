"""Which agent a command looks at: the one with this runtime directory."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from agent.config import DEFAULT_RUNTIME_DIRECTORY

runtime_directory_option = click.option(
    "--runtime-directory",
    type=click.Path(path_type=Path, readable=False),  # who may not read it is told so with what to do
    default=DEFAULT_RUNTIME_DIRECTORY,
    show_default=True,
    help="The agent's runtimeDirectory.",
)


def as_root(command: str, runtime_directory: Path) -> str:
    """Return the same command for somebody who may read the directory."""
    words = ["sudo", "trireme", command]
    if runtime_directory != Path(DEFAULT_RUNTIME_DIRECTORY):
        words += ["--runtime-directory", str(runtime_directory)]
    return shlex.join(words)
