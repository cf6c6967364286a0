"""What conntrack knows: where a node translated a dialled address to, and which connections carry our marks."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from agent import conntrack_dump, netns
from agent.conntrack_dump import LiveConnection
from agent.marks import Marks
from trireme_py._fastpath import Conntrack
from trireme_py.errors import BadPacket, KernelError
from trireme_py.model import Address, DropReason

T = TypeVar("T")

NETLINK_NETFILTER: Final = 12  # include/uapi/linux/netlink.h


class NodeConntrack:
    """Looks connections up in the conntrack of one node's network namespace. Any thread; close it in the end."""

    __slots__ = ("table",)

    def __init__(self, namespace: Path) -> None:
        """Raises :class:`KernelError` if the namespace cannot be entered, or gives no socket."""
        try:
            self.table = Conntrack(netns.run_inside(namespace, open_netfilter).detach())
        except OSError as error:
            raise KernelError(f"network namespace {namespace}: no netfilter socket: {error}") from error

    def close(self) -> None:
        """Let go of the namespace."""
        self.table.close()

    def translate(
        self, protocol: int, source: Address, source_port: int, destination: Address, destination_port: int
    ) -> tuple[Address, int] | None:
        """Return the address and port that the node translated ``destination`` to for this very connection.

        That is who answers in the reply direction; whether the source was masqueraded as well makes no difference.
        Returns the destination itself for a connection that is known and not translated, and None for no such
        connection. Raises :class:`BadPacket` (NOT_READY) without an answer: silence is no evidence of anything, and the
        packet that asked comes again.
        """
        try:
            return self.table.get(protocol, source, source_port, destination, destination_port)
        except OSError as error:
            raise BadPacket(DropReason.NOT_READY, f"conntrack: {error}") from error


def open_netfilter() -> socket.socket:
    """Return a netfilter netlink socket of this thread's namespace, under a port id that the kernel chose."""
    flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    netlink = socket.socket(socket.AF_NETLINK, flags, NETLINK_NETFILTER)
    netlink.bind((0, 0))
    return netlink


def sweep(namespace: Path, marks: Marks) -> frozenset[LiveConnection]:
    """Return every connection of a pod's namespace that carries an accepted mark, both address families.

    Takes about 0.04 ms a connection. Raises :class:`KernelError`.
    """
    return _inside(namespace, lambda netlink: frozenset(conntrack_dump.dump(netlink, marks.accept_bit)))


def epochs_in_use(namespace: Path, marks: Marks) -> set[int]:
    """Return the epochs that the connections of :func:`sweep` were accepted under."""
    found = _inside(namespace, lambda netlink: conntrack_dump.marks(netlink, marks.accept_bit))
    return {epoch for mark in found if (epoch := marks.epoch(mark)) is not None}


def _inside(namespace: Path, read: Callable[[socket.socket], T]) -> T:
    try:
        with netns.run_inside(namespace, open_netfilter) as netlink:
            return read(netlink)
    except OSError as error:
        raise KernelError(f"conntrack of network namespace {namespace}: {error}") from error
