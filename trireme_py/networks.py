"""Sets of IP networks that answer "is this packed address inside?" without parsing anything on the way."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

from trireme_py.model import Address


class NetworkSet:
    """An immutable set of IPv4 and IPv6 networks. A network of one family never holds an address of the other."""

    __slots__ = ("_networks", "_texts")

    def __init__(self, networks: Iterable[str]) -> None:
        """``networks`` are CIDR texts; host bits are ignored. Raises ValueError on text that is no network."""
        parsed = [ip_network(text, strict=False) for text in networks]
        self._texts = tuple(str(network) for network in parsed)
        self._networks = tuple(
            (network.max_prefixlen // 8, int(network.network_address), int(network.netmask)) for network in parsed
        )

    def __contains__(self, address: Address) -> bool:
        value = int.from_bytes(address, "big")
        size = len(address)
        return any(size == octets and value & mask == base for octets, base, mask in self._networks)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __repr__(self) -> str:
        return f"NetworkSet({list(self._texts)!r})"
