"""Following the configuration folder: what has to happen when it changes, and what once a second, always."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from watchfiles import watch

from agent.logs import fields
from policy.files import SUFFIXES

log = logging.getLogger(__name__)

SETTLE_MS: Final = 100
"""A change of the folder is read when nothing more has changed for this long: an editor writes in several steps."""
TICK_MS: Final = 1000


class Follower(Protocol):
    """What :class:`agent.standalone.FolderMode` does about it."""

    def changed(self) -> None:
        """Bring the folder into force."""

    def tick(self) -> None:
        """Do what is due, and look for changes that nobody told of."""


def follow(folder: Path, follower: Follower, stop: threading.Event) -> None:
    """Bring each change of ``folder`` into force, and tick once a second, until ``stop`` is set."""
    ticked_s = time.monotonic()
    for paths in _changes(folder, stop):
        if any(map(is_configuration, paths)):
            follower.changed()
        # By the clock, because a log that is written beside the configuration never leaves a quiet second.
        if time.monotonic() - ticked_s >= TICK_MS / 1000:
            ticked_s = time.monotonic()
            follower.tick()


def _changes(folder: Path, stop: threading.Event) -> Iterator[set[str]]:
    """Yield the paths that changed, at least once a second, until ``stop`` is set."""
    changes = watch(
        folder,
        watch_filter=None,
        debounce=10 * SETTLE_MS,
        step=SETTLE_MS,
        stop_event=stop,
        rust_timeout=TICK_MS,
        yield_on_timeout=True,
        raise_interrupt=False,
    )
    try:
        for change in changes:
            yield {path for _, path in change}
    except (OSError, RuntimeError) as error:  # the library's own is a RuntimeError: no inotify instance is left, say
        log.warning(
            "the folder cannot be watched; it is looked at once a second",
            extra=fields(folder=folder, error=error, see="sysctl fs.inotify"),
        )
        while not stop.wait(TICK_MS / 1000):
            yield set()


def is_configuration(path: str) -> bool:
    """Tell whether a changed path matters: our kinds of files, and the hidden links by which ConfigMaps are swapped."""
    return path.endswith(SUFFIXES) or Path(path).name.startswith("..") or Path(path).is_dir()
