"""The guests: each asks again and again, for a beer over a new connection or for a name from a new port."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from agent.demo.ledger import Ask, Ledger, Seat
from agent.demo.tap import GUEST_HEADER, PATH
from agent.lab import LabPod

TIMEOUT_S: Final = 0.8
"""For each step of an ask. Shorter than the first SYN retransmission (1 s): a lost SYN shows as a missing beer."""
PAUSE_S: Final = 0.15
"""Between two asks: often enough to see a change at once, seldom enough to leave the machine alone."""


def ask(seat: Seat, address: IPv4Address | IPv6Address, port: int) -> Ask:
    """Ask once over a new connection, and report what came of it; raises nothing."""
    connection = HTTPConnection(str(address), port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", PATH, headers={GUEST_HEADER: seat.guest, "Connection": "close"})
        response = connection.getresponse()
        body = response.read(200).decode(errors="replace").strip()
        if response.status != 200 or not body:
            return Ask(seat, "", f"HTTP status {response.status}")
        return Ask(seat, body)
    except (OSError, HTTPException) as error:
        return Ask(seat, "", str(error) or type(error).__name__)
    finally:
        connection.close()


class Guest:
    """Visits from inside ``pod``, from construction until :meth:`close`; writes every visit into the ledger."""

    def __init__(self, pod: LabPod, seat: Seat, visit: Callable[[], Ask], ledger: Ledger) -> None:
        self._visit = visit
        self._ledger = ledger
        self._stop = threading.Event()
        name = f"guest-{seat.guest}-{seat.family}-{'name' if seat.resolves else 'beer'}"
        self._thread = threading.Thread(target=lambda: pod.run(self._loop), name=name, daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while not self._stop.wait(PAUSE_S):
            self._ledger.asked(self._visit())

    def stop(self) -> None:
        """Make this the last ask; does not wait for it."""
        self._stop.set()

    def close(self) -> None:
        self.stop()
        self._thread.join()
