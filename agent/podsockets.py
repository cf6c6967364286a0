"""What the agent opens inside a pod's namespace besides its queue: raw sockets, and the kernel's counters of the queue.

A socket stays in the namespace that it was made in, and keeps it alive until it is closed.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent import netns
from trireme_py.errors import KernelError

SEND_BUFFER: Final = 8 << 20
"""Octets. What we send waits in the pod's own queue, a kilobyte each, and there may be as much of it as of anything
else: a thousand connections that are cut at once are a thousand resets. The usual buffer takes two hundred."""

_IPV6_HDRINCL: Final = 36  # include/uapi/linux/in6.h
_SO_SNDBUFFORCE: Final = 32  # include/uapi/asm-generic/socket.h


@dataclass(frozen=True, slots=True)
class KernelCounters:
    """What the kernel counts of one queue (net/netfilter/nfnetlink_queue.c, seq_show)."""

    waiting: int
    """Packets waiting for a verdict, held ones included."""
    queue_dropped: int
    """Dropped because as many packets were waiting as may."""
    user_dropped: int
    """Dropped because the receive buffer was full."""
    total: int
    """Packets that ever went into the queue."""


class PodSockets:
    """The sockets of one pod. One thread."""

    __slots__ = ("_ipv4", "_ipv6", "_proc", "_queue")

    def __init__(self, namespace: Path, queue: int) -> None:
        """``queue``: the number of the queue whose counters are asked for.

        Raises :class:`KernelError` if the namespace cannot be entered, or this process may open no more files.
        """
        self._queue = queue
        try:
            self._ipv4, self._ipv6, self._proc = netns.run_inside(namespace, _open_inside)
        except OSError as error:
            raise KernelError(f"network namespace {namespace}: no socket can be opened inside: {error}") from error

    def close(self) -> None:
        self._ipv4.close()
        if self._ipv6 is not None:
            self._ipv6.close()
        os.close(self._proc)

    def kernel_counters(self) -> KernelCounters:
        """Read the kernel's own counters of the queue; all zero if it is not there."""
        for line in os.pread(self._proc, 1 << 16, 0).decode("ascii").splitlines():
            # queue number, port id, waiting, copy mode, copy range, queue dropped, user dropped, last packet id, 1
            columns = [int(column) for column in line.split()]
            if columns[0] == self._queue:
                return KernelCounters(columns[2], columns[5], columns[6], columns[7])
        return KernelCounters(0, 0, 0, 0)

    def send(self, data: bytes) -> None:
        """Send a whole IP packet. Raises OSError."""
        if data[0] >> 4 == 4:
            self._ipv4.sendto(data, (socket.inet_ntop(socket.AF_INET, data[16:20]), 0))
        elif self._ipv6 is None:
            raise OSError("no IPv6 here")
        else:
            self._ipv6.sendto(data, (socket.inet_ntop(socket.AF_INET6, data[24:40]), 0))


def _open_inside() -> tuple[socket.socket, socket.socket | None, int]:
    ipv4 = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
    ipv6 = None
    if Path("/proc/sys/net/ipv6").exists():
        ipv6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
        ipv6.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
    for raw in (ipv4, ipv6):
        if raw is not None:
            set_buffer(raw, _SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER)
    # An open file of /proc/net shows the namespace it was opened in. It comes last, because nothing closes a plain
    # descriptor when one of the steps fails.
    proc = os.open("/proc/thread-self/net/netfilter/nfnetlink_queue", os.O_RDONLY | os.O_CLOEXEC)
    return ipv4, ipv6, proc


def set_buffer(one: socket.socket, forced: int, asked: int, octets: int) -> None:
    """Ask for ``octets`` of a socket's buffer, by the options ``forced`` or, where that is not permitted, ``asked``."""
    try:
        one.setsockopt(socket.SOL_SOCKET, forced, octets)
    except PermissionError:  # root of a user namespace gets what net.core.rmem_max and wmem_max allow
        one.setsockopt(socket.SOL_SOCKET, asked, octets)
