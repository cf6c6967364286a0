"""A connection on ports that an old one had: nothing of the old one's is believed of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.harness.segments import ACK, RST, SYN, read, tcp
from tests.harness.shop import Shop
from trireme_py.messages import encode_syn

ISN = 777_000
STOLEN = b"no proof at all"
OLD_TIMESTAMP = b"\x01\x01\x08\x0a\0\0\0\x01\0\0\0\0"


@pytest.mark.parametrize("how", ["evicted", "reset"])
def test_an_exchange_that_is_forgotten_leaves_no_way_in(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack without a key, by whoever has an allowed client's address and port now, and a copy of its assertion.

    The pod's kernel still has his half-open connection when its exchange is forgotten: pushed out by others, or after a
    reset that the kernel did not take (its timestamp is old: tcp_check_req(), net/ipv4/tcp_minisocks.c). The server
    remembers the honest connection that had these ports for a minute or two longer than the kernels do.
    """
    shop = Shop()
    shop.world.audit = False  # it counts the attacker's connections as ours
    honest = shop.assert_works(b"honest")
    client, port, *_ = honest.key
    for one in [honest, *shop.server.host.connections.values()]:
        one.end("over")
    shop.server.marks.accepted.clear()
    sent: list[bytes] = []
    identity, server = shop.client.identity, shop.server.address()
    assert identity is not None

    def take(data: bytes) -> tuple[bytes, ...]:
        sent.append(data)
        return ()

    def copied_syn(port: int, isn: int) -> bytes:
        message = encode_syn(identity.id, isn.to_bytes(16, "big"), identity.assertion)
        return tcp((client, port), (server, 80), isn, 0, SYN, message)

    monkeypatch.setattr(shop.world, "on_wire", take)
    shop.server.arrive(copied_syn(port, ISN))
    answer = read(sent[-1])
    assert answer is not None
    assert answer.flags & SYN
    assert answer.flags & ACK
    with monkeypatch.context() as patch:
        patch.setattr(shop.server, "deliver", lambda _: None)  # the pod's kernel takes no notice
        if how == "reset":
            reset = read(tcp((client, port), (server, 80), ISN + 1, 0, RST))
            assert reset is not None
            shop.server.arrive(replace(reset, options=OLD_TIMESTAMP).build())
        else:
            for other in range(1024, 1024 + 8192):
                shop.server.arrive(copied_syn(other, other))
    shop.server.arrive(tcp((client, port), (server, 80), ISN + 1, answer.sequence + 1, ACK, STOLEN))
    assert STOLEN not in shop.delivered()
    assert not shop.server.marks.accepted
