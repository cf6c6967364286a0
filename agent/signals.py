"""SIGTERM and SIGINT, told to a thread of their own.

Python runs a handler on the main thread, between any two of its instructions. One that sets an Event may come while the
main thread, in waiting for it, holds the event's lock: both then wait for ever, and an agent that is told to stop ends
only when it is killed, with all of its rules left behind. So the handler does nothing, and what is to be done waits at
the other end of a pipe.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


def on_stop(calls: list[Callable[[], None]]) -> None:
    """Make ``calls``, which may grow, at each SIGTERM and SIGINT. To be called once, on the main thread."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writer, False)

    def wait() -> None:
        while os.read(reader, 1):
            for call in tuple(calls):
                call()

    threading.Thread(target=wait, name="signals", daemon=True).start()
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
