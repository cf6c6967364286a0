"""The tap: a small HTTP server in a pod that hands out the beer of the day."""

from __future__ import annotations

import socket
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from agent.demo.beers import beer_of_the_day
from agent.demo.ledger import Ledger, Seat
from agent.lab import LabPod

PORT: Final = 8080
"""The container's own port; the Service has another."""
PATH: Final = "/beer-of-the-day"
GUEST_HEADER: Final = "X-Guest"
"""How a guest introduces itself in the tap's own books. No decision depends on it."""
REQUEST_TIMEOUT_S: Final = 2.0


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        if self.path != PATH:
            self.send_error(404)
            return
        guest = self.headers.get(GUEST_HEADER, "")
        family = 4 if self.client_address[0].startswith("::ffff:") else 6
        assert isinstance(self.server, _Server)
        self.server.ledger.served(Seat(guest, family))
        body = (beer_of_the_day(datetime.now(UTC).date()) + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing: the ledger is the log."""


class _Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        super().__init__(("::", PORT), _Handler)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # one listener for both families
        super().server_bind()

    def handle_error(self, request: object, client_address: object) -> None:
        """A guest that hung up is no news; what it missed is in its own books."""


class Tap:
    """Serves inside ``pod`` from construction until :meth:`close`."""

    def __init__(self, pod: LabPod, ledger: Ledger) -> None:
        self._server = pod.run(lambda: _Server(ledger))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="tap", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
