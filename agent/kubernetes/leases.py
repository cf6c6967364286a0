"""What agents tell each other through the API server: "this node's pods have identities", and "so have all nodes'".

While agents are being installed node by node, a pod without an identity may simply be on a node whose turn has not come
(the installation lasts). Each agent keeps a Lease of its own, ``trireme-agent-<node>``. One more Lease,
``trireme-installation``, says whether the installation lasts; it is the agents' own, so that manifests applied again do
not reset it. Its holder compares nodes with Leases for all: the others read one small object each.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from agent.kubernetes.calls import (
    CONFLICT,
    JSON,
    MERGE_PATCH,
    NOT_FOUND,
    Api,
    ApiRefused,
    Backoff,
    call,
    micro_time,
    shortened,
)
from agent.logs import fields
from agent.runtime import INSTALLATION
from trireme_py.errors import ConfigError, TriremeError

log = logging.getLogger(__name__)

RENEW_S: Final = 60.0
ALIVE_S: Final = 180
"""leaseDurationSeconds: two renewals may fail."""
LOOK_S: Final = 10.0
"""How often an agent reads whether the installation lasts, and its holder compares."""
JUDGED_S: Final = 60
"""When the installation's holder has not written for so long, whoever sees it first takes its place."""
RETRY_S: Final = (5.0, 60.0)
PAGE: Final = 500
FEW: Final = 20
"""Nodes without an announcement that are asked one by one whether they are ready at all."""
NAMED: Final = 10
"""Nodes that a message names."""
ANNOUNCES: Final = "trireme.io/announces"
STATE: Final = "trireme.io/installation"
LASTS, FINISHED = "lasts", "finished"
MISSING: Final = "trireme.io/nodes-without-identities"
INSTALLATION_LEASE: Final = "trireme-installation"
_LONGEST_NAME: Final = 253
_PREFIX: Final = "trireme-agent-"
_NODES: Final = "/api/v1/nodes"
_METADATA: Final = f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST: Final = f"{JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class _LeaseSpec(msgspec.Struct, frozen=True, rename="camel"):
    holder_identity: str = ""
    lease_duration_seconds: int = 0
    renew_time: datetime | None = None


class _Lease(msgspec.Struct, frozen=True):
    metadata: _Metadata
    spec: _LeaseSpec = _LeaseSpec()

    def alive(self, wall_s: float, for_s: int) -> bool:
        """Tell whether it was renewed in the last ``for_s`` seconds; a clock ahead of ours is taken for now."""
        return self.spec.renew_time is not None and wall_s < self.spec.renew_time.timestamp() + for_s


class _NodeCondition(msgspec.Struct, frozen=True):
    type: str
    status: str


class _NodeStatus(msgspec.Struct, frozen=True):
    conditions: tuple[_NodeCondition, ...] = ()


class _Node(msgspec.Struct, frozen=True):
    metadata: _Metadata
    status: _NodeStatus = _NodeStatus()

    @property
    def ready(self) -> bool:
        return any(condition == _NodeCondition("Ready", "True") for condition in self.status.conditions)


class _ListMetadata(msgspec.Struct, frozen=True, rename="camel"):
    continue_: str = msgspec.field(name="continue", default="")


class _Leases(msgspec.Struct, frozen=True):
    metadata: _ListMetadata
    items: list[_Lease] = []


class _Nodes(msgspec.Struct, frozen=True):
    metadata: _ListMetadata
    items: list[_Node] = []


_Page = TypeVar("_Page", _Leases, _Nodes)


