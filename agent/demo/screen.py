"""What the play looks like: a live table on a terminal, plain lines anywhere else.

Titles, applied YAML, verdicts and results are printed once, in order. In between, a terminal shows a table that follows
the guests; elsewhere a line is printed whenever a guest's luck changes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Final

import click
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from agent.commands.observe import render
from agent.demo.ledger import Ask, Seat
from agent.demo.resolver import NAME
from agent.flowlog import FlowRecord

HISTORY: Final = 24
"""Visits shown in a guest's row."""


class Screen:
    """Implements :class:`agent.demo.ledger.Listener`; a context manager while something is live."""

    def __init__(self, *, plain: bool, console: Console | None = None) -> None:
        self._console = console or Console(
            no_color=plain or None, highlight=False, soft_wrap=True, emoji=False, legacy_windows=False
        )
        self._plain = plain or not self._console.is_terminal
        self._lock = threading.Lock()
        self._visits: dict[Seat, deque[Ask]] = {}
        self._count: dict[Seat, int] = {}
        self._last_verdict: FlowRecord | None = None
        self._live: Live | None = None

    # -- live ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Screen:
        if not self._plain:
            self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        with self._lock:
            self._visits.clear()
            self._count.clear()
            self._last_verdict = None

    @property
    def live(self) -> bool:
        """Tell whether somebody watches a table that moves."""
        return self._live is not None

    def asked(self, ask: Ask) -> None:
        with self._lock:
            visits = self._visits.setdefault(ask.seat, deque(maxlen=HISTORY))
            before = visits[-1] if visits else None
            visits.append(ask)
            self._count[ask.seat] = self._count.get(ask.seat, 0) + 1
            changed = before is None or bool(before.answer) != bool(ask.answer)
            if self._plain and changed:
                self._print(f"  {ask.seat.guest:<9} IPv{ask.seat.family}  {_what_came(ask)}")

    def judged(self, record: FlowRecord) -> None:
        with self._lock:
            self._last_verdict = record

    def _table(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 2))
        for heading, width in (("guest", 14), ("over", 5), ("glass", 26), ("visits", 6), ("the last visits", HISTORY)):
            table.add_column(heading, min_width=width, no_wrap=True, header_style="dim")
        with self._lock:
            for seat, visits in sorted(
                self._visits.items(), key=lambda item: (item[0].resolves, item[0].guest, item[0].family)
            ):
                last = visits[-1]
                empty = "no answer" if seat.resolves else "dry"
                glass = Text(last.answer, style="green") if last.answer else Text(empty, style="bold red")
                name = f"{seat.guest}, DNS" if seat.resolves else seat.guest
                history = Text()
                for visit in visits:
                    history.append("▮" if visit.answer else "▯", style="green" if visit.answer else "red")
                table.add_row(name, f"IPv{seat.family}", glass, str(self._count[seat]), history)
            verdict = self._last_verdict
        line = Text("") if verdict is None else Text("  " + click.unstyle(render(verdict)).splitlines()[0], style="dim")
        return Group(Text(""), table, line)

    # -- once ----------------------------------------------------------------------------------------------------------

    def _print(self, text: str = "") -> None:
        self._console.print(text, markup=False)

    def note(self, text: str) -> None:
        self._print(text)

    def title(self, text: str) -> None:
        """Begin a run."""
        self._console.print(f"\n[bold]{escape(text)}[/bold]")

    def act(self, number: int, text: str) -> None:
        """Begin an act."""
        self._console.print(f"\n[bold]Act {number}[/bold]  {escape(text)}")

    def applied(self, where: str, excerpt: str) -> None:
        """Show what was written into the configuration folders."""
        self._console.print(f"  [dim]{escape(where)}[/dim]")
        if self._plain:
            for line in excerpt.splitlines():
                self._print(f"    | {line}")
        else:
            self._console.print(Syntax(excerpt.rstrip(), "yaml", background_color="default", padding=(0, 4)))

    def verdict(self, record: FlowRecord) -> None:
        """Show a verdict as ``trireme observe`` does."""
        text = render(record)
        for line in (click.unstyle(text) if self._plain else text).splitlines():
            self._console.print(Text.from_ansi("  " + line))

    def checked(self, text: str, held: bool) -> None:
        """Show how an expectation turned out."""
        mark = "[green]ok[/green]    " if held else "[bold red]FAILED[/bold red]"
        self._console.print(f"  {mark} {escape(text)}")

    def summary(self, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show the closing table."""
        widths = [max(len(row[column]) for row in (heading, *rows)) for column in range(len(heading))]
        self._print()
        for row in (heading, *rows):
            self._print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def failure(self, text: str) -> None:
        """Show why the play failed, on as many lines as it takes."""
        for line in text.splitlines():
            self._console.print(Text(line, style="" if self._plain else "red"))


def _what_came(ask: Ask) -> str:
    if ask.seat.resolves:
        return f"finds {NAME} at {ask.answer}" if ask.answer else f"finds no {NAME}: {ask.trouble}"
    return f"drinks {ask.answer}" if ask.answer else f"gets nothing: {ask.trouble}"
