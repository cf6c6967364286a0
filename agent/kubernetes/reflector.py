"""Follows one collection of the API: list it, watch it from there, and begin again where that breaks off.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes. The states:

    list (in pages) -> watch from its resourceVersion -> watch again from the last one seen
         ^                                                      |
         +------- 410: that version is no longer remembered ----+

While the API server is away, nothing that was told is taken back: the reader of the inbox goes on with what it knows.
"""

from __future__ import annotations

import http.client
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import msgspec

from agent.kubernetes.api import LARGEST_ANSWER, ApiServer, Connection, read_all
from agent.kubernetes.calls import Backoff
from agent.kubernetes.inbox import Inbox
from agent.kubernetes.reading import WatchReading
from agent.kubernetes.resources import Known, Resource
from agent.logs import fields

log = logging.getLogger(__name__)

PAGE: Final = 500
"""Objects in a page of a list: the official clients' number."""
READ_CHUNK: Final = 1 << 16
_OK: Final = 200
_NOT_FOUND: Final = 404
_GONE: Final = 410
_GARBAGE_TURNS: Final = 3
"""After so many watches in a row that broke off at something unreadable, the collection is listed anew."""


@dataclass(frozen=True, slots=True)
class Timing:
    """All in seconds."""

    watch: tuple[float, float] = (240.0, 480.0)
    """How long the server is asked to keep a watch: drawn, so that those of many nodes do not end together."""
    silence: float = 90.0
    """The server sends a bookmark about every minute: with nothing for so long, the connection is dead."""
    lived: float = 5.0
    """A watch that lasted so long was a success."""
    away: tuple[float, float] = (0.25, 4.0)
    """First and longest wait while nobody answers: short, so that all is well seconds after the server is back."""
    refused: tuple[float, float] = (0.5, 30.0)
    """The same while the server answers, and refuses."""
    not_served: float = 30.0
    """How often it is looked whether a CustomResourceDefinition has come."""


class _Interrupted(Exception):
    """The watch or the list cannot go on."""

    def __init__(self, reason: str, text: str, *, retry_after_s: float = 0.0, relist: bool = False) -> None:
        super().__init__(text)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.relist = relist


