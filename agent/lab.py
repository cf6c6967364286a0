"""Throw-away networks on one machine, for the demo and the tests.

::

      pod a ── eth0     pod1 ┌────────┐ pod2     eth0 ── pod b
      10.77.1.2/24           │ router │                  10.77.2.2/24
      fd77:1::2/64           └────────┘                  fd77:2::2/64
                        10.77.n.1, fd77:n::1

Each pod is a network namespace with one veth pair to a router namespace. The router translates Service addresses
(10.78.0.s and fd78::s), masquerades the pairs of pods it is told to, and drops what conntrack calls INVALID, with
window checking and checksum validation on. It stands for the network between nodes and for each pod's own node alike.

Namespaces are named ``trm-<word>-<pid>-<pod>``, so that what a killed process left behind can be found and removed.
Nothing is made in the namespace the caller lives in. Works for root, and in a user namespace (:func:`reexec_as_root`).
"""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

from pyroute2 import IPRoute

from agent import netns
from trireme_py.errors import KernelError
from trireme_py.model import Address

DEFAULT_MTU: Final = 1500
MAX_PODS: Final = 255
READY_TIMEOUT_S: Final = 10.0
"""Linux may put off the news of a carrier by a second; the rest is a busy machine's."""
_FIRST_ROUTER_INDEX: Final = 1000
_RTMGRP_IPV6_IFADDR: Final = 0x100  # include/uapi/linux/rtnetlink.h
_IFA_F_TENTATIVE: Final = 0x40  # include/uapi/linux/if_addr.h
_LINK_LOCAL: Final = "20"  # IPV6_ADDR_LINKLOCAL as /proc/net/if_inet6 shows it, include/net/ipv6.h
_TABLE: Final = "trm_lab"
_NAME: Final = re.compile(r"trm-[a-z0-9]+-(?P<pid>[0-9]+)-[a-z0-9-]+")
_WORD: Final = re.compile(r"[a-z0-9]{1,16}")
_POD_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LabNamespace:
    """One network namespace of a lab."""

    name: str
    path: Path
    """The file that pins it: what a pod's annotation names, and what ``nsenter --net=`` takes."""

    def run(self, function: Callable[[], T]) -> T:
        """Call ``function`` inside this namespace, on a thread of its own."""
        return netns.run_inside(self.path, function)

    def command(self, *argv: str, stdin: str = "") -> str:
        """Run a program inside this namespace and return what it printed. Raises :class:`KernelError`."""
        done = self.run(lambda: subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False))  # noqa: S603
        if done.returncode != 0:
            raise KernelError(f"{' '.join(argv)} (in {self.name}) failed: {done.stderr.strip()}")
        return done.stdout


@dataclass(frozen=True, slots=True)
class LabPod(LabNamespace):
    """A pod: a namespace, its two addresses and its side of the router."""

    ipv4: IPv4Address
    ipv6: IPv6Address
    gateway4: IPv4Address
    gateway6: IPv6Address
    router_interface: str
    """The router's end of this pod's veth pair; the pod's own end is ``eth0``."""

    @property
    def addresses(self) -> tuple[Address, Address]:
        """Both addresses, packed, IPv4 first."""
        return self.ipv4.packed, self.ipv6.packed


@dataclass(frozen=True, slots=True)
class LabService:
    """A Service-like pair of addresses, translated to one pod in the router."""

    ipv4: IPv4Address
    ipv6: IPv6Address
    target: LabPod
    port: int | None = None
    """The Service's TCP and UDP port; None translates every port to itself."""
    target_port: int | None = None


