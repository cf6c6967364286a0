"""Connections that are made all the time, and others that last, from inside pods: what a busy cluster has.

It runs in pods, from a ConfigMap, with nothing but Python's own library:

    traffic.py serve PORT      echo lines, on every address
    traffic.py call            call as the JSON in TRAFFIC says (:class:`Plan`); print a :class:`Report` all the time

A connection counts as made when its line came back. One that lasts sends a line ten times a second.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

REPORT_S = 0.25
LINE_S = 0.1
KEPT = 20
"""Failures that are told in words; all are counted."""


@dataclass
class Plan:
    """What a caller does."""

    targets: dict[str, tuple[str, int]]
    """Host and port, by a name for people."""
    every_s: float = 0.2
    """A new connection to each target so often, however long others take."""
    patience_s: float = 30.0
    """How long a connection, or a line of one that lasts, may take."""
    lasting: int = 0
    """Connections to each target that are opened at the start and stay."""


@dataclass
class Calls:
    """What became of the calls to one target."""

    started: int = 0
    settled: int = 0
    """Calls up to this one have all ended."""
    connected: int = 0
    made: int = 0
    failed: int = 0
    slowest_s: float = 0.0
    """The slowest that was made since the previous report."""
    lasting: int = 0
    """Connections that live."""
    lines: int = 0
    """Lines that came back on those."""
    silence_s: float = 0.0
    """The longest that one of those took for a line since the previous report."""


@dataclass
class Report:
    """Everything since the caller's start."""

    number: int = 0
    calls: dict[str, Calls] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    """How long each call took that was made since the previous report."""


class Caller:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._report = Report(calls={name: Calls() for name in plan.targets})
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        # Names are looked up on threads, and a lost query keeps one for five seconds and more.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(128))
        for name in self._plan.targets:
            for _ in range(self._plan.lasting):
                self._begin(self._last(name))
            self._begin(self._keep_calling(name))
        while True:
            print(json.dumps(asdict(self._report)), flush=True)
            self._report.number += 1
            self._report.took_s.clear()
            for calls in self._report.calls.values():
                calls.slowest_s = calls.silence_s = 0.0
            await asyncio.sleep(REPORT_S)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _failed(self, name: str, what: str, since_s: float, error: Exception) -> None:
        calls = self._report.calls[name]
        calls.failed += 1
        if len(self._report.failures) < KEPT:
            after = f"after {time.monotonic() - since_s:.2f} s"
            self._report.failures.append(f"{time.strftime('%X')} {name}: {what} {after}: {error!r}")

    async def _keep_calling(self, name: str) -> None:
        calls, pending = self._report.calls[name], set[int]()

        async def one(number: int) -> None:
            await self._call(name)
            pending.discard(number)
            calls.settled = min(pending) - 1 if pending else calls.started

        while True:
            calls.started += 1
            pending.add(calls.started)
            self._begin(one(calls.started))
            await asyncio.sleep(self._plan.every_s)

    async def _call(self, name: str) -> None:
        calls, since_s = self._report.calls[name], time.monotonic()
        try:
            async with asyncio.timeout(self._plan.patience_s):
                reader, writer = await asyncio.open_connection(*self._plan.targets[name])
                calls.connected += 1
                try:
                    await _exchange(reader, writer, b"beer\n")
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            self._failed(name, "not made", since_s, error)
            return
        took_s = time.monotonic() - since_s
        calls.made += 1
        calls.slowest_s = max(calls.slowest_s, took_s)
        self._report.took_s.append(round(took_s, 3))

    async def _last(self, name: str) -> None:
        """Hold a connection for ever; its end is a failure."""
        calls, since_s = self._report.calls[name], time.monotonic()
        try:
            async with asyncio.timeout(self._plan.patience_s):
                reader, writer = await asyncio.open_connection(*self._plan.targets[name])
            calls.lasting += 1
            try:
                number = 0
                while True:
                    number, since_s = number + 1, time.monotonic()
                    async with asyncio.timeout(self._plan.patience_s):
                        await _exchange(reader, writer, b"%d\n" % number)
                    calls.lines += 1
                    calls.silence_s = max(calls.silence_s, time.monotonic() - since_s)
                    await asyncio.sleep(LINE_S)
            finally:
                calls.lasting -= 1
                writer.close()
        except (OSError, TimeoutError) as error:
            self._failed(name, "a connection that lasted is lost", since_s, error)


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes) -> None:
    writer.write(line)
    await writer.drain()
    if (answer := await reader.readline()) != line:
        raise ConnectionError(f"answered {answer!r}")


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
    except OSError:
        pass  # the caller knows
    finally:
        writer.close()


async def _serve(port: int) -> None:
    server = await asyncio.start_server(_echo, None, port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(_serve(int(sys.argv[2])))
    else:
        asyncio.run(Caller(Plan(**json.loads(os.environ["TRAFFIC"]))).run())
