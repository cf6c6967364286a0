"""A signal that tells a process to stop, at the worst of all moments."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """\
import signal, threading
from agent.signals import on_stop
stop, calls = threading.Event(), []
on_stop(calls)
calls.append(stop.set)
with stop._cond:  # as the main thread holds it for a moment whenever it waits
    signal.raise_signal(signal.SIGTERM)
stop.wait()
stop.clear()
signal.raise_signal(signal.SIGINT)
stop.wait()
print("stopped")
"""


def test_a_signal_that_comes_while_the_main_thread_waits_for_its_event_stops_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("stopped\n", "")
