"""The fast path in C (docs/fastpath.md). Sources: trireme_py/fastpath/."""

from typing import final

@final
class Workers:
    """Threads that serve pods' queues. They end when the last queue and this are gone."""

    def __new__(cls, count: int) -> Workers: ...

@final
class Conntrack:
    """The connection tracking of the network namespace that netfilter netlink socket ``fd`` was made in.

    The descriptor is this object's.
    """

    def __new__(cls, fd: int) -> Conntrack: ...
    def get(
        self, protocol: int, source: bytes, source_port: int, destination: bytes, destination_port: int, /
    ) -> tuple[bytes, int] | None:
        """Return (address, port) that answers in the connection begun so, or None if there is none. Any thread.

        Raises OSError: the kernel did not tell.
        """

    def close(self) -> None:
        """Close the descriptor; :meth:`get` raises OSError from then on."""

@final
class Queue:
    """One pod's queue, read by a thread in C. All methods belong to one thread."""

    def __new__(cls, fd: int, number: int, marks: tuple[int, int, int, int], foreign_passes: bool) -> Queue:
        """Take over queue ``number`` of the namespace that netfilter netlink socket ``fd`` was made in.

        The descriptor is the queue's, even if this raises OSError (EBUSY: somebody else holds the queue). ``marks``:
        mask, pass, pass and clear, accept. ``foreign_passes``: what becomes of packets from a hook that is not ours.
        """

    def start(self, workers: Workers, endpoint: object, conntrack: Conntrack | None, /) -> None:
        """Have an ``Endpoint`` judge what comes. Once, before all below but :meth:`close`. Raises OSError."""

    def close(self) -> None:
        """Let go of the queue; the kernel drops what waits in it."""

    def fileno(self) -> int:
        """Return a descriptor that is readable while :meth:`take` has something."""

    def set_accept(self, mark: int, /) -> None:
        """Mark accepted connections so from the next packet on."""

    def poll(self) -> None:
        """Read and judge what waits in the queue right now."""

    def take(self, most: int, /) -> list[tuple[int, int, int, bytes, bytes]]:
        """Return up to ``most`` parked packets as (id, packet mark, hook, packet, handover).

        Raises OSError when the queue is of no use any more.
        """

    def answer(self, id: int, passes: bool, mark: int, packet: bytes | None, /) -> None:  # noqa: A002
        """Give a packet that was taken its verdict, with other octets unless None. Raises OSError."""

    def counters(self) -> tuple[int, int, int, int, int, int]:
        """Return what was counted.

        Packets that arrived and that left, truncated ones, ones of a foreign rule, verdicts that failed, and parked
        packets that found no room.
        """
