"""What the watches tell the reconciler: the newest state of each object, however often it changed in between.

A burst of changes costs as many entries as there are objects, and the reconciler takes all of them at once.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from agent.kubernetes.resources import Known


@dataclass(slots=True)
class Batch:
    """What has come since the last one."""

    lists: dict[str, dict[str, Known]] = field(default_factory=dict)
    """By resource: all its objects there are, by key. Such a list comes before the changes of its resource."""
    changes: dict[str, dict[str, Known | None]] = field(default_factory=dict)
    """By resource and key; None: deleted."""
    since_s: float | None = None
    """When the first of it came, by the monotonic clock."""


class Inbox:
    """Many may put, one takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._batch = Batch()
        self._away: frozenset[str] = frozenset()
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def put(self, resource: str, changes: Iterable[tuple[str, Known | None]], now_s: float) -> None:
        """Add changes, oldest first."""
        with self._lock:
            self._batch.changes.setdefault(resource, {}).update(changes)
            self._came(now_s)
        self.wake()

    def put_list(self, resource: str, objects: dict[str, Known], now_s: float) -> None:
        """Add all objects of a resource: what was there before and is not among them is gone."""
        with self._lock:
            self._batch.changes.pop(resource, None)
            self._batch.lists[resource] = objects
            self._away -= {resource}
            self._came(now_s)
        self.wake()

    def _came(self, now_s: float) -> None:
        if self._batch.since_s is None:
            self._batch.since_s = now_s

    def listed(self) -> frozenset[str]:
        """Return the resources of which a list waits to be taken."""
        with self._lock:
            return frozenset(self._batch.lists)

    def put_away(self, resource: str) -> None:
        """Say that nobody is there who could be asked for a resource, until its next list."""
        with self._lock:
            told, self._away = self._away, self._away | {resource}
        if told != self._away:
            self.wake()

    @property
    def away(self) -> frozenset[str]:
        """The resources that nobody could be asked for since their last list."""
        return self._away

    def wake(self) -> None:
        """Make the reader look. May be called from a signal handler."""
        with suppress(BlockingIOError):  # it is awake
            os.eventfd_write(self._event, 1)

    def waiting(self) -> bool:
        """Tell whether somebody has woken the reader."""
        return bool(select.select([self._event], [], [], 0)[0])

    def wait(self, timeout_s: float) -> bool:
        """Wait until somebody wakes the reader; tell whether somebody did."""
        if not select.select([self._event], [], [], max(timeout_s, 0.0))[0]:
            return False
        with suppress(BlockingIOError):
            os.eventfd_read(self._event)
        return True

    def take(self) -> Batch:
        """Return everything that is inside."""
        with self._lock:
            batch, self._batch = self._batch, Batch()
        return batch

    def close(self) -> None:
        os.close(self._event)
