"""Whether an agent that is told to stop will come back: a restart or a rolling update, or the end of the installation.

SIGTERM is the same for all of them, and what to do is not: rules must outlive a restart, and must not outlive an
uninstallation. The difference is the agent's DaemonSet, or its namespace, being gone or on its way.

To ask for them at the last moment is too late: ``kubectl delete -k`` deletes the agent's permissions, too, and first.
A watch that is open outlives them. So the DaemonSet is watched all the time, and asked for once more at the end. It
counts only when the agent is stopped: ``kubectl delete daemonset --cascade=orphan`` is how one is made anew without
stopping its pods.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import msgspec

from agent.kubernetes.api import ApiServer
from agent.kubernetes.calls import NOT_FOUND
from agent.kubernetes.inbox import Inbox
from agent.kubernetes.reflector import Reflector
from agent.kubernetes.resources import watched
from agent.logs import fields

log = logging.getLogger(__name__)

DAEMON_SET: Final = "trireme-agent"
"""Its name in the manifests."""
OK: Final = 200
PATIENCE_S: Final = 3.0
"""The kubelet gives a stopped pod 30 s, most of which removing everything may need."""


class _Metadata(msgspec.Struct, rename="camel"):
    deletion_timestamp: str | None = None


class _Object(msgspec.Struct):
    metadata: _Metadata


class Departure:
    """Follows the agent's own DaemonSet from :meth:`start` on, on a thread of its own."""

    def __init__(self, api: ApiServer, namespace: str, terminating: Callable[[], bool], name: str = DAEMON_SET) -> None:
        """``terminating``: whether the namespace is being deleted; that cannot be taken back."""
        self._api = api
        self._terminating = terminating
        self._path = f"/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}"
        self._inbox = Inbox()
        labelled, *_ = watched("")  # of namespaces: metadata is all that counts here, too
        self._own = replace(
            labelled,
            name=f"namespaces/{namespace}/daemonsets",
            kind="DaemonSet",
            api_version="apps/v1",
            query={"fieldSelector": f"metadata.name={name}"},
        )
        self._reflector = Reflector(api, self._own, self._inbox)
        self._going = False
        self._seen = False

    def start(self) -> None:
        self._reflector.start()

    def stop(self) -> None:
        self._reflector.stop()
        self._inbox.close()

    def follows(self) -> bool:
        """Tell whether the DaemonSet has been seen. One that never was, having another name, cannot be gone."""
        self._going_by_watch()
        return self._seen

    def final(self) -> bool:
        """Tell whether the agent, which is being stopped, will not be started again.

        False where nobody says so: what is left in place holds, and can be removed later.
        """
        if not self.follows():
            return False
        if self._terminating() or self._going:
            return True
        answers: list[bool] = []
        asking = threading.Thread(target=lambda: answers.append(self._going_by_answer()), daemon=True)
        asking.start()
        asking.join(PATIENCE_S)
        # The watch may have had the news in the meantime.
        return True in answers or self._terminating() or self._going_by_watch()

    def _going_by_watch(self) -> bool:
        batch = self._inbox.take()
        for objects in (batch.lists.get(self._own.name), batch.changes.get(self._own.name)):
            if objects is not None:
                known = next(iter(objects.values()), None)
                self._seen |= known is not None
                self._going = known is None or _being_deleted(known.document)
        return self._going

    def _going_by_answer(self) -> bool:
        try:
            status, body = self._api.request("GET", self._path, accept=self._own.accept_watch)
        except OSError as error:
            log.warning("whether the installation ends cannot be asked", extra=fields(error=error))
            return False
        return status == NOT_FOUND or (status == OK and _being_deleted(body))


def _being_deleted(document: bytes) -> bool:
    try:
        return msgspec.json.decode(document, type=_Object).metadata.deletion_timestamp is not None
    except msgspec.MsgspecError:
        return False  # nobody says so
