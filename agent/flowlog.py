"""The flow log: one JSON object a line for each judged flow (docs/flowlog.md, schema version 1)."""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final

import msgspec

from agent.logs import fields
from agent.mailbox import Mailbox
from trireme_py.errors import ConfigError
from trireme_py.model import Address, DropReason, FlowEvent, Identity, Protocol, Reason

log = logging.getLogger(__name__)

SCHEMA: Final = 1
"""Version of the schema. Fields may be added under the same version; none is removed or changes its meaning."""

BUFFER_EVENTS: Final = 65_536
"""Events waiting for the disk: some seconds of a busy node, about 50 MB at worst. Beyond it they are counted."""


class PeerRecord(msgspec.Struct, frozen=True, rename="camel"):
    """Who the other end is; ``proven`` tells a proven identity from one that was only claimed."""

    namespace: str
    pod: str
    service_account: str
    labels: dict[str, str]
    proven: bool


class EndRecord(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """An address and, for protocols that have ports, a port."""

    address: str
    port: int | None = None


class FlowRecord(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One line of the flow log. Fields with a default are left out of the line when they hold it."""

    v: int = msgspec.field()
    time: str = msgspec.field()
    pod: str = msgspec.field()
    direction: str = msgspec.field()
    verdict: str = msgspec.field()
    reason: str = msgspec.field()
    protocol: str = msgspec.field()
    source: EndRecord = msgspec.field()
    destination: EndRecord = msgspec.field()
    policy: str = ""
    rule: int | None = None
    rule_peer: int | None = None
    nearest: str = ""
    peer: PeerRecord | None = None
    actual_destination: EndRecord | None = None


def verdict_of(event: FlowEvent) -> str:
    """Return ``allow``, ``deny``, or ``audit``: let through although policy denies it, and why is the reason."""
    return verdict_for(event.decision.reason) if event.decision.allowed else "deny"


def verdict_for(reason: Reason | DropReason) -> str:
    """Return how what was let through for ``reason`` is reported."""
    return "audit" if reason in (Reason.AUDIT, Reason.NOT_YET_IDENTIFIED) else "allow"


def protocol_name(number: int) -> str:
    """Return the IANA name of the protocols the project names, the number of any other."""
    try:
        return Protocol(number).name
    except ValueError:
        return str(number)


def _end(address: Address, port: int | None) -> EndRecord:
    return EndRecord(str(ip_address(address)), port)


def _peer(identity: Identity | None, proven: bool) -> PeerRecord | None:
    if identity is None:
        return None
    labels = dict(identity.labels.describe())
    return PeerRecord(identity.namespace, identity.pod, identity.service_account, labels, proven)


def record_of(event: FlowEvent) -> FlowRecord:
    """Return the line's content for one event."""
    moment = datetime.fromtimestamp(event.wall_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    decision = event.decision
    return FlowRecord(
        v=SCHEMA,
        time=moment,
        pod=event.pod,
        direction=event.direction.value,
        verdict=verdict_of(event),
        reason=decision.reason.value,
        protocol=protocol_name(event.protocol),
        source=_end(event.source, event.source_port),
        destination=_end(event.destination, event.destination_port),
        policy=decision.policy,
        rule=decision.rule,
        rule_peer=decision.peer,
        nearest=decision.nearest,
        peer=_peer(event.peer, event.peer_proven),
        actual_destination=_end(*event.destination_actual) if event.destination_actual else None,
    )


def encode(event: FlowEvent) -> bytes:
    """Return the event's line, newline included."""
    return msgspec.json.encode(record_of(event)) + b"\n"


def open_target(target: str) -> int:
    """Return a descriptor to append lines by. Raises ConfigError if the file cannot be opened for that."""
    if target == "-":
        return os.dup(sys.stdout.fileno())
    try:
        # 0640: it names who talks to whom. O_APPEND: a log rotation by copy and truncate works.
        return os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise ConfigError(
            f"flow log {target}: {error.strerror}; make its folder writable or set spec.flowLog to another path"
        ) from error


class FlowLog:
    """Appends lines to a file (``-``: standard output) from a thread of its own.

    :meth:`publish` never waits; a full disk or a stuck pipe ends in :attr:`dropped`, never in the data path.
    """

    def __init__(self, target: str, buffer_events: int = BUFFER_EVENTS) -> None:
        """Raise ConfigError if the file cannot be opened for appending."""
        self._target = target
        self._fd = open_target(target)
        self._mailbox: Mailbox[FlowEvent] = Mailbox(buffer_events)
        self._lost = 0
        self._failing = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flow-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Events that did not reach the file since the start."""
        return self._mailbox.dropped + self._lost

    def publish(self, events: Iterable[FlowEvent]) -> None:
        """Take over ``events``; called by the data path's thread."""
        self._mailbox.put(events)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is buffered and stop. A target that takes nothing is given up after ``timeout_s`` seconds."""
        self._stopping.set()
        self._mailbox.wake()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._mailbox.close()
            os.close(self._fd)

    def _run(self) -> None:
        while not self._stopping.is_set():
            select.select([self._mailbox], [], [])
            self._write(self._mailbox.take())
        self._write(self._mailbox.take())

    def _write(self, events: list[FlowEvent]) -> None:
        for start in range(0, len(events), 512):
            batch = events[start : start + 512]
            data = memoryview(b"".join(map(encode, batch)))
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError as error:
                self._lost += len(batch)
                if not self._failing:
                    log.error("flow log cannot be written", extra=fields(target=self._target, error=error.strerror))
                self._failing = True
            else:
                self._failing = False
