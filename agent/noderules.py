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

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.interfaces import AddressNews, node_addresses_of
from agent.logs import fields
from agent.rules import RuleBackend
from agent.ruleset import NEIGHBOUR_DISCOVERY, UNFORWARDED, Chains, Family, Jumps, Network, OwnNode, Words

log = logging.getLogger(__name__)

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


class NodeRules:
    """Keeps the node's rules in place, and knows the node's addresses. Use it from one thread."""

    def __init__(self, namespace: Path, pods: tuple[Network, ...], backend: RuleBackend) -> None:
        """Lay the rules and read the addresses. Raises :class:`~trireme_py.errors.KernelError`."""
        self._namespace = namespace
        self._rules = HostRules(pods)
        self._backend = backend
        self._news = AddressNews(namespace)
        self._stale = False
        try:
            self.own = self._read()
            backend.apply(namespace, self._rules)
        except BaseException:
            self.close()
            raise

    def changed(self) -> bool:
        """Look whether the node has other addresses than before; ``own`` then has them. Raises KernelError."""
        self._stale = self._news.any() or self._stale
        if not self._stale:
            return False
        before, self.own = self.own, self._read()
        self._stale = False
        if before == self.own:
            return False
        gone = set(before.addresses) - set(self.own.addresses)
        log.info("the node's addresses changed", extra=fields(now=len(self.own.addresses), gone=len(gone)))
        return True

    def _read(self) -> OwnNode:
        return OwnNode(tuple(sorted(node_addresses_of(self._namespace))), self._rules.pods)

    def verify(self) -> None:
        """Lay the rules again if somebody changed them. Raises KernelError."""
        if self._backend.apply(self._namespace, self._rules):
            log.error(
                "the node's rules had been changed by somebody else and were laid again",
                extra=fields(namespace=self._namespace),
            )

    def close(self) -> None:
        """Let go; the rules stay."""
        self._news.close()
