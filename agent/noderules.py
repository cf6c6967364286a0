"""The rules of the node's own network namespace, by which a pod knows what its own node sends.

The node must always reach its pods (a kubelet's probes), also while no agent runs; so the pod's rules must tell, by
the packet alone. The source address does not tell: what comes through a NodePort is masqueraded to the node's address.
The hop limit does (RFC 5082): forwarding makes it smaller, so what arrives with 255 was forwarded by nobody.

- Here, what a socket of this node sends to a pod gets 255; whatever else leaves for a pod has 254 at most. That second
  half is for packets that cross the node without being routed: a bridge with br_netfilter translates and masquerades
  those it switches, and IPVS sends from where local packets come from. They have no socket of this node.
- In the pod, 255 and a source address of the node make a packet the node's own (:mod:`agent.ruleset`, ``TRM-NODE``).

Neighbour discovery keeps its 255, which is what proves it. Hop limits below 32 stay: traceroute sets them, and some
protocols mean them.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from agent.marks import FIRST_EPOCH, Marks
from agent.ruleset import (
    NEIGHBOUR_DISCOVERY,
    UNFORWARDED,
    Chains,
    Family,
    Jumps,
    Network,
    OwnNode,
    PodRules,
    RuleSet,
    Words,
)

JUMPS: Final[Jumps] = {"mangle": {"POSTROUTING": ("!", "-o", "lo", "-j", "TRM-HOST")}}
_MEANT: Final = 31
"""Hop limits up to this are somebody's intention; the defaults of operating systems begin at 32."""


@dataclass(frozen=True, slots=True)
class HostRules:
    """Implements :class:`agent.ruleset.RuleSet` for the node's namespace."""

    pods: tuple[Network, ...]
    """Where pods are; packets to anywhere else stay as they are."""

    @property
    def jumps(self) -> Jumps:
        return JUMPS

    @property
    def shared(self) -> bool:
        return True

    def chains(self, family: Family) -> Chains:
        match, option = family.hop_limit
        target = match.upper()
        to_pods = (network for network in self.pods if network.version == family.version)
        local = ("-m", "owner", "--socket-exists", "-m", match, f"{option}-gt", str(_MEANT))
        passing = ("-m", "owner", "!", "--socket-exists", "-m", match, f"{option}-eq", str(UNFORWARDED))
        mark = (
            (*local, "-j", target, f"{option}-set", str(UNFORWARDED)),
            (*passing, "-j", target, f"{option}-set", str(UNFORWARDED - 1)),
        )
        discovery: tuple[Words, ...] = ()
        if family is Family.IPV6:
            kinds = ("-p", "ipv6-icmp", "-m", "icmp6", "--icmpv6-type")
            discovery = tuple((*kinds, str(kind), "-j", "RETURN") for kind in NEIGHBOUR_DISCOVERY)
        return {
            "mangle": {
                "TRM-HOST": tuple(("-d", str(network), "-g", "TRM-HOST-POD") for network in to_pods),
                "TRM-HOST-POD": (*discovery, *mark),
            }
        }


def every_kind() -> tuple[RuleSet, RuleSet]:
    """Return a pod's rules and a node's with every kind of rule in them, to be tried on a machine."""
    pods = (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))  # for documentation: RFC 5737 and 3849
    node = OwnNode(tuple(network[1].packed for network in pods), pods)
    return PodRules(Marks(), FIRST_EPOCH, node=node), HostRules(pods)
