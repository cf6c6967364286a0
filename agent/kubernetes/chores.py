"""What the agent does now and then beside the pods: renew its certificate, say that it is there, read keys again.

All of it waits for somebody else most of the time, so it has one thread of its own and never the pods'.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from agent.logs import fields
from trireme_py.errors import TriremeError

log = logging.getLogger(__name__)

STOP_S: Final = 2.0


class Chore(Protocol):
    """Something to be done again and again."""

    def step(self) -> float | None:
        """Do what is due. Return the seconds until the next step, None for never again.

        It answers for its own failures; what it raises all the same is logged, and it is called again in a minute.
        """


class Chores:
    """Runs chores one after another on a thread of its own."""

    def __init__(self, chores: Sequence[Chore], clock: Callable[[], float] = time.monotonic) -> None:
        self._due = dict.fromkeys(chores, 0.0)
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chores", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Return when the thread has ended, or after a moment: a call that nobody answers is left to itself."""
        self._stop.set()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while self._due and not self._stop.wait(max(0.0, min(self._due.values()) - self._clock())):
            self.run_due()

    def run_due(self) -> None:
        """Run each chore whose time has come, once."""
        for chore, due in tuple(self._due.items()):
            if due > self._clock() or self._stop.is_set():
                continue
            try:
                wait_s = chore.step()
            except (OSError, TriremeError) as error:
                log.error("could not be done now", extra=fields(chore=type(chore).__name__, error=error))
                wait_s = 60.0
            if wait_s is None:
                del self._due[chore]
            else:
                self._due[chore] = self._clock() + wait_s