class _NotServed(Exception):
    """The API server knows no such collection."""


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class _Page(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Versioned(msgspec.Struct):
    metadata: _ListMeta


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""


class Reflector:
    """Has a thread of its own, which only ever waits for the API server."""

    def __init__(
        self,
        api: ApiServer,
        resource: Resource,
        inbox: Inbox,
        timing: Timing | None = None,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.resource = resource
        self.reading = WatchReading()
        self.trouble = "has not answered yet"
        """Why nothing is told at the moment; empty while all is well."""
        self._api = api
        self._inbox = inbox
        self._timing = timing or Timing()
        self._draw = draw
        self._version = ""
        self._here: set[str] = set()
        """Keys of the objects that were last told of; only of a collection that may go away as a whole."""
        self._missing = False
        self._streaming = False
        """Whether a watch has been opened on this connection."""
        self._garbage = 0
        self._whole = False
        """Whether to list without pages: the last list in pages took too long."""
        self._stop = threading.Event()
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name=f"watch-{resource.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, whatever it waits for."""
        self._stop.set()
        if self._connection is not None:
            self._connection.interrupt()
        self._thread.join()

    def _run(self) -> None:
        away, refused = Backoff(*self._timing.away), Backoff(*self._timing.refused)
        while not self._stop.is_set():
            began_s = time.monotonic()
            try:
                self._follow()
                interrupted = _Interrupted("eof", "the server ended the watch at once")
            except _NotServed:
                self._not_served()
                away.worked()
                refused.worked()
                self._stop.wait(self._draw(0.5, 1.0) * self._timing.not_served)
                continue
            except _Interrupted as error:
                interrupted = error
            except Exception as error:
                # A thread that dies in silence would leave the node with the policy of that day.
                log.exception("watch failed", extra=fields(resource=self.resource.name))
                interrupted = _Interrupted("garbage", str(error), relist=True)
            if self._stop.is_set():
                return
            self._count(interrupted)
            if interrupted.reason == "network":
                self._inbox.put_away(self.resource.name)
            if self._streaming and time.monotonic() - began_s >= self._timing.lived:
                away.worked()
                refused.worked()
                continue
            backoff, other = (away, refused) if interrupted.reason in ("network", "eof") else (refused, away)
            other.worked()
            wait_s = max(backoff.failed(), interrupted.retry_after_s)
            self._complain(str(interrupted), wait_s)
            self._stop.wait(wait_s)

    def _count(self, interrupted: _Interrupted) -> None:
        self.reading.restarts[interrupted.reason] += 1
        self._garbage = self._garbage + 1 if interrupted.reason == "garbage" else 0
        if interrupted.relist or self._garbage >= _GARBAGE_TURNS:
            self._version, self._garbage = "", 0

    def _complain(self, text: str, wait_s: float) -> None:
        """Say what is wrong once, not at every attempt."""
        if text != self.trouble:
            where = {"resource": self.resource.name, "server": self._api.access.address}
            log.warning("watch interrupted", extra=fields(**where, error=text, again_in_s=round(wait_s, 1)))
        self.trouble = text

    def _told(self, count: int = 0) -> None:
        """The server has told something."""
        self.reading.events += count
        self.reading.last_event = time.time()
        if self.trouble:
            log.info("watching", extra=fields(resource=self.resource.name, server=self._api.access.address))
            self.trouble = ""

    def _not_served(self) -> None:
        """Take back what was told, once it is sure that the collection is gone, and no server was merely starting."""
        self.reading.last_event = time.time()
        self._version = self.trouble = ""
        if self._missing or not self._here:
            if self._here or not self._missing:
                self._inbox.put_list(self.resource.name, {}, time.monotonic())
            self._here = set()
        self._missing = True

    # -- One connection -----------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """List if need be, and watch until the server ends it."""
        self._streaming = False
        try:
            with closing(self._api.connect()) as connection:
                self._connection = connection
                if self._stop.is_set():
                    return
                if not self._version:
                    self._list(connection)
                self._watch(connection)
        except TimeoutError as error:
            raise _Interrupted("timeout" if self._streaming else "network", "no answer in time") from error
        except http.client.HTTPException as error:
            cut = isinstance(error, http.client.IncompleteRead | http.client.RemoteDisconnected)
            raise _Interrupted("eof" if cut else "garbage", _words(error)) from error
        except msgspec.MsgspecError as error:
            raise _Interrupted("garbage", f"not what an API server says: {error}") from error
        except OSError as error:
            raise _Interrupted("network", _words(error)) from error
        finally:
            self._connection = None

    def _get(self, connection: Connection, **query: str) -> http.client.HTTPResponse:
        accept = self.resource.accept_watch if "watch" in query else self.resource.accept_list
        answer = connection.send("GET", self.resource.path(**query), accept=accept)
        if answer.status == _OK:
            return answer
        if answer.status == _NOT_FOUND and self.resource.optional:
            raise _NotServed
        text = f"{answer.status} {_message(read_all(answer)) or answer.reason}"
        retry_after = answer.headers.get("Retry-After", "")
        raise _Interrupted(
            "gone" if answer.status == _GONE else "refused",
            text,
            retry_after_s=min(float(retry_after), self._timing.refused[1]) if retry_after.isdigit() else 0.0,
            relist=answer.status == _GONE,
        )

    def _list(self, connection: Connection) -> None:
        """Read the whole collection, page by page, and hand it over as one."""
        objects: dict[str, Known] = {}
        query = {} if self._whole else {"limit": str(PAGE)}
        while True:
            try:
                page = msgspec.json.decode(read_all(self._get(connection, **query)), type=_Page)
            except _Interrupted as error:
                self._whole = error.reason == "gone"
                raise
            self._told()
            for raw in page.items or ():
                known = self.resource.read(raw)
                objects[known.key] = known
            if not page.metadata.continue_:
                break
            query["continue"] = page.metadata.continue_
        self._whole = False
        self._here = set(objects) if self.resource.optional else set()
        self._missing = False
        self._inbox.put_list(self.resource.name, objects, time.monotonic())
        self._version = page.metadata.resource_version

    def _watch(self, connection: Connection) -> None:
        answer = self._get(
            connection,
            watch="1",
            allowWatchBookmarks="true",
            resourceVersion=self._version,
            timeoutSeconds=str(int(self._draw(*self._timing.watch))),
        )
        self._streaming = True
        connection.set_timeout(self._timing.silence)
        for lines in _lines(answer):
            now_s = time.monotonic()
            changes: list[tuple[str, Known | None]] = []
            try:
                for line in lines:
                    self._event(line, changes)
            finally:
                # What came before something unreadable is as good as ever.
                self._told(len(changes))
                if changes:
                    self._inbox.put(self.resource.name, changes, now_s)

    def _event(self, line: bytes, changes: list[tuple[str, Known | None]]) -> None:
        event = msgspec.json.decode(line, type=_Event)
        if event.type == "ERROR":
            status = msgspec.json.decode(event.object, type=_Status)
            reason = "gone" if status.code == _GONE else "refused"
            raise _Interrupted(reason, f"{status.code} {status.message}", relist=True)
        version = msgspec.json.decode(event.object, type=_Versioned).metadata.resource_version
        if event.type in ("ADDED", "MODIFIED", "DELETED"):
            known = self.resource.read(event.object)
            gone = event.type == "DELETED"
            changes.append((known.key, None if gone else known))
            if self.resource.optional:
                self._here.discard(known.key) if gone else self._here.add(known.key)
        elif event.type != "BOOKMARK":
            raise _Interrupted("garbage", f"an event of type {event.type!r}")
        self._version = version or self._version


def _lines(answer: http.client.HTTPResponse) -> Iterator[list[bytes]]:
    """Yield the lines that came together. What is left behind the last newline when the body ends is dropped."""
    rest = bytearray()
    while part := answer.read1(READ_CHUNK):
        rest += part
        end = rest.rfind(b"\n", len(rest) - len(part))
        if end >= 0:
            lines = bytes(rest[:end]).split(b"\n")
            del rest[: end + 1]
            yield [line for line in lines if line.strip()]
        elif len(rest) > LARGEST_ANSWER:
            raise _Interrupted("garbage", f"a line longer than {LARGEST_ANSWER >> 20} MiB", relist=True)


def _message(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Status).message
    except msgspec.MsgspecError:
        return ""


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
