"""What happened so far, and a way to wait until something has happened.

The guests, the tap and the followers of the agents write from threads of their own; the play reads and waits.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agent.flowlog import FlowRecord


@dataclass(frozen=True, slots=True)
class Seat:
    """One guest over one address family: who is told apart on the screen."""

    guest: str
    family: int
    """4 or 6."""
    resolves: bool = False
    """Whether this seat looks up the tap's name instead of asking for a beer."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One visit: a new connection to the tap or a query from a new port, and what came of it."""

    seat: Seat
    answer: str
    """What came back, a beer or an address; empty if nothing did."""
    trouble: str = ""
    """Why nothing came, as the operating system says it."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment in the ledger; everything after it belongs to what began there."""

    asks: int
    verdicts: int
    served: int
    resolved: int


class Listener(Protocol):
    """Who wants to see each thing at once: the screen."""

    def asked(self, ask: Ask) -> None:
        """A guest got an answer, or none."""

    def judged(self, record: FlowRecord) -> None:
        """An agent judged a connection."""


class Ledger:
    """An append-only record of asks, verdicts and servings; a demo's length keeps it small."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._changed = threading.Condition(threading.RLock())  # predicates read the ledger
        self._asks: list[Ask] = []
        self._verdicts: list[FlowRecord] = []
        self._served: list[Seat] = []
        self._resolved: list[str] = []
        self._broken: list[str] = []

    def asked(self, ask: Ask) -> None:
        with self._changed:
            self._asks.append(ask)
            self._changed.notify_all()
        self._listener.asked(ask)

    def judged(self, record: FlowRecord) -> None:
        with self._changed:
            self._verdicts.append(record)
            self._changed.notify_all()
        self._listener.judged(record)

    def served(self, seat: Seat) -> None:
        """The tap read a request of ``seat`` in full and answers it."""
        with self._changed:
            self._served.append(seat)
            self._changed.notify_all()

    def resolved(self, server: str) -> None:
        """A resolver of that name read a query."""
        with self._changed:
            self._resolved.append(server)
            self._changed.notify_all()

    def broke(self, what: str) -> None:
        """Something ended that should not have; whoever waits stops waiting."""
        with self._changed:
            self._broken.append(what)
            self._changed.notify_all()

    @property
    def broken(self) -> tuple[str, ...]:
        with self._changed:
            return tuple(self._broken)

    def mark(self) -> Mark:
        with self._changed:
            return Mark(len(self._asks), len(self._verdicts), len(self._served), len(self._resolved))

    def asks(self, since: Mark, seat: Seat) -> list[Ask]:
        with self._changed:
            return [ask for ask in self._asks[since.asks :] if ask.seat == seat]

    def verdicts(self, since: Mark) -> list[FlowRecord]:
        with self._changed:
            return self._verdicts[since.verdicts :]

    def servings(self, since: Mark) -> Counter[Seat]:
        with self._changed:
            return Counter(self._served[since.served :])

    def resolutions(self, since: Mark) -> Counter[str]:
        """Queries that arrived, by resolver."""
        with self._changed:
            return Counter(self._resolved[since.resolved :])

    def wait_until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until ``holds()``, looked at after each change; tell whether it did.

        Gives up after ``timeout_s`` seconds, and at once when something broke.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not holds():
                left = deadline - time.monotonic()
                if left <= 0 or self._broken:
                    return False
                self._changed.wait(left)
            return True
