"""Flow events for the tests of the log, the observe socket and the metrics."""

from __future__ import annotations

from ipaddress import ip_address

from trireme_py.model import Decision, Direction, FlowEvent, Identity, PlainLabels, Protocol, Reason

CART = Identity(
    id=b"c" * 16,
    trust_domain="example.org",
    namespace="shop",
    service_account="default",
    pod="cart",
    labels=PlainLabels({"app": "cart"}),
)


def event(
    *,
    allowed: bool = False,
    reason: Reason = Reason.NO_MATCH,
    policy: str = "",
    rule: int | None = None,
    nearest: str = "NetworkPolicy/shop/allow-web rule 1 needs app=web (has app=cart)",
    peer: Identity | None = CART,
    proven: bool = False,
    direction: Direction = Direction.INGRESS,
    actual: tuple[bytes, int] | None = None,
    wall_s: float = 1_795_176_251.382,
    pod: str = "shop/db",
) -> FlowEvent:
    return FlowEvent(
        wall_s=wall_s,
        pod=pod,
        direction=direction,
        decision=Decision(allowed, reason, policy, rule, None, nearest),
        protocol=Protocol.TCP,
        source=ip_address("10.77.1.2").packed,
        source_port=40000,
        destination=ip_address("fd77:2::2").packed,
        destination_port=5432,
        peer=peer,
        peer_proven=proven,
        destination_actual=actual,
    )
