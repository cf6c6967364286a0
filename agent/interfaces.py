"""The addresses of a network namespace's own interfaces."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from agent import netns
from trireme_py.errors import KernelError
from trireme_py.model import Address


def addresses_of(namespace: Path) -> frozenset[Address]:
    """Return every address of every interface there but the loopback and link-local ones, packed.

    Raises :class:`KernelError` if the namespace cannot be entered, or the kernel does not tell.
    """

    def read() -> frozenset[Address]:
        with IPRoute() as route:
            found = [ip_address(entry.get_attr("IFA_ADDRESS")) for entry in route.get_addr()]
        return frozenset(one.packed for one in found if not one.is_loopback and not one.is_link_local)

    try:
        return netns.run_inside(namespace, read)
    except (NetlinkError, OSError) as error:
        raise KernelError(f"network namespace {namespace}: its addresses cannot be read: {error}") from error