class Announcer:
    """Keeps this node's Lease. Begin when this node's pods have identities; see :class:`agent.kubernetes.chores.Chore`.

    The Lease belongs to the Node object, and goes with it.
    """

    def __init__(
        self,
        api: Api,
        node: str,
        namespace: str,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """``namespace``: the agent's own. ``clock``: seconds since the Unix epoch."""
        self._api = api
        self._node = node
        self._leases = leases_of(namespace)
        self._name = _PREFIX + shortened(node, _LONGEST_NAME - len(_PREFIX))
        self._clock = clock
        self._draw = draw
        self._retry = Backoff(*RETRY_S, draw)
        self._announced: bool | None = None

    def step(self) -> float:
        """Renew the Lease, or make it; return the seconds until the next time."""
        try:
            self._renew()
        except (OSError, TriremeError) as error:
            if self._announced is not False:
                log.warning("this node cannot be announced now", extra=fields(lease=self._name, error=error))
            self._announced = False
            return self._retry.failed()
        if not self._announced:
            log.info("announced: this node's pods have identities", extra=fields(lease=self._name))
        self._announced = True
        self._retry.worked()
        return RENEW_S * (0.9 + 0.2 * self._draw())

    def _renew(self) -> None:
        spec = {"holderIdentity": self._node, "leaseDurationSeconds": ALIVE_S, "renewTime": micro_time(self._clock())}
        try:
            call(self._api, "PATCH", f"{self._leases}/{self._name}", _Lease, {"spec": spec}, content_type=MERGE_PATCH)
        except ApiRefused as error:
            if error.status != NOT_FOUND:
                raise
            node = call(self._api, "GET", f"{_NODES}/{self._node}", _Node, accept=_METADATA)
            owner = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": node.metadata.uid}
            metadata = {"name": self._name, "labels": {ANNOUNCES: "identities"}, "ownerReferences": [owner]}
            call(self._api, "POST", self._leases, _Lease, _lease(metadata, {**spec, "acquireTime": spec["renewTime"]}))


class Installation:
    """Whether agents are still being installed. It ends once, for good; see :class:`agent.kubernetes.chores.Chore`.

    What is known is kept in the runtime directory: an agent that restarts without an API server goes on as before.
    """

    def __init__(
        self,
        api: Api,
        node: str,
        namespace: str,
        directory: Path,
        *,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """``directory``: the runtime directory. ``clock``: seconds since the Unix epoch."""
        self._api = api
        self._node = node
        self._leases = leases_of(namespace)
        self._path = directory / INSTALLATION
        self._clock = clock
        self._draw = draw
        self._retry = Backoff(*RETRY_S, draw)
        self._lasts = self._read()
        self.missing = ""
        """Nodes whose pods have no identities yet, for people; empty while nobody has looked. From any thread."""
        self.on_finished: Callable[[], None] = lambda: None
        """Called once, on the thread of ``step``, when the installation ends."""

    @property
    def lasts(self) -> bool:
        """Whether a pod without an identity may be on a node without an agent. From any thread.

        Where nobody knows yet (:meth:`begin`), it does not.
        """
        return self._lasts is True

    def begin(self, stop: threading.Event) -> None:
        """Return when it is known whether the installation lasts, or ``stop`` is set. Call it before pods are held."""
        while self._lasts is None:
            wait_s = self.step()
            if self._lasts is None and wait_s is not None and stop.wait(wait_s):
                return
        if self._lasts:
            log.warning(
                "agents are being installed: pods without an identity count as not yet identified",
                extra=fields(ends_with="every node's agent, or: trireme install finish"),
            )

    def step(self) -> float | None:
        """Look whether it lasts; return the seconds until the next time, None when it is over."""
        if self._lasts is False:
            return None
        try:
            self._look()
        except (OSError, TriremeError) as error:
            wait_s = self._retry.failed()
            log.warning("cannot see whether agents are being installed", extra=fields(error=error))
            return wait_s
        self._retry.worked()
        return LOOK_S * (0.75 + 0.5 * self._draw()) if self._lasts else None

    def _look(self) -> None:
        try:
            lease = call(self._api, "GET", f"{self._leases}/{INSTALLATION_LEASE}", _Lease)
        except ApiRefused as error:
            if error.status != NOT_FOUND:
                raise
            lease = self._create()
        if lease.metadata.annotations.get(STATE) == FINISHED:
            self._set(False)
            return
        self._set(True)
        self.missing = lease.metadata.annotations.get(MISSING, "")
        mine = lease.spec.holder_identity == self._node
        if mine or not lease.alive(self._clock(), JUDGED_S):
            self._judge(lease)

    def _create(self) -> _Lease:
        metadata = {"name": INSTALLATION_LEASE, "annotations": {STATE: LASTS}}
        spec = {"holderIdentity": self._node, "leaseDurationSeconds": JUDGED_S, "renewTime": micro_time(self._clock())}
        try:
            return call(self._api, "POST", self._leases, _Lease, _lease(metadata, spec))
        except ApiRefused as error:
            if error.status != CONFLICT:  # made by another agent meanwhile
                raise
            return call(self._api, "GET", f"{self._leases}/{INSTALLATION_LEASE}", _Lease)

    def _judge(self, lease: _Lease) -> None:
        """Write down which nodes are missing, and that it is over if none is."""
        missing = _named(self._missing_nodes())
        patch = {
            "metadata": {
                "resourceVersion": lease.metadata.resource_version,  # who read the same version loses
                "annotations": {STATE: LASTS if missing else FINISHED, MISSING: missing},
            },
            "spec": {"holderIdentity": self._node, "renewTime": micro_time(self._clock())},
        }
        path = f"{self._leases}/{INSTALLATION_LEASE}"
        try:
            call(self._api, "PATCH", path, _Lease, patch, content_type=MERGE_PATCH)
        except ApiRefused as error:
            if error.status != CONFLICT:
                raise
            return
        if missing != self.missing:
            log.info("installation looked at", extra=fields(nodes_without_identities=missing or "none"))
        self.missing = missing
        if not missing:
            self._set(False)

    def _missing_nodes(self) -> list[str]:
        """Return the nodes without a live announcement that could have one: ready, and Linux."""
        now_s = self._clock()
        announced = {
            lease.spec.holder_identity
            for page in _pages(self._api, f"{self._leases}?labelSelector={quote(f'{ANNOUNCES}=identities')}", _Leases)
            for lease in page.items
            if lease.alive(now_s, ALIVE_S)
        }
        missing = [
            node.metadata.name
            for page in _pages(self._api, _NODES, _Nodes, accept=_METADATA_LIST)
            for node in page.items
            if node.metadata.name not in announced and node.metadata.labels.get("kubernetes.io/os") != "windows"
        ]
        if len(missing) > FEW:
            return missing
        return [name for name in missing if self._ready(name)]

    def _ready(self, name: str) -> bool:
        try:
            return call(self._api, "GET", f"{_NODES}/{name}", _Node).ready
        except ApiRefused as error:
            if error.status != NOT_FOUND:
                raise
            return False

    # -- What is kept -------------------------------------------------------------------------------------------------

    def _read(self) -> bool | None:
        try:
            text = self._path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return {LASTS: True, FINISHED: False}.get(text)

    def _set(self, lasts: bool) -> None:
        if lasts is self._lasts:
            return
        before, self._lasts = self._lasts, lasts
        self.missing = self.missing if lasts else ""
        try:
            fresh = self._path.with_suffix(".new")
            with open(fresh, "w", encoding="utf-8", opener=_for_root_alone) as stream:
                stream.write(LASTS if lasts else FINISHED)
            fresh.replace(self._path)
        except OSError as error:
            log.error("cannot be kept over a restart", extra=fields(path=self._path, error=error))
        if before is True and not lasts:
            log.info("the installation is over: pods without an identity are refused where identities are asked for")
            self.on_finished()


def finish(api: Api, namespace: str) -> bool:
    """End the installation for every agent. Return whether it lasted until now.

    :raises ConfigError: no agent has run in ``namespace``
    :raises ApiRefused: the API server does not let us
    :raises OSError: it is not there
    """
    path = f"{leases_of(namespace)}/{INSTALLATION_LEASE}"
    try:
        lease = call(api, "GET", path, _Lease)
        if lease.metadata.annotations.get(STATE) == FINISHED:
            return False
        patch = {"metadata": {"annotations": {STATE: FINISHED}}}
        call(api, "PATCH", path, _Lease, patch, content_type=MERGE_PATCH)
    except ApiRefused as error:
        if error.status != NOT_FOUND:
            raise
        raise ConfigError(
            f"no lease {INSTALLATION_LEASE} in namespace {namespace}: no agent has run there; "
            "look for them with: kubectl get daemonsets -A"
        ) from error
    return True


def leases_of(namespace: str) -> str:
    """Return the path of a namespace's Leases."""
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


def _lease(metadata: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


def _pages(api: Api, path: str, kind: type[_Page], accept: str = JSON) -> Iterator[_Page]:
    """List in pages, so that no answer grows with the cluster."""
    join = "&" if "?" in path else "?"
    more = ""
    while True:
        page = call(api, "GET", f"{path}{join}limit={PAGE}{more}", kind, accept=accept)
        yield page
        if not page.metadata.continue_:
            return
        more = f"&continue={quote(page.metadata.continue_, safe='')}"


def _named(nodes: list[str]) -> str:
    """Return nodes for people: how many, and the first of them."""
    if not nodes:
        return ""
    rest = f" and {len(nodes) - NAMED} more" if len(nodes) > NAMED else ""
    return f"{len(nodes)}: {', '.join(sorted(nodes)[:NAMED])}{rest}"


def _for_root_alone(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