class Lab:
    """A router and its pods; a context manager that removes what it made. Use it from one thread."""

    def __init__(self, word: str) -> None:
        """``word``: 1 to 16 lower-case letters or digits that say whose namespaces these are."""
        if not _WORD.fullmatch(word):
            raise ValueError(f"lab word {word!r}: 1 to 16 lower-case letters or digits")
        self._prefix = f"trm-{word}-{os.getpid()}-"
        self._pods: list[LabPod] = []
        self._services: list[LabService] = []
        self._masquerades: list[tuple[LabPod, LabPod]] = []
        self.router = LabNamespace(f"{self._prefix}router", netns.namespace_path(f"{self._prefix}router"))

    def __enter__(self) -> Lab:
        make_run_writable()
        netns.create(self.router.path)
        try:
            self.router.run(_prepare_router)
            self._load_router_rules()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove every namespace of this lab. May be called twice."""
        if netns.exists(self.router.path):
            # The pairs go first: a socket still open in a pod would keep its namespace, and with it its veth, alive.
            self.router.run(_delete_pod_links)
        for namespace in (*self._pods, self.router):
            netns.remove(namespace.path)
        self._pods.clear()

    @property
    def pods(self) -> tuple[LabPod, ...]:
        return tuple(self._pods)

    def add_pod(self, name: str, *, mtu: int = DEFAULT_MTU) -> LabPod:
        """Add a pod with both address families, ready to use on return; ``mtu`` is that of both ends of its link."""
        number = len(self._pods) + 1
        if not _POD_NAME.fullmatch(name) or name == "router":
            raise ValueError(f"pod name {name!r}: 1 to 32 lower-case letters, digits and inner hyphens, not 'router'")
        if number > MAX_PODS:
            raise ValueError(f"a lab holds at most {MAX_PODS} pods")
        pod = LabPod(
            name=f"{self._prefix}{name}",
            path=netns.namespace_path(f"{self._prefix}{name}"),
            ipv4=IPv4Address(f"10.77.{number}.2"),
            ipv6=IPv6Address(f"fd77:{number}::2"),
            gateway4=IPv4Address(f"10.77.{number}.1"),
            gateway6=IPv6Address(f"fd77:{number}::1"),
            router_interface=f"pod{number}",
        )
        netns.create(pod.path)
        self._pods.append(pod)
        pod.run(_turn_off_address_detection)
        self.router.run(lambda: _add_link(pod, number, mtu))
        pod.run(lambda: _configure_pod(pod, mtu))
        self.router.run(lambda: _await_ipv6(pod.router_interface))
        pod.run(lambda: _await_ipv6("eth0"))
        return pod

    def add_service(self, target: LabPod, *, port: int | None = None, target_port: int | None = None) -> LabService:
        """Give ``target`` a Service address of each family; see :class:`LabService`."""
        if (port is None) != (target_port is None):
            raise ValueError("a service translates one port to one port, or every port to itself")
        number = len(self._services) + 1
        service = LabService(
            IPv4Address(f"10.78.{number >> 8}.{number & 0xFF}"),
            IPv6Address(f"fd78::{number:x}"),
            target,
            port,
            target_port,
        )
        self._services.append(service)
        self._load_router_rules()
        return service

    def retarget(self, service: LabService, target: LabPod) -> LabService:
        """Lead a Service's addresses to another pod; connections that the router knows go on as before."""
        moved = replace(service, target=target)
        self._services[self._services.index(service)] = moved
        self._load_router_rules()
        return moved

    def masquerade(self, source: LabPod, destination: LabPod) -> None:
        """From now on ``destination`` sees new connections of ``source`` come from the router's address.

        A pod reaches itself through its own Service only so (``source`` and ``destination`` the same).
        """
        self._masquerades.append((source, destination))
        self._load_router_rules()

    def _load_router_rules(self) -> None:
        self.router.command("nft", "-f", "-", stdin=_router_rules(self._services, self._masquerades))


def _router_rules(services: list[LabService], masquerades: list[tuple[LabPod, LabPod]]) -> str:
    dnat = []
    for service in services:
        families = (("ip", service.ipv4, service.target.ipv4), ("ip6", service.ipv6, service.target.ipv6))
        for family, address, target in families:
            if service.port is None:
                dnat.append(f"{family} daddr {address} dnat {family} to {target}")
            else:
                host = f"[{target}]" if family == "ip6" else f"{target}"
                for protocol in ("tcp", "udp"):
                    match = f"{family} daddr {address} {protocol} dport {service.port}"
                    dnat.append(f"{match} dnat {family} to {host}:{service.target_port}")
    snat = []
    for source, destination in masquerades:
        snat.append(f"ip saddr {source.ipv4} ip daddr {destination.ipv4} masquerade")
        snat.append(f"ip6 saddr {source.ipv6} ip6 daddr {destination.ipv6} masquerade")
    chains = {
        "prerouting": ("type nat hook prerouting priority dstnat; policy accept;", dnat),
        "postrouting": ("type nat hook postrouting priority srcnat; policy accept;", snat),
        "forward": ("type filter hook forward priority filter; policy accept;", ["ct state invalid counter drop"]),
    }
    lines = [f"table inet {_TABLE} {{}}", f"delete table inet {_TABLE}", f"table inet {_TABLE} {{"]
    for chain, (head, rules) in chains.items():
        lines += [f"chain {chain} {{", head, *rules, "}"]
    lines.append("}")
    return "\n".join(lines) + "\n"


def _sysctl(name: str, value: str) -> None:
    try:
        Path("/proc/sys/net", name).write_text(value, encoding="ascii")
    except OSError as error:
        raise KernelError(f"sysctl net/{name} = {value}: {error.strerror}") from error


def _turn_off_address_detection() -> None:
    """An IPv6 address is of use at once; otherwise each waits a second for a duplicate that cannot be there."""
    for scope in ("all", "default"):
        _sysctl(f"ipv6/conf/{scope}/accept_dad", "0")
        _sysctl(f"ipv6/conf/{scope}/accept_ra", "0")


