"""What the agent does for the node: its rules stay in place, and its addresses are known to its pods."""

from __future__ import annotations

import logging
from ipaddress import ip_address
from pathlib import Path

from agent.interfaces import AddressNews, node_addresses_of, unfiltered_bridges_of
from agent.logs import fields
from agent.noderules import HostRules
from agent.rules import RuleBackend
from agent.ruleset import Network, OwnNode

log = logging.getLogger(__name__)


class NodeRules:
    """Keeps the node's rules in place, and knows the node's addresses. Use it from one thread."""

    def __init__(self, namespace: Path, pods: tuple[Network, ...], backend: RuleBackend) -> None:
        """Read the addresses; :meth:`lay` is to follow. Raises :class:`~trireme_py.errors.KernelError`."""
        self._namespace = namespace
        self._rules = HostRules(pods)
        self._backend = backend
        self._news = AddressNews(namespace)
        self._stale = False
        self._laid = False
        try:
            self.own = self._read()
        except BaseException:
            self.close()
            raise

    def lay(self) -> None:
        """Lay the rules, once. Raises KernelError."""
        if not self._laid:
            self._backend.apply(self._namespace, self._rules)
            self._laid = True
            self._warn_of_bridges()

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

    def _warn_of_bridges(self) -> None:
        for name, addresses in unfiltered_bridges_of(self._namespace).items():
            if any(address in pods for address in map(ip_address, addresses) for pods in self._rules.pods):
                log.warning(
                    "a pod on this bridge can pass as the node: its frames to others there do not pass iptables",
                    extra=fields(bridge=name, see="sysctl net.bridge.bridge-nf-call-iptables, and -ip6tables"),
                )

    def verify(self) -> None:
        """Lay the rules again if somebody changed them. Raises KernelError."""
        if not self._laid:
            self.lay()
        elif self._backend.apply(self._namespace, self._rules):
            log.error(
                "the node's rules had been changed by somebody else and were laid again",
                extra=fields(namespace=self._namespace),
            )

    def close(self) -> None:
        """Let go; the rules stay."""
        self._news.close()
