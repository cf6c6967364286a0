"""Refusing a relay: the two ends must have seen one and the same connection, translations aside (docs/protocol.md)."""

from __future__ import annotations

from ipaddress import ip_address

from trireme_py.endpoint import Endpoint, Shared, is_pod_address
from trireme_py.errors import BadPacket
from trireme_py.flows import Tuple5
from trireme_py.model import Address, DropReason

End = tuple[Address, int]


def check_ends(shared: Shared, endpoint: Endpoint, key: Tuple5, server: End, client: End) -> bool:
    """Hold what the server says it saw, its own end and the client's, against what the local pod dialled.

    Returns whether the translation of the dialled address, if any, is evident. Raises BadPacket(RELAYED), and
    BadPacket(NOT_READY) when the node cannot tell.
    """
    protocol, own, own_port, dialled, dialled_port = key
    if client[0] != own and is_pod_address(shared, client[0]):
        saw = ip_address(client[0])
        raise BadPacket(
            DropReason.RELAYED,
            f"the server was reached from {saw}, which is not this pod's; if {saw} is a router that masquerades, take "
            "it out of podRanges",
        )
    if server == (dialled, dialled_port):
        return True
    # Asked for each connection: two pods behind one Service must not be taken for each other.
    shown = shared.translate(endpoint.number, protocol, own, own_port or 0, dialled, dialled_port or 0)
    if shown == server:
        return True
    # A connection that this node shows as it was dialled may be translated further on, by a load balancer.
    translated = shown is not None and shown != (dialled, dialled_port)
    if translated or is_pod_address(shared, dialled):
        raise BadPacket(
            DropReason.RELAYED,
            f"{ip_address(server[0])} port {server[1]} answered for {ip_address(dialled)} port {dialled_port}, and the "
            "node's conntrack does not show that translation; if another box translates, keep its addresses out of "
            "podRanges",
        )
    return False
