"""Addresses and CIDR blocks in the forms the API accepts.

An address is its packed form (4 or 16 bytes). A block of one family never matches the other, and an IPv4-mapped
IPv6 block is an IPv6 block.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from trireme_py.model import Address


@dataclass(frozen=True, slots=True, order=True)
class Network:
    """A CIDR block: the address bits below ``prefix`` are zero."""

    size: int
    """4 or 16: bytes of an address of its family."""
    prefix: int
    bits: int
    """The network address as an integer."""

    def contains(self, address: Address) -> bool:
        if len(address) != self.size:
            return False
        shift = self.size * 8 - self.prefix
        return int.from_bytes(address, "big") >> shift == self.bits >> shift

    def within(self, other: Network) -> bool:
        """Tell whether it is a part of ``other``, or the same block."""
        if self.size != other.size or self.prefix < other.prefix:
            return False
        shift = self.size * 8 - other.prefix
        return self.bits >> shift == other.bits >> shift

    def __str__(self) -> str:
        return f"{format_address(self.bits.to_bytes(self.size, 'big'))}/{self.prefix}"


def parse_address(text: str) -> Address:
    """Pack an address. Raises ValueError. Leading zeros of IPv4 parts are decimal, as the API reads them."""
    if ":" in text:
        if "%" in text:
            raise ValueError(f"{text!r} has a zone")
        return ipaddress.IPv6Address(text).packed
    parts = text.split(".")
    if len(parts) == 4 and all(part.isascii() and part.isdigit() and len(part) <= 8 for part in parts):
        numbers = [int(part) for part in parts]
        if max(numbers) <= 255:
            return bytes(numbers)
    raise ValueError(f"{text!r} is not an IP address")


def format_address(address: Address) -> str:
    """Write an address for people."""
    return str(ipaddress.ip_address(address))


def parse_network(text: str) -> Network:
    """Read ``address/prefix``. Host bits are dropped, as matching ignores them. Raises ValueError."""
    head, slash, tail = text.partition("/")
    if not slash:
        raise ValueError(f"{text!r} has no prefix length")
    address = parse_address(head)
    width = len(address) * 8
    if not (tail.isascii() and tail.isdigit() and len(tail) <= 3 and int(tail) <= width):
        raise ValueError(f"{text!r}: the prefix length must be a number from 0 to {width}")
    shift = width - int(tail)
    return Network(len(address), int(tail), int.from_bytes(address, "big") >> shift << shift)
