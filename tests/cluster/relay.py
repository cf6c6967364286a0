"""Carry TCP connections from a port of this computer's loopback to the same port of another network namespace's.

    python relay.py /run/netns/NAME PORT

It listens before it enters the namespace, so no interface or address is added to the computer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

from pyroute2 import netns

_CHUNK = 1 << 16


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()


async def _serve(listener: socket.socket, port: int) -> None:
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:  # nobody listens there now: the client sees its connection end
            writer.transport.abort()
            return
        directions = [asyncio.create_task(_copy(*ends)) for ends in ((reader, far_writer), (far_reader, writer))]
        _, other = await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        for task in other:  # TLS has no use for a connection that is closed on one side
            task.cancel()
        writer.close()
        far_writer.close()

    server = await asyncio.start_server(carry, sock=listener)
    await server.serve_forever()


def main() -> None:
    namespace, port = sys.argv[1], int(sys.argv[2])
    listener = socket.create_server(("127.0.0.1", port))
    netns.setns(namespace)
    asyncio.run(_serve(listener, port))


if __name__ == "__main__":
    main()
