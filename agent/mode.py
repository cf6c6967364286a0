"""What differs between standalone mode and a cluster, as :mod:`agent.main` sees it."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Protocol

from agent.durations import Durations
from agent.kubernetes.reading import ClusterReading
from agent.reconciler import Reconciler
from agent.source import Source


class Mode(Protocol):
    """Where the agent runs: what feeds the reconciler, and what calls it."""

    @property
    def source(self) -> Source: ...

    @property
    def durations(self) -> Durations:
        """From the arrival of a change to its being in force."""

    def prepare(self, turn: threading.Event, closing: ExitStack) -> None:
        """Learn what can be learnt while another agent holds the pods, until ``turn`` is set; ``closing`` stops it."""

    def start(self, closing: ExitStack) -> None:
        """It is our turn: start what has to run before pods are held; ``closing`` stops it. Raises TriremeError."""

    def wake(self) -> None:
        """Make :meth:`prepare` and :meth:`follow` look whether something has changed for them. From any thread."""

    def read(self) -> ClusterReading | None:
        """Return what there is in a cluster alone, None elsewhere. May be called from any thread."""

    def follow(self, reconciler: Reconciler) -> None:
        """Call ``reconciler`` when there is news and once a second, until told to stop."""
