"""Exit statuses of commands that look at an agent: 0 all is well, 1 something is not, 2 an error, 3 wrong usage."""

from __future__ import annotations

from typing import Any, Final

import click

FINDING: Final = 1
ERROR: Final = 2
USAGE: Final = 3


class _WrongUsage(click.UsageError):
    exit_code = USAGE


class Command(click.Command):
    """A command whose usage errors exit with :data:`USAGE`; click's own status for them, 2, is an error's here."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise _WrongUsage(error.format_message(), error.ctx) from error
