"""Names, addresses and folders of the test cluster: one cluster per machine, everything of it called ``trm-...``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

CACHE = Path(os.environ.get("TRIREME_CLUSTER_CACHE", "/var/cache/trireme-cluster")).absolute()
"""What was built, and in ``state`` the running cluster. It must lie on a file system that overlays can use."""

STATE = CACHE / "state"
BIN = STATE / "bin"
LOGS = STATE / "logs"
PKI = STATE / "pki"
AUDIT_LOG = LOGS / "audit.log"
ADMIN_KUBECONFIG = STATE / "admin.kubeconfig"

CONTROL_PLANE = "trm-cp"
API_PORT = 16443
"""Also the relay's on this computer's loopback. 6443 may be taken there, by a developer's own cluster."""

CLUSTER_DOMAIN = "cluster.local"
SERVICES = (IPv4Network("10.96.0.0/16"), IPv6Network("fd00:7472:6d:5e::/112"))
PODS = (IPv4Network("10.244.0.0/16"), IPv6Network("fd00:7472:6d:f000::/56"))
API_SERVICE = (SERVICES[0][1], SERVICES[1][1])
DNS_SERVICE = (SERVICES[0][10], SERVICES[1][10])


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of the cluster: network namespace, cgroup, host name and Node object have the same name."""

    name: str
    addresses: tuple[IPv4Address, IPv6Address]
    pods: tuple[IPv4Network, IPv6Network] | None
    """The pod addresses of a node; None for the control plane, which runs no pods."""

    @property
    def folder(self) -> Path:
        """What belongs to this machine alone, seen from outside."""
        return STATE / self.name

    @property
    def namespace(self) -> Path:
        return Path("/run/netns") / self.name


def _machine(name: str, number: int, *, node: bool) -> Machine:
    pods = (IPv4Network(f"10.244.{number}.0/24"), IPv6Network(f"fd00:7472:6d:f0{number:02x}::/64"))
    addresses = (IPv4Address(f"172.30.0.{number}"), IPv6Address(f"fd00:7472:6d::{number}"))
    return Machine(name, addresses, pods if node else None)


CONTROL = _machine(CONTROL_PLANE, 1, node=False)
NODES = (_machine("trm-node1", 11, node=True), _machine("trm-node2", 12, node=True))
MACHINES = (CONTROL, *NODES)
API_URL = f"https://{CONTROL.addresses[0]}:{API_PORT}"
