"""What the agent says of itself, on a socket in its runtime directory: one JSON document for whoever connects.

A caller sends nothing. The socket has mode 0600: who may read it is who may stop the agent. `trireme status` and
`trireme check` read it; there is no other way.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from agent.logs import fields
from agent.runtime import no_answer
from trireme_py.errors import KernelError

log = logging.getLogger(__name__)

PATIENCE_S: Final = 40.0
"""How long a caller waits: the data path's thread has 30 s before the agent ends itself."""
MAX_BYTES: Final = 4 << 20
"""A thousand problems have a tenth of it."""
PROBLEMS: Final = 1000
"""Told at most; the log has them all."""


class Queues(msgspec.Struct, frozen=True):
    """What happened between kernel and agent since the agent's start."""

    packets: int = 0
    dropped: int = 0
    """By the kernel: queue or socket full."""
    backlog: int = 0
    """Waiting for a verdict now."""
    errors: int = 0


class Status(msgspec.Struct, frozen=True):
    """One agent at one moment. Counters begin with its process."""

    version: str
    kind: str
    """``kubernetes`` or ``standalone``."""
    mode: str
    """``psk`` or ``pki``."""
    trust_domain: str
    backend: str
    datapath: str
    started: datetime
    node: str = ""
    """Name of the Node object; empty in standalone mode."""
    audit: bool = False
    fail_mode: str = "closed"
    silent: tuple[str, ...] = ()
    """Threads that do not move, each in words."""
    missing: tuple[str, ...] = ()
    """What keeps the agent from being ready, each in words."""
    pods: int = 0
    """Under enforcement."""
    not_enforced: int = 0
    """Known and not enforced: without a namespace here, or not yet."""
    policies: int = 0
    revision: int = 0
    flows: dict[str, int] = {}
    """By verdict: allow, deny, audit."""
    dropped: int = 0
    """Packets dropped by the data path, for whatever reason."""
    crashes: int = 0
    rule_errors: int = 0
    queues: Queues = Queues()
    identities_until: datetime | None = None
    """Earliest end of validity of the pods' identities; they are renewed at half of their life."""
    certificate_until: datetime | None = None
    """End of validity of the node's certificate; None without one."""
    key_problem: str = ""
    """The one of ``problems`` that is about the pre-shared key's file."""
    installation: str = ""
    """``lasts`` while pods without an identity count as not yet identified; ``finished``; empty in standalone mode."""
    waited_for: str = ""
    """Nodes whose agents are to come, while it lasts."""
    unprotected: tuple[str, ...] = ()
    """Pods that rules cannot hold, ``namespace/name: why``."""
    problems: tuple[str, ...] = ()
    v: int = 1


def moment(seconds: float) -> datetime:
    """Return seconds since the Unix epoch as a date."""
    return datetime.fromtimestamp(seconds, UTC)


class StatusServer:
    """Serves the socket from a thread of its own."""

    def __init__(self, path: Path, read: Callable[[], Status]) -> None:
        """Listen on the path, which is replaced if it exists; the caller is the only agent of that directory.

        Raises KernelError if the socket cannot be made there.
        """
        self.path = path
        self._read = read
        self._stopping = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.path.unlink(missing_ok=True)
            # The mode is set before anybody can connect: listen() comes after chmod().
            self._listener.bind(str(self.path))
            self.path.chmod(0o600)
            self._listener.listen(8)
        except OSError as error:
            self._listener.close()
            raise KernelError(
                f"status socket {self.path}: {error.strerror}; set spec.runtimeDirectory to another folder"
            ) from error
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() does not
        self._thread.join()
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                # It went away again, or no descriptor is free. The listener stays readable then: do not spin on it.
                self._stopping.wait(0.1)
                continue
            try:
                with connection:
                    connection.settimeout(1.0)
                    connection.sendall(msgspec.json.encode(self._read()))
            except OSError:
                pass  # it went away
            except Exception as error:
                log.warning("status cannot be told", extra=fields(error=error), exc_info=True)


def read_status(path: Path, as_root: str = "sudo trireme status") -> Status:
    """Ask the agent whose socket this is. Raises KernelError if none answers, or none but root may ask."""
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(os.fspath(path))
            while len(answer) <= MAX_BYTES and (part := connection.recv(65536)):
                answer += part
        return msgspec.json.decode(answer, type=Status)
    except OSError as error:
        raise no_answer("status socket", path, error, as_root) from error
    except msgspec.MsgspecError as error:
        raise KernelError(f"status socket {path}: another version of the agent answers: {error}; restart it") from error