def _prepare_router() -> None:
    _turn_off_address_detection()
    _sysctl("ipv4/ip_forward", "1")
    _sysctl("ipv6/conf/all/forwarding", "1")
    for scope in ("all", "default"):
        _sysctl(f"ipv4/conf/{scope}/rp_filter", "0")
        # A pod that reaches itself through its Service comes back out of the interface it went in by.
        _sysctl(f"ipv4/conf/{scope}/send_redirects", "0")
    _sysctl("netfilter/nf_conntrack_tcp_be_liberal", "0")
    _sysctl("netfilter/nf_conntrack_checksum", "1")
    with IPRoute() as route:
        route.link("set", index=1, state="up")


def _add_link(pod: LabPod, number: int, mtu: int) -> None:
    # A pair with one and the same index at both ends is no pair to net/core/link_watch.c (linkwatch_urgent_event), and
    # learns of its carrier up to a second late. Left to itself, a lab's first pair would be one.
    index = _FIRST_ROUTER_INDEX + number
    with IPRoute() as route:
        peer = {"ifname": "eth0", "net_ns_fd": os.fspath(pod.path)}
        route.link("add", index=index, ifname=pod.router_interface, kind="veth", peer=peer)
        route.link("set", index=index, mtu=mtu)
        route.addr("add", index=index, address=str(pod.gateway4), prefixlen=24)
        route.addr("add", index=index, address=str(pod.gateway6), prefixlen=64)
        route.link("set", index=index, state="up")


def _configure_pod(pod: LabPod, mtu: int) -> None:
    with IPRoute() as route:
        route.link("set", index=1, state="up")
        index = route.link_lookup(ifname="eth0")[0]
        route.link("set", index=index, mtu=mtu)
        route.addr("add", index=index, address=str(pod.ipv4), prefixlen=24)
        route.addr("add", index=index, address=str(pod.ipv6), prefixlen=64)
        route.link("set", index=index, state="up")
        route.route("add", dst="0.0.0.0/0", gateway=str(pod.gateway4))
        route.route("add", dst="::/0", gateway=str(pod.gateway6))


def _await_ipv6(interface: str) -> None:
    """Return when IPv6 works on an interface of this thread's namespace.

    The end whose peer comes up last learns of its carrier from a work queue, and has no link-local address before. A
    neighbour solicitation sent meanwhile is lost, and the packet behind it waits a second for the next.
    Raises :class:`KernelError` if it takes longer than READY_TIMEOUT_S.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as changes:
        changes.bind((0, _RTMGRP_IPV6_IFADDR))
        while not _has_ipv6(interface):
            if not select.select([changes], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise KernelError(f"{interface}: IPv6 not ready after {READY_TIMEOUT_S:.0f} s; see 'ip -6 addr'")
            changes.recv(65536)


def _has_ipv6(interface: str) -> bool:
    """Tell whether an interface has a link-local address and no address that is not to be used yet."""
    rows = (row.split() for row in Path("/proc/thread-self/net/if_inet6").read_text(encoding="ascii").splitlines())
    states = [(scope, int(flags, 16)) for _, _, _, scope, flags, name in rows if name == interface]
    return any(scope == _LINK_LOCAL for scope, _ in states) and not any(flags & _IFA_F_TENTATIVE for _, flags in states)


def _delete_pod_links() -> None:
    with IPRoute() as route:
        for link in route.get_links():
            if str(link.get_attr("IFLA_IFNAME")).startswith("pod"):
                route.link("del", index=link["index"])


def remove_stale(word: str) -> list[str]:
    """Remove the namespaces of labs named ``word`` whose process is gone; return their names."""
    removed = []
    for path in sorted(netns.RUN_DIR.glob(f"trm-{word}-*")):
        match = _NAME.fullmatch(path.name)
        if match is not None and not Path("/proc", match["pid"]).exists():
            netns.remove(path)
            removed.append(path.name)
    return removed


def make_run_writable() -> None:
    """Give this process a ``/run`` of its own if it may not write the machine's.

    In a user namespace ``/run`` belongs to somebody else, while named namespaces and the lock of iptables live there.
    Raises :class:`KernelError` where that needs a mount namespace of its own and there is none.
    """
    if not os.access("/run", os.W_OK):
        netns.mount_tmpfs("/run")


def reexec_as_root() -> None:
    """Start this program again as root of a user namespace of its own, unless it is root already.

    Does not return if it starts again. Raises :class:`KernelError` with the way out if the machine does not let it.
    """
    if os.geteuid() == 0:
        return
    unshare = shutil.which("unshare")
    probe = [unshare or "unshare", "-Urnm", "true"]
    if unshare is None or subprocess.run(probe, capture_output=True, check=False).returncode != 0:  # noqa: S603
        raise KernelError("this needs root, or user namespaces for ordinary users: run it with sudo")
    os.execv(unshare, ["unshare", "-Urnm", "--", *sys.orig_argv])  # noqa: S606
