"""Ports of rules: numbers, ranges, and names that resolve at the destination."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from policy.objects import ClusterProtocol, PolicyPort
from policy.validate import PROTOCOLS
from trireme_py.model import NamedPort, Protocol

_NAMES: Final = {int(number): name for name, number in PROTOCOLS.items()}


@dataclass(frozen=True, slots=True)
class Ports:
    """What a rule says about protocol and port."""

    everything: bool = False
    """The rule has no ports: any protocol, ICMP and the rest included."""
    ranges: tuple[tuple[int, int, int], ...] = ()
    """(protocol, first, last); (protocol, 0, 65535) is the whole protocol, ports or not."""
    names: tuple[tuple[int | None, str], ...] = ()
    """(protocol or None for any, name of a container port of the destination)."""

    def match(self, protocol: int, port: int | None, named: Iterable[NamedPort]) -> bool:
        """Tell whether a flow's destination is meant. ``named`` are the destination's named ports."""
        if self.everything:
            return True
        for wanted, first, last in self.ranges:
            if wanted == protocol and (first <= port <= last if port is not None else (first, last) == (0, 65535)):
                return True
        if self.names:
            for own in named:
                if own.protocol == protocol and own.number == port:
                    for wanted_protocol, name in self.names:
                        if name == own.name and wanted_protocol in (None, protocol):
                            return True
        return False

    def may_match(self, protocol: int) -> bool:
        """Tell whether some port of ``protocol`` could be meant, before the destination is known."""
        return (
            self.everything
            or any(wanted == protocol for wanted, _, _ in self.ranges)
            or any(wanted in (None, protocol) for wanted, _ in self.names)
        )

    def __str__(self) -> str:
        if self.everything:
            return "any port"
        texts = [
            _NAMES[protocol] if (first, last) == (0, 65535)
            else f"{_NAMES[protocol]} {first}" if first == last
            else f"{_NAMES[protocol]} {first}-{last}"
            for protocol, first, last in self.ranges
        ]  # fmt: skip
        texts += [f"{_NAMES.get(protocol or 0, 'port')} {name!r}" for protocol, name in self.names]
        return " or ".join(texts)


ALL_PORTS: Final = Ports(everything=True)


def compile_ports(ports: tuple[PolicyPort, ...]) -> Ports:
    """Compile the ``ports`` of a NetworkPolicy rule that has passed validation."""
    if not ports:
        return ALL_PORTS
    ranges: list[tuple[int, int, int]] = []
    names: list[tuple[int | None, str]] = []
    for item in ports:
        protocol = int(PROTOCOLS[item.protocol])
        if isinstance(item.port, str):
            names.append((protocol, item.port))
        elif item.port is None:
            ranges.append((protocol, 0, 65535))
        else:
            ranges.append((protocol, item.port, item.port if item.end_port is None else item.end_port))
    return Ports(False, tuple(ranges), tuple(names))


def compile_protocols(protocols: tuple[ClusterProtocol, ...]) -> Ports:
    """Compile the ``protocols`` of a ClusterNetworkPolicy rule that has passed validation."""
    if not protocols:
        return ALL_PORTS
    ranges: list[tuple[int, int, int]] = []
    names: list[tuple[int | None, str]] = []
    for item in protocols:
        if item.destination_named_port is not None:
            names.append((None, item.destination_named_port))
        for number, ports in ((Protocol.TCP, item.tcp), (Protocol.UDP, item.udp), (Protocol.SCTP, item.sctp)):
            if ports is None:
                continue
            port = ports.destination_port
            if port.number is not None:
                ranges.append((int(number), port.number, port.number))
            elif port.range is not None:
                ranges.append((int(number), port.range.start, port.range.end))
    return Ports(False, tuple(ranges), tuple(names))


def describe_flow(protocol: int, port: int | None) -> str:
    """Write ``TCP 80``, or the bare protocol."""
    known = {int(item): item.name for item in Protocol}
    name = known.get(protocol, f"protocol {protocol}")
    return name if port is None else f"{name} {port}"
