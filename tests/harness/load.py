"""Many connections at once, made by processes of their own: the data path under test keeps its interpreter to itself.

``python -m tests.harness.load serve PORT`` and ``… connect ADDRESS PORT COUNT`` read commands from stdin, one a line,
and answer each with one line of JSON. :class:`Worker` is the test's end of that.

A client's connection says "!", is greeted, sends what it likes and half-closes; the server answers with the SHA-256 of
all it has read, so that each connection knows whether any octet was lost, changed or repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import resource
import select
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import TracebackType

from agent.lab import LabNamespace

BLOCK = 2000
"""Octets that a stream writes at a time, and"""
PAUSE_S = 0.1
"""how long it rests in between: 20 kB/s, of which two busy cores carry hundreds."""
PATIENCE_S = 120.0


class Worker:
    """One such process, inside a namespace. A context manager."""

    def __init__(self, namespace: LabNamespace, *arguments: str) -> None:
        argv = [sys.executable, "-m", "tests.harness.load", *arguments]
        self._process = namespace.run(
            lambda: subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], bufsize=0
            )
        )

    def __enter__(self) -> Worker:
        assert self.hear() == {"ready": 1}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def tell(self, command: str) -> None:
        """Give a command and do not wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())

    def hear(self) -> dict[str, int]:
        """Wait for the next answer. Raises TimeoutError."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE_S)[0]:
            raise TimeoutError("the load generator does not answer")
        answer: dict[str, int] = json.loads(self._process.stdout.readline())
        return answer

    def ask(self, command: str) -> dict[str, int]:
        self.tell(command)
        return self.hear()


class _Server:
    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        total = hashlib.sha256()
        try:
            await reader.readexactly(1)
            writer.write(b"!")
            while data := await reader.read(65536):
                total.update(data)
            writer.write(total.digest())
            await writer.drain()
            self.outcomes["served"] += 1
        except (OSError, asyncio.IncompleteReadError) as error:
            self.outcomes[type(error).__name__] += 1
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def obey(self, command: list[str]) -> dict[str, int]:
        match command:
            case ["report"]:
                return dict(self.outcomes)
        raise ValueError(command)


class _Client:
    """Every command works on all connections at once, and its answer counts their outcomes."""

    def __init__(self, address: str, port: int, count: int) -> None:
        self._address, self._port, self._count = address, port, count
        self._connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._stop = asyncio.Event()
        self._streams: list[asyncio.Task[str]] = []

    async def obey(self, command: list[str]) -> dict[str, int]:
        match command:
            case ["connect"]:
                made = await asyncio.gather(*(self._connect() for _ in range(self._count)), return_exceptions=True)
                self._connections = [one for one in made if isinstance(one, tuple)]
                errors = Counter(type(one).__name__ for one in made if isinstance(one, BaseException))
                return {"connected": len(self._connections), **errors}
            case ["send", size]:
                outcomes = await asyncio.gather(*(self._send(*one, int(size)) for one in self._connections))
                return dict(Counter(outcomes))
            case ["rush", size]:
                outcomes = await asyncio.gather(*(self._rush(int(size)) for _ in range(self._count)))
                return dict(Counter(outcomes))
            case ["stream"]:
                self._streams = [asyncio.create_task(self._stream(*one)) for one in self._connections]
                return {"streaming": len(self._streams)}
            case ["ended"]:
                return {"ended": sum(stream.done() for stream in self._streams)}
            case ["stop"]:
                self._stop.set()
                return dict(Counter(await asyncio.gather(*self._streams)))
        raise ValueError(command)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(self._address, self._port)
        writer.write(b"!")
        await reader.readexactly(1)
        return reader, writer

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int) -> str:
        data = random.randbytes(size)
        try:
            writer.write(data)
            return await self._check(reader, writer, hashlib.sha256(data).digest())
        except OSError as error:
            return type(error).__name__

    async def _rush(self, size: int) -> str:
        """Connect and write at once, so that the data comes right behind the handshake."""
        data = random.randbytes(size)
        try:
            reader, writer = await asyncio.open_connection(self._address, self._port)
            writer.write(b"!" + data)
            writer.write_eof()
            answer = await reader.read()
            writer.close()
        except OSError as error:
            return type(error).__name__
        return "intact" if answer == b"!" + hashlib.sha256(data).digest() else "changed"

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        total = hashlib.sha256()
        try:
            await asyncio.sleep(random.uniform(0, PAUSE_S))
            while not self._stop.is_set():
                data = random.randbytes(BLOCK)
                total.update(data)
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(PAUSE_S)
            return await self._check(reader, writer, total.digest())
        except OSError as error:
            return type(error).__name__

    @staticmethod
    async def _check(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, digest: bytes) -> str:
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        return "intact" if answer == digest else "changed"


async def _main(arguments: list[str]) -> None:
    worker: _Server | _Client
    match arguments:
        case ["serve", port]:
            worker = _Server()
            await asyncio.start_server(worker.talk, ["0.0.0.0", "::"], int(port), backlog=4096)
        case ["connect", address, port, count]:
            worker = _Client(address, int(port), int(count))
        case _:
            raise SystemExit(__doc__)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print(json.dumps({"ready": 1}), flush=True)
    while line := await commands.readline():
        print(json.dumps(await worker.obey(line.decode().split())), flush=True)


if __name__ == "__main__":
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    # A process that moves to another processor between two segments has veth deliver them in the wrong order.
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[0 if sys.argv[1] == "serve" else -1]})
    asyncio.run(_main(sys.argv[1:]))
    os._exit(0)
