"""The observe socket: the last verdicts and the ones to come, as flow log lines, for whoever connects.

A subscriber sends nothing. It gets the ring of the last :data:`RING_EVENTS` verdicts, then the line :data:`LIVE`, then
each verdict as it happens. The socket lies in the runtime directory with mode 0600: who may read it is who may stop
the agent.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agent.flowlog import encode
from agent.mailbox import Mailbox
from agent.runtime import no_answer
from trireme_py.errors import KernelError
from trireme_py.model import FlowEvent

RING_EVENTS: Final = 1000
"""Verdicts remembered for those who come late; under a megabyte."""
SUBSCRIBER_BYTES: Final = 4 * 1024 * 1024
"""What may wait for one subscriber: several rings. One that lags further is disconnected and counted."""
SUBSCRIBERS: Final = 32
"""Readers at a time; people, not machines, read this socket."""
LIVE: Final = b'{"v":1,"live":true}\n'
"""The line between what was remembered and what happens now."""


class _Subscriber:
    __slots__ = ("connection", "waiting")

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.waiting = bytearray()


class ObserveServer:
    """Serves the observe socket from a thread of its own; :meth:`publish` never waits for anybody.

    It remembers from the beginning, and answers from :meth:`start` on: an agent whose socket answers is ready.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.slow_subscribers = 0
        """Subscribers disconnected because they read too slowly."""
        self._mailbox: Mailbox[FlowEvent] = Mailbox(RING_EVENTS * 8)
        self._ring: deque[FlowEvent] = deque(maxlen=RING_EVENTS)
        self._subscribers: dict[int, _Subscriber] = {}
        self._stopping = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, name="observe", daemon=True)

    def start(self) -> None:
        """Listen on the path, which is replaced if it exists; the caller is the only agent of that directory.

        Raises KernelError if the socket cannot be made there.
        """
        try:
            self.path.unlink(missing_ok=True)
            # The mode is set before anybody can connect: listen() comes after chmod().
            self._listener.bind(str(self.path))
            self.path.chmod(0o600)
            self._listener.listen(8)
        except OSError as error:
            raise KernelError(
                f"observe socket {self.path}: {error.strerror}; set spec.runtimeDirectory to another folder"
            ) from error
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._mailbox, selectors.EVENT_READ)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Events that reached neither the ring nor a subscriber."""
        return self._mailbox.dropped

    @property
    def subscribers(self) -> int:
        return len(self._subscribers)

    def publish(self, events: Iterable[FlowEvent]) -> None:
        """Take over ``events``; called by the data path's thread."""
        self._mailbox.put(events)

    def close(self) -> None:
        """Disconnect everybody and remove the socket."""
        self._stopping.set()
        self._mailbox.wake()
        if self._thread.is_alive():
            self._thread.join()
        for subscriber in self._subscribers.values():
            subscriber.connection.close()
        self._selector.close()
        self._listener.close()
        self._mailbox.close()
        self.path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stopping.is_set():
            for key, events in self._selector.select():
                if key.fileobj is self._mailbox:
                    self._distribute(self._mailbox.take())
                elif key.fileobj is self._listener:
                    self._accept()
                elif key.fd in self._subscribers:
                    self._serve(self._subscribers[key.fd], events)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            # It went away again, or no descriptor is free. The listener stays readable then: do not spin on it.
            self._stopping.wait(0.1)
            return
        if len(self._subscribers) >= SUBSCRIBERS:
            connection.close()
            return
        connection.setblocking(False)
        subscriber = _Subscriber(connection)
        self._subscribers[connection.fileno()] = subscriber
        self._selector.register(connection, selectors.EVENT_READ)
        subscriber.waiting += b"".join(map(encode, self._ring)) + LIVE
        self._flush(subscriber)

    def _distribute(self, events: list[FlowEvent]) -> None:
        self._ring.extend(events)
        if not self._subscribers:
            return
        lines = b"".join(map(encode, events))
        for subscriber in list(self._subscribers.values()):
            subscriber.waiting += lines
            self._flush(subscriber)

    def _serve(self, subscriber: _Subscriber, events: int) -> None:
        if events & selectors.EVENT_READ:
            try:
                gone = subscriber.connection.recv(4096) == b""
            except BlockingIOError:
                gone = False
            except OSError:
                gone = True
            if gone:
                self._disconnect(subscriber)
                return
        if events & selectors.EVENT_WRITE:
            self._flush(subscriber)

    def _flush(self, subscriber: _Subscriber) -> None:
        try:
            while subscriber.waiting:
                sent = subscriber.connection.send(subscriber.waiting[:65536])
                del subscriber.waiting[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._disconnect(subscriber)
            return
        if len(subscriber.waiting) > SUBSCRIBER_BYTES:
            self.slow_subscribers += 1
            self._disconnect(subscriber)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if subscriber.waiting else 0)
        self._selector.modify(subscriber.connection, wanted)

    def _disconnect(self, subscriber: _Subscriber) -> None:
        self._selector.unregister(subscriber.connection)
        del self._subscribers[subscriber.connection.fileno()]
        subscriber.connection.close()


def subscribe(path: Path, as_root: str = "sudo trireme observe") -> socket.socket:
    """Return a connected observe socket.

    Raises KernelError if no agent answers there, or none but root may ask.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(os.fspath(path))
    except OSError as error:
        connection.close()
        raise no_answer("observe socket", path, error, as_root) from error
    return connection
