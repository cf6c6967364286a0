"""The file that the kubelet's readiness probe looks for (manifests/base/daemonset.yaml).

In an update two agents share the node's network, so no port tells which of them answers. Their folders for what is
temporary are each its own. An agent counts as ready when its pods are held, by itself or by the one that it will follow
at once: only then may that one be stopped.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from agent.logs import fields

log = logging.getLogger(__name__)

READY_FILE: Final = Path("/tmp/ready")  # noqa: S108 - a volume of the pod's own


class Readiness:
    """Not ready until :meth:`mark`, whatever an earlier container of the same pod has left."""

    def __init__(self, closing: ExitStack, file: Path | None) -> None:
        """``file``: None where no kubelet looks. ``closing`` ends it."""
        self._file = file
        self._marked = False
        self._clear()
        closing.callback(self._clear)

    def mark(self) -> None:
        """Be ready from now on. Costs nothing the second time."""
        if self._marked:
            return
        self._marked = True
        try:
            if self._file is not None:
                self._file.touch()
        except OSError as error:
            log.error("the kubelet cannot be told that the agent is ready", extra=fields(error=error))

    def _clear(self) -> None:
        if self._file is not None:
            self._file.unlink(missing_ok=True)
