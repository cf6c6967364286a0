"""A small HTTP server for collectors, probes and people: few connections, and short ones."""

from __future__ import annotations

import errno
import logging
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import ip_address
from socket import AF_INET, AF_INET6
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from agent.logs import fields
from trireme_py.errors import ConfigError

log = logging.getLogger(__name__)

CONNECTIONS: Final = 16
"""At a time; a few collectors and a person come to that. Each takes a thread and a descriptor."""
PATIENCE_S: Final = 5
"""How long a connection may say nothing."""

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]
"""A WSGI application (PEP 3333)."""


class AddressInUse(ConfigError):
    """Another program listens there; it may end."""


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing: a question each few seconds is no event."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection, and an end to how many: this port may be open to pods."""

    daemon_threads = True

    def __init__(self, address: str, port: int) -> None:
        self.address_family = AF_INET6 if ip_address(address).version == 6 else AF_INET
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__((address, port), _Handler)

    def server_bind(self) -> None:
        # Not the library's: it asks DNS for our own name, and waits 5 s where nobody answers.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread could be started
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the library's signature
        log.warning("a request failed", extra=fields(source=client_address[0], error=sys.exception()))


class HttpServer:
    """Serves one WSGI application from threads of its own."""

    def __init__(self, field: str, address: str, port: int, application: Application) -> None:
        """Listen; port 0 takes a free one. ``field``: of ``spec``, where the address comes from.

        Raises ConfigError if the address cannot be had, AddressInUse if that is because another program has it.
        """
        self._server = _listen(field, address, port)
        self._server.set_app(application)
        self._thread = threading.Thread(target=self._server.serve_forever, name=field, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Return the address as a URL without a path."""
        host, port = self._server.server_address[:2]
        text = str(host)
        return f"http://[{text}]:{port}" if ip_address(text).version == 6 else f"http://{text}:{port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def try_address(field: str, address: str, port: int) -> None:
    """Raise ConfigError if the address cannot be had whoever listens there now; it is left as it is."""
    with suppress(AddressInUse):
        _listen(field, address, port).server_close()


def _listen(field: str, address: str, port: int) -> _Server:
    try:
        return _Server(address, port)
    except OSError as error:
        kind = AddressInUse if error.errno == errno.EADDRINUSE else ConfigError
        raise kind(
            f"spec.{field} {address}:{port}: {error.strerror or error}; see who listens: ss -ltnp; or set it to off"
        ) from error
