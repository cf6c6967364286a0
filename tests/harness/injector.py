"""Many crafted packets, fast: sockets that stay open, where :func:`tests.harness.hostile.inject` opens one a packet."""

from __future__ import annotations

import errno
import socket
from types import TracebackType

from agent.lab import LabNamespace

_IPV6_HDRINCL = 36  # include/uapi/linux/in6.h
_ETH_P = {4: 0x0800, 6: 0x86DD}  # include/uapi/linux/if_ether.h
_REFUSALS = {errno.EINVAL, errno.EMSGSIZE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EPERM}


class RawInjector:
    """Sends whole IP packets as a pod with CAP_NET_RAW does: they leave through its output hooks. A context manager."""

    def __init__(self, namespace: LabNamespace) -> None:
        def open_sockets() -> dict[int, socket.socket]:
            sockets = {
                4: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
                6: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW),
            }
            sockets[6].setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
            return sockets

        self._sockets = namespace.run(open_sockets)
        self.refused = 0
        """Packets that the sending kernel would not take."""

    def __enter__(self) -> RawInjector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for one in self._sockets.values():
            one.close()

    def send(self, data: bytes, destination: str, version: int) -> None:
        """Send to ``destination``, whatever the packet says itself."""
        try:
            self._sockets[version].sendto(data, (destination, 0))
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            self.refused += 1


class FrameInjector:
    """Puts frames on a link below IP, so that even a broken IP header leaves as it is. A context manager."""

    def __init__(self, namespace: LabNamespace, interface: str, hardware_address: bytes) -> None:
        """``interface``: the near end of the link; ``hardware_address``: that of its far end."""
        self._interface, self._to = interface, hardware_address
        self._socket = namespace.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0))

    def __enter__(self) -> FrameInjector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, data: bytes, version: int) -> None:
        self._socket.sendto(data, (self._interface, _ETH_P[version], 0, 0, self._to))
