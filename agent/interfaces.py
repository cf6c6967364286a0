"""The addresses of a network namespace's own interfaces, and news of them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from agent import netns
from trireme_py.errors import KernelError
from trireme_py.model import Address

_IFF_UP: Final = 0x1  # include/uapi/linux/if.h
_NEWS: Final = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, _IPV4_IFADDR, _IPV6_IFADDR, include/uapi/linux/rtnetlink.h
_DATAGRAM: Final = 65_536
_BRIDGE_SETTINGS: Final = tuple(Path(f"/proc/sys/net/bridge/bridge-nf-call-{tables}tables") for tables in ("ip", "ip6"))

T = TypeVar("T")


def addresses_of(namespace: Path) -> frozenset[Address]:
    """Return every address of every interface there but the loopback and link-local ones, packed.

    Raises :class:`KernelError` if the namespace cannot be entered, or the kernel does not tell.
    """

    def read() -> frozenset[Address]:
        with IPRoute() as route:
            return _own(route.get_addr())

    return _ask(namespace, read)


def node_addresses_of(namespace: Path) -> frozenset[Address]:
    """Return the addresses a node may send from: those of :func:`addresses_of` whose interface is up.

    kube-proxy's IPVS mode puts every Service address on an interface that is down: the node never sends from those.
    Raises :class:`KernelError`.
    """

    def read() -> frozenset[Address]:
        with IPRoute() as route:
            up = {link["index"] for link in route.get_links() if link["flags"] & _IFF_UP}
            return _own([entry for entry in route.get_addr() if entry["index"] in up])

    return _ask(namespace, read)


def unfiltered_bridges_of(namespace: Path) -> dict[str, frozenset[Address]]:
    """Return the bridges there whose frames do not pass iptables, by name, each with its addresses.

    Raises :class:`KernelError`.
    """

    def read() -> dict[str, frozenset[Address]]:
        if all(map(_is_set, _BRIDGE_SETTINGS)):
            return {}
        with IPRoute() as route:
            bridges = {link["index"]: link for link in route.get_links(kind="bridge") if not _filters(link)}
            entries = list(route.get_addr())
        return {
            link.get_attr("IFLA_IFNAME"): _own(entry for entry in entries if entry["index"] == index)
            for index, link in bridges.items()
        }

    return _ask(namespace, read)


def _is_set(setting: Path) -> bool:
    try:
        return setting.read_text(encoding="ascii").strip() == "1"
    except FileNotFoundError:
        return False  # br_netfilter is not loaded


def _filters(link: Any) -> bool:
    settings = link.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    return all(settings.get_attr(f"IFLA_BR_NF_CALL_{tables}TABLES") for tables in ("IP", "IP6"))


def _ask(namespace: Path, read: Callable[[], T]) -> T:
    try:
        return netns.run_inside(namespace, read)
    except (NetlinkError, OSError) as error:
        raise KernelError(f"network namespace {namespace}: its addresses cannot be read: {error}") from error


def _own(entries: Iterable[Any]) -> frozenset[Address]:
    # On a point-to-point link IFA_ADDRESS is the other end's; IPv6 has IFA_LOCAL there only.
    found = [ip_address(entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")) for entry in entries]
    return frozenset(one.packed for one in found if not one.is_loopback and not one.is_link_local)


class AddressNews:
    """Tells whether interfaces or addresses of a namespace may have changed since it was last asked."""

    def __init__(self, namespace: Path) -> None:
        """Raises :class:`KernelError`."""

        def subscribe() -> socket.socket:
            news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
            news.bind((0, _NEWS))
            return news

        try:
            self._news = netns.run_inside(namespace, subscribe)
        except OSError as error:
            raise KernelError(f"network namespace {namespace}: no news of its addresses: {error.strerror}") from error

    def any(self) -> bool:
        """Read what has come since the last call; tell whether anything has."""
        found = False
        while True:
            try:
                self._news.recv(_DATAGRAM)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError(f"news of the node's addresses: {error.strerror}") from error
            found = True  # news that were lost are news

    def close(self) -> None:
        self._news.close()
