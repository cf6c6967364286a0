"""A stand-in for the API server: lists, pages and watches over real HTTP, and what goes wrong with them, on request.

Not a Kubernetes: it validates nothing and knows no field but ``metadata``. What the real one does is tested against the
real one (tests/cluster).
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR
from ssl import SSLContext
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

PATIENCE_S = 30.0
"""A bound for what happens in a fraction of a second on an idle machine."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """One request, as it came."""

    resource: str
    query: dict[str, str]
    headers: dict[str, str]

    @property
    def watch(self) -> bool:
        return self.query.get("watch") == "1"


@dataclass
class Collection:
    objects: dict[str, Object] = field(default_factory=dict)
    history: deque[tuple[int, bytes]] = field(default_factory=deque)
    """Events with their versions, since :attr:`begin`."""
    begin: int = 0
    watchers: list[queue.SimpleQueue[bytes | None]] = field(default_factory=list)


Fault = Callable[["Handler"], None]
"""Answers a request in place of what would be right."""


class ApiStandIn:
    """A context manager. ``resources``: those it serves, by plural name; any other is not found."""

    def __init__(self, *resources: str, tls: SSLContext | None = None, port: int = 0) -> None:
        self.collections = {name: Collection() for name in resources}
        self.version = 100
        self.requests: list[Request] = []
        self.token: str | None = None
        """What must come with each request."""
        self.paged = True
        """Whether it knows the parameter ``limit``."""
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.news = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler, bind_and_activate=False)
        self._server.allow_reuse_address = True
        self._server.daemon_threads = True
        self._server.api = self  # type: ignore[attr-defined]
        self._server.server_bind()
        self._server.server_activate()
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._connections: set[Handler] = set()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> ApiStandIn:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.cut()

    # -- What is there ------------------------------------------------------------------------------------------------

    def put(self, resource: str, name: str, /, *, namespace: str = "", **parts: Any) -> Object:
        """Add or change an object; ``parts``: spec, status, and fields of metadata as ``metadata=``."""
        with self.news:
            collection = self.collections[resource]
            self.version += 1
            key = f"{namespace}/{name}"
            metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": str(self.version)}
            metadata |= {"namespace": namespace} if namespace else {}
            item = {**parts, "metadata": {**metadata, **parts.get("metadata", {})}}
            kind = "MODIFIED" if key in collection.objects else "ADDED"
            collection.objects[key] = item
            self._tell(collection, kind, item)
        return item

    def delete(self, resource: str, name: str, /, *, namespace: str = "") -> None:
        with self.news:
            collection = self.collections[resource]
            self.version += 1
            item = collection.objects.pop(f"{namespace}/{name}")
            gone = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
            self._tell(collection, "DELETED", gone)

    def bookmark(self, resource: str) -> None:
        """Tell every watch the version that it has reached."""
        with self.news:
            self.version += 1
            data = line("BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}})
            for watcher in self.collections[resource].watchers:
                watcher.put(data)

    def say(self, resource: str, data: bytes) -> None:
        """Send octets as they are down every watch."""
        with self.news:
            for watcher in self.collections[resource].watchers:
                watcher.put(data)

    def end(self, resource: str) -> None:
        """End every watch as a server does that has kept it for long enough."""
        with self.news:
            for watcher in self.collections[resource].watchers:
                watcher.put(None)

    def forget(self, resource: str) -> None:
        """Remember no event up to now: whoever watches from an earlier version must list again."""
        with self.news:
            self.version += 1
            collection = self.collections[resource]
            collection.history.clear()
            collection.begin = self.version

    def cut(self) -> None:
        """Break every connection."""
        with self.news:
            connections = list(self._connections)
        for connection in connections:
            connection.abort()

    def fault(self, resource: str, *faults: Fault) -> None:
        """Answer the next requests for ``resource`` so, one each."""
        self._faults[resource].extend(faults)

    def wait_for(self, wanted: Callable[[ApiStandIn], object]) -> None:
        """Wait until ``wanted`` holds of the requests and watches."""
        with self.news:
            assert self.news.wait_for(lambda: wanted(self), PATIENCE_S), self.requests[-5:]

    def count(self, resource: str, *, watch: bool) -> int:
        return sum(one.resource == resource and one.watch is watch for one in self.requests)

    def watchers(self, resource: str) -> int:
        return len(self.collections[resource].watchers)

    def _tell(self, collection: Collection, kind: str, item: Object) -> None:
        data = line(kind, item)
        collection.history.append((self.version, data))
        for watcher in collection.watchers:
            watcher.put(data)
        self.news.notify_all()

    # -- What handlers ask --------------------------------------------------------------------------------------------

    def arrived(self, request: Request) -> Fault | None:
        with self.news:
            self.requests.append(request)
            self.news.notify_all()
            faults = self._faults[request.resource]
            return faults.popleft() if faults else None

    def connected(self, handler: Handler, there: bool) -> None:
        with self.news:
            (self._connections.add if there else self._connections.discard)(handler)
            self.news.notify_all()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def api(self) -> ApiStandIn:
        found: ApiStandIn = self.server.api  # type: ignore[attr-defined]
        return found

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        self.api.connected(self, True)
        try:
            with suppress(OSError):  # the other end has gone
                super().handle()
        finally:
            self.api.connected(self, False)

    def abort(self) -> None:
        """Break the connection, from another thread."""
        with suppress(OSError):
            self.connection.shutdown(SHUT_RDWR)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        resource = parts.path.rpartition("/")[2]
        self.request_seen = Request(resource, dict(parse_qsl(parts.query)), dict(self.headers))
        fault = self.api.arrived(self.request_seen)
        if fault is not None:
            fault(self)
        elif self.api.token is not None and self.headers.get("Authorization") != f"Bearer {self.api.token}":
            status(401)(self)
        elif resource not in self.api.collections:
            status(404)(self)
        elif self.request_seen.watch:
            self.watch(self.api.collections[resource])
        else:
            self.list(self.api.collections[resource])

    def list(self, collection: Collection) -> None:
        query = self.request_seen.query
        with self.api.news:
            items = list(collection.objects.values())
            first = int(query.get("continue", "0"))
            limit = int(query.get("limit", "0")) if self.api.paged else 0
            limit = limit or len(items)
            metadata = {"resourceVersion": str(self.api.version)}
            if first + limit < len(items):
                metadata["continue"] = str(first + limit)
        self.answer(200, {"kind": "List", "metadata": metadata, "items": items[first : first + limit]})

    def watch(self, collection: Collection) -> None:
        version = int(self.request_seen.query["resourceVersion"])
        events: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        with self.api.news:
            if version < collection.begin:
                events.put(line("ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"}))
                events.put(None)
            for at, event in collection.history:
                if at > version:
                    events.put(event)
            collection.watchers.append(events)
            self.api.news.notify_all()
        self.begin_stream()
        try:
            while (data := events.get()) is not None:
                self.chunk(data)
            self.chunk(b"")
        finally:
            with self.api.news:
                collection.watchers.remove(events)
                self.api.news.notify_all()

    def answer(self, code: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


def wait_until(done: Callable[[], bool]) -> bool:
    """Look every few milliseconds: for what tells nobody that it has happened."""
    deadline = time.monotonic() + PATIENCE_S
    while not done() and time.monotonic() < deadline:
        threading.Event().wait(0.005)
    return done()


def line(kind: str, item: Object) -> bytes:
    """Return one line of a watch."""
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def status(code: int, message: str = "as the test asks", **headers: str) -> Fault:
    """A fault: refuse with this status."""
    return lambda handler: handler.answer(
        code, {"kind": "Status", "status": "Failure", "code": code, "message": message}, **headers
    )


def body(data: bytes) -> Fault:
    """A fault: answer 200 with this body."""
    return lambda handler: handler.answer(200, data)


def stream(*parts: bytes, end: bool = False) -> Fault:
    """A fault: begin a watch, send these octets, and then break the connection, or end it well if ``end``."""

    def fault(handler: Handler) -> None:
        handler.begin_stream()
        for part in parts:
            handler.chunk(part)
        if end:
            handler.chunk(b"")
        handler.close_connection = True

    return fault


def hang(until: threading.Event, *, begun: bool = False) -> Fault:
    """A fault: say nothing, before or after the head of the answer, until the test is over."""

    def fault(handler: Handler) -> None:
        if begun:
            handler.begin_stream()
        until.wait(PATIENCE_S)
        handler.close_connection = True

    return fault
