"""A bounded box between the data path's thread and one reader that may be slow."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Many may put, one takes. Putting never waits: what does not fit is counted in :attr:`dropped` and forgotten.

    The reader waits on :meth:`fileno` (readable while something is inside), alone or in a selector.
    """

    def __init__(self, limit: int) -> None:
        self.dropped = 0
        self._limit = limit
        self._lock = threading.Lock()
        self._items: list[T] = []
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        return self._event

    def put(self, items: Iterable[T]) -> None:
        """Add ``items``, as many as fit, and wake the reader."""
        with self._lock:
            for item in items:
                if len(self._items) < self._limit:
                    self._items.append(item)
                else:
                    self.dropped += 1
        self.wake()

    def wake(self) -> None:
        """Make the reader look, also when nothing is inside (used to stop it)."""
        os.eventfd_write(self._event, 1)

    def take(self) -> list[T]:
        """Return everything that is inside; empty if the reader was only woken."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        with self._lock:
            items, self._items = self._items, []
        return items

    def close(self) -> None:
        os.close(self._event)
