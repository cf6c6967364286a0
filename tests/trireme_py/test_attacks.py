"""The guarantees of the exchange, each by an attack (docs/protocol.md, "Security considerations").

After each: no octet reached an application, there is exactly one count under the attack's own reason, no table changed
(the world compares them around every drop), and the next honest connection works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import pytest

from tests.harness import assertions
from tests.harness.segments import ACK, SYN, Segment, packed, read
from tests.harness.shop import CLIENT, Shop, alter, lose
from tests.harness.standin_policy import OPEN, only_from
from tests.harness.tcp import Stage
from tests.harness.world import Pod, kind_of
from trireme_py import messages, wire
from trireme_py.assertion import identity_id
from trireme_py.auth import Authenticator
from trireme_py.auth_psk import PskAuthenticator
from trireme_py.identities import LocalIdentity
from trireme_py.model import DropReason
from trireme_py.packet import SEQUENCE_SPACE

MODES = pytest.mark.parametrize("mode", ["psk", "pki"])
FAMILIES = pytest.mark.parametrize("family", [4, 6])


def finished_connection(shop: Shop, family: int = 4) -> None:
    """One honest connection from beginning to end, for the attacker to listen to; nothing of it is left."""
    connection = shop.connect(b"secret", family=family)
    shop.world.run(0.1)
    connection.close()
    shop.world.run(200)
    for pod in (shop.client, shop.server):
        pod.sweep()
    assert shop.delivered() == b"secret"
    shop.server.host.over.clear()


# -- 4: a replayed SYN gets a SYN-ACK at most -------------------------------------------------------------------------


@MODES
@FAMILIES
def test_captured_syn_from_a_third_pod_gets_a_syn_ack_at_most(mode: str, family: int) -> None:
    shop = Shop(mode=mode)
    mallory = shop.mallory(agent=False)
    finished_connection(shop, family)
    syn, proof = shop.world.last("syn"), shop.world.last("proof")
    shop.world.captured.clear()
    with shop.counts(server={DropReason.BAD_MAC: 1}):
        shop.world.inject(replace(syn, source=mallory.address(family), sport=666).build())
        shop.world.run(0.015)
        answer = shop.world.last("syn-ack")
        assert answer.destination == mallory.address(family)
        # She goes on as the client did: the captured proof, and data behind it.
        following = replace(
            proof, source=mallory.address(family), sport=666, acknowledgement=answer.sequence + 1, payload=proof.payload
        )
        shop.world.inject(following.build())
        shop.world.run(0.1)
    assert shop.delivered() == b""
    assert not shop.accepted()
    shop.assert_works(family=family)


def test_captured_syn_from_the_same_address_gets_no_further() -> None:
    """As the client's own packet: the answer goes to the client, who knows better."""
    shop = Shop()
    finished_connection(shop)
    with shop.counts(client={DropReason.NO_STATE: 1}):
        shop.world.inject(shop.world.last("syn").build())
        shop.world.run(0.5)
    assert not shop.accepted()
    shop.assert_works()


def test_captured_syn_of_a_connection_just_ended_proves_nothing_again() -> None:
    """The client still remembers the handshake, and must not answer for a second connection in its name."""
    shop = Shop()
    connection = shop.connect(b"secret", close=True)
    shop.world.run(1)
    assert connection.stage is Stage.TIME_WAIT
    shop.server.sweep()
    before = len(shop.server.host.over)
    with shop.counts(client={DropReason.UNEXPECTED: 1}):
        shop.world.inject(shop.world.last("syn").build())
        shop.world.run(0.5)
    assert len(shop.server.host.over) == before
    shop.assert_works()


def test_captured_syn_of_a_live_connection_does_not_disturb_it() -> None:
    shop = Shop()
    connection = shop.connect(b"one")
    shop.world.run(0.1)
    with shop.counts():
        shop.world.inject(shop.world.last("syn").build())
        shop.world.run(0.1)
        connection.write(b"two")
        shop.world.run(0.1)
    assert bytes(connection.received) == b"onetwo"
    assert len(shop.accepted()) == 1


@FAMILIES
def test_syn_sent_back_to_its_own_sender_is_no_answer(family: int) -> None:
    shop = Shop()
    lose(shop.world, "syn-ack")
    shop.connect(family=family)
    shop.world.run(0.005)
    syn = shop.world.last("syn")
    back = replace(
        syn, source=syn.destination, sport=syn.dport, destination=syn.source, dport=syn.sport
    )  # fmt: skip
    with shop.counts(client={DropReason.SIMULTANEOUS_OPEN: 1}):
        shop.world.inject(back.build())
        shop.world.run(0.1)
    shop.assert_works(family=family)


def test_syn_to_a_port_of_its_own_sender_proves_nothing() -> None:
    """The pod's own assertion comes in from the network: its node holds the key, but whoever sent it does not."""
    shop = Shop()
    mallory = shop.mallory(agent=False)
    shop.client.listen(80)
    finished_connection(shop)
    syn = shop.world.last("syn")
    with shop.counts(client={DropReason.UNPROVEN: 1}):
        shop.world.inject(
            replace(syn, source=mallory.address(), sport=666, destination=shop.client.address()).build()
        )  # fmt: skip
        shop.world.run(0.015)
        answer = shop.world.last("syn-ack")
        shop.world.inject(
            Segment(
                mallory.address(), 666, shop.client.address(), 80, syn.sequence + 1, answer.sequence + 1, ACK, b""
            ).build()
        )
        shop.world.run(0.1)
    assert all(one.stage is not Stage.ESTABLISHED for one in shop.client.host.connections.values())
    shop.assert_works()


def test_replayed_syn_with_data_behind_it_delivers_nothing() -> None:
    shop = Shop()
    mallory = shop.mallory(agent=False)
    finished_connection(shop)
    syn = shop.world.last("syn")
    with shop.counts(server={DropReason.HOLD_TIMEOUT: 1}):
        shop.world.inject(replace(syn, source=mallory.address(), sport=666).build())
        shop.world.run(0.015)
        answer = shop.world.last("syn-ack")
        data = Segment(
            mallory.address(), 666, shop.server.address(), 80, syn.sequence + 1, answer.sequence + 1, ACK, b"gimme"
        )
        shop.world.inject(data.build())
        shop.world.run(2)
    assert shop.delivered() == b""
    shop.assert_works()


# -- 1: every bit of our messages is under a MAC ----------------------------------------------------------------------

AT_ONCE = {
    DropReason.MALFORMED_MESSAGE,
    DropReason.VERSION,
    DropReason.MALFORMED_ASSERTION,
    DropReason.BAD_MAC,
}


@pytest.mark.slow
@MODES
@pytest.mark.parametrize("kind", ["syn", "syn-ack", "proof"])
def test_any_flipped_bit_is_one_counted_drop(mode: str, kind: str) -> None:
    """Slow because each of some thousand bits is a connection of its own.

    A flip in the magic makes the message none of ours: its sender is unidentified then, and refused as such.
    """
    shop = Shop(mode=mode)
    shop.world.audit = False
    shop.connect()
    shop.world.run(0.1)
    size = len(shop.world.last(kind).payload if kind != "proof" else shop.world.last(kind).payload[: wire.ACK.size])
    magic = {"syn": DropReason.POLICY, "syn-ack": DropReason.POLICY, "proof": DropReason.UNEXPECTED}[kind]
    delivered = shop.delivered()
    for bit in range(size * 8):
        alter(shop.world, kind, lambda segment, bit=bit: flipped(segment, bit))  # type: ignore[misc]
        before = (shop.client.drops, shop.server.drops)
        connection = shop.connect(b"flip")
        shop.world.run(0.06)
        drops = (shop.client.drops - before[0]) + (shop.server.drops - before[1])
        assert sum(drops.values()) == 1, (bit, drops)
        assert set(drops) <= ({magic} if bit < 32 else AT_ONCE), (bit, drops)
        assert shop.delivered() == delivered
        connection.end("given up")
        for one in list(shop.server.host.connections.values()):
            if one.stage is Stage.SYN_RECEIVED:
                one.end("given up")
        shop.world.on_wire = lambda data: (data,)
        if bit % 256 == 255:
            shop.world.run(80)
    shop.assert_works()


def flipped(segment: Segment, bit: int) -> Segment:
    payload = bytearray(segment.payload)
    payload[bit // 8] ^= 1 << bit % 8
    return replace(segment, payload=bytes(payload))


# -- 2: the client believes a SYN-ACK only with a MAC over its own nonce ----------------------------------------------


def answer_to(shop: Shop, forge: Callable[[Segment], bytes]) -> None:
    """Answer the client's next SYN with a forgery that arrives before the honest SYN-ACK does."""

    def on_wire(data: bytes) -> Iterable[bytes]:
        segment = read(data)
        if segment is not None and kind_of(segment) == "syn":
            shop.world.on_wire = lambda data: (data,)
            reply = Segment(
                segment.destination, segment.dport, segment.source, segment.sport, 4711, segment.sequence + 1,
                SYN | ACK, forge(segment),
            )  # fmt: skip
            shop.world.inject(reply.build())
        return (data,)

    shop.world.on_wire = on_wire


def encode_answer(syn: Segment, claimed: LocalIdentity, key: bytes) -> bytes:
    return messages.encode_syn_ack(
        syn.payload[: wire.SYN.size], claimed.id, bytes(16), (syn.destination, syn.dport), (syn.source, syn.sport),
        claimed.assertion, key,
    )  # fmt: skip


@MODES
@FAMILIES
def test_pod_without_the_key_cannot_answer_for_the_server(mode: str, family: int) -> None:
    shop = Shop(mode=mode)
    assert shop.server.identity is not None
    server = shop.server.identity
    answer_to(shop, lambda syn: encode_answer(syn, server, bytes(32)))
    with shop.counts(client={DropReason.BAD_MAC: 1}):
        connection = shop.assert_works(family=family)
    assert connection.irs != 4711


def test_captured_syn_ack_answers_no_other_syn() -> None:
    shop = Shop()
    finished_connection(shop)
    captured = shop.world.last("syn-ack").payload
    answer_to(shop, lambda syn: captured)
    with shop.counts(client={DropReason.BAD_MAC: 1}):
        shop.assert_works()


def test_another_pod_s_honest_answer_is_judged_as_that_pod_s() -> None:
    """Mallory has a key of her own: what she proves is that she is Mallory."""
    shop = Shop()
    mallory = shop.mallory()

    def forge(syn: Segment) -> bytes:
        assert mallory.identity is not None
        assert mallory.authenticator is not None
        assert shop.client.identity is not None
        key = mallory.identity.key.pair_key(
            shop.client.identity.key.public, shop.client.identity.id, mallory.identity.id,
            mallory.authenticator.trust_domain,
            mallory.authenticator.pair_salt(shop.client.identity.assertion),
        )  # fmt: skip
        return encode_answer(syn, mallory.identity, key)

    answer_to(shop, forge)
    with shop.counts(client={DropReason.POLICY: 1}):
        connection = shop.assert_works()
    assert connection.irs != 4711


def test_forged_bare_syn_ack_does_not_stand_for_the_server() -> None:
    shop = Shop()
    answer_to(shop, lambda syn: b"")
    with shop.counts(client={DropReason.POLICY: 1}):
        shop.connect()
        shop.world.run(0.015)
    assert not shop.client.accepted()


# -- 4 and 5: the server believes a proof only with a MAC over both nonces --------------------------------------------


@FAMILIES
def test_forged_proof_is_refused_and_the_honest_one_still_taken(family: int) -> None:
    shop = Shop()
    alter(shop.world, "proof", lambda segment: replace(segment, payload=segment.payload[:12] + bytes(16)))
    with shop.counts(server={DropReason.BAD_MAC: 1}, client={DropReason.REPEATED: 1}):
        connection = shop.connect(b"", family=family)
        shop.world.run(0.03)
        assert not shop.accepted()
        shop.world.run(2)
    assert connection.outcome == "connected"
    assert len(shop.accepted()) == 1


@FAMILIES
def test_late_copy_of_the_proof_is_never_read(family: int) -> None:
    """A server-first application with a silent client: nothing but the copy could reach it."""
    shop = Shop()
    shop.listener.on_accept = lambda connection: connection.write(b"welcome")
    connection = shop.connect(b"", family=family)
    shop.world.run(0.1)
    proof = shop.world.last("proof")
    with shop.counts():
        shop.world.inject(proof.build())
        shop.world.run(0.1)
        shop.server.set_policy(only_from(CLIENT))  # the next copy passes through the queue
        shop.world.inject(proof.build())
        shop.world.run(0.1)
    assert shop.delivered() == b""
    assert bytes(connection.received) == b"welcome"


# -- 3, 6 and 7: assertions -------------------------------------------------------------------------------------------


def other_trust_domain(mode: str) -> Authenticator:
    if mode == "psk":
        return assertions.psk_authenticator(trust_domain="elsewhere.example")
    return assertions.pki_authenticator(trust_domain="elsewhere.example")


def stranger(mode: str) -> Authenticator:
    if mode == "psk":
        return PskAuthenticator(bytes(32), assertions.TRUST_DOMAIN)
    return assertions.pki_authenticator(authority="somebody else")


WRONG = {
    DropReason.TRUST_DOMAIN: (other_trust_domain, {"trust_domain": "elsewhere.example"}),
    DropReason.UNKNOWN_SIGNER: (stranger, {}),
    DropReason.EXPIRED: (None, {"not_before": assertions.NOW - 4000, "not_after": assertions.NOW - 100}),
    DropReason.NOT_YET_VALID: (None, {"not_before": assertions.NOW + 100, "not_after": assertions.NOW + 4000}),
}


def wrong_identity(shop: Shop, mode: str, reason: DropReason) -> LocalIdentity:
    make, claims = WRONG[reason]
    authenticator = make(mode) if make else shop.world.authenticator("worker-1")
    return shop.world.local_identity(CLIENT, authenticator, **claims)  # type: ignore[arg-type]


@MODES
@pytest.mark.parametrize("reason", WRONG, ids=lambda reason: reason.value)
def test_assertion_that_does_not_hold_opens_nothing(mode: str, reason: DropReason) -> None:
    shop = Shop(mode=mode)
    shop.assert_works()
    assert shop.client.datapath is not None
    assert shop.client.identity is not None
    shop.client.datapath.set_identity(0, wrong_identity(shop, mode, reason))
    with shop.counts(server={reason: 1}):
        connection = shop.connect()
        shop.world.run(0.5)
    assert connection.stage is Stage.SYN_SENT
    assert not shop.server.endpoint.servers
    shop.client.datapath.set_identity(0, shop.client.identity)
    shop.assert_works()


@MODES
@pytest.mark.parametrize("reason", WRONG, ids=lambda reason: reason.value)
def test_server_s_assertion_that_does_not_hold_is_not_believed(mode: str, reason: DropReason) -> None:
    shop = Shop(mode=mode)
    assert shop.server.datapath is not None
    assert shop.server.identity is not None
    shop.server.datapath.set_identity(0, wrong_identity(shop, mode, reason))
    with shop.counts(client={reason: 1}):
        connection = shop.connect()
        shop.world.run(0.5)
    assert connection.stage is Stage.SYN_SENT
    shop.server.datapath.set_identity(0, shop.server.identity)
    shop.assert_works()


@MODES
def test_tampered_claims_under_their_own_id_are_a_bad_signature(mode: str) -> None:
    shop = Shop(mode=mode)
    assert shop.client.datapath is not None
    assert shop.client.identity is not None
    honest = shop.client.identity
    tampered = honest.assertion.replace(b"shop", b"shoo", 1)
    shop.client.datapath.set_identity(0, replace(honest, assertion=tampered, id=identity_id(tampered)))
    with shop.counts(server={DropReason.BAD_SIGNATURE: 1}):
        shop.connect()
        shop.world.run(0.5)
    shop.client.datapath.set_identity(0, honest)
    shop.assert_works()


def test_known_identities_are_not_slowed_by_a_flood_of_unknown_ones() -> None:
    shop = Shop()
    mallory = shop.mallory(agent=False)
    shop.assert_works()
    assert shop.client.identity is not None
    genuine = shop.client.identity.assertion
    for number in range(1_000):
        assertion = genuine[:-8] + number.to_bytes(8, "big")  # all of it is right but for the proof
        payload = messages.encode_syn(identity_id(assertion), bytes(16), assertion)
        syn = Segment(mallory.address(), 1024 + number, shop.server.address(), 80, number, 0, SYN, payload)
        shop.world.inject(syn.build())
    began = shop.server.drops
    shop.assert_works()
    drops = shop.server.drops - began
    assert drops[DropReason.RATE_LIMITED] > 900
    assert drops.total() == 1_000


def test_expiry_is_the_same_for_a_cached_identity() -> None:
    """Nothing may depend on whether the peer was here before: taken within the clock skew, refused after it."""
    shop = Shop()
    shop.assert_works()
    skew = 3000 - (shop.world.now.wall_s - assertions.NOW)
    shop.world.run(skew + 59)
    for _ in range(3):
        with shop.counts():
            shop.assert_works()
    shop.world.run(2)
    with shop.counts(server={DropReason.EXPIRED: 1}):
        shop.connect()
        shop.world.run(0.5)


# -- 8: no relay ------------------------------------------------------------------------------------------------------


def relay_through(shop: Shop, mallory: Pod, *, as_seen: bytes | None = None) -> None:
    """Pass everything that is sent to Mallory on to the server, and its answers back: raw packets, ports kept.

    ``as_seen`` is the address that the server sees instead of hers.
    """
    here, there = mallory.address(), shop.server.address()
    outside = as_seen or here
    callers: dict[int, bytes] = {}

    def on_wire(data: bytes) -> Iterable[bytes]:
        segment = read(data)
        assert segment is not None
        if segment.destination == here and segment.source != there:
            callers[segment.sport] = segment.source
            yield replace(segment, source=outside, destination=there).build()
        elif segment.source == there and segment.destination == outside and segment.dport in callers:
            yield replace(segment, source=here, destination=callers[segment.dport]).build()
        else:
            yield data

    shop.world.on_wire = on_wire


@MODES
def test_relay_through_a_pod_that_was_dialled_is_seen(mode: str) -> None:
    """The client may talk to anybody, so also to Mallory; she is to gain nothing but what is hers."""
    shop = Shop(mode=mode, client_policy=OPEN)
    mallory = shop.mallory(agent=False)
    relay_through(shop, mallory)
    with shop.counts(client={DropReason.RELAYED: 1}):
        shop.client.connect(mallory, data=b"for mallory")
        shop.world.run(0.5)
    assert not shop.accepted()
    assert shop.delivered() == b""
    shop.assert_works()


def test_relay_behind_a_masquerade_is_seen() -> None:
    """The server sees a router's address, which is nobody's pod's: it is the server's own address that tells."""
    shop = Shop(client_policy=OPEN)
    mallory = shop.mallory(agent=False)
    relay_through(shop, mallory, as_seen=packed("192.0.2.1"))
    with shop.counts(client={DropReason.RELAYED: 1}):
        shop.client.connect(mallory, data=b"for mallory")
        shop.world.run(0.5)
    assert shop.delivered() == b""


@pytest.mark.parametrize("masquerade", [False, True])
def test_relay_through_a_service_is_seen(masquerade: bool) -> None:
    """The client's node shows which pod the Service chose, and it is not the one that answered."""
    shop = Shop(client_policy=OPEN)
    mallory = shop.mallory(agent=False)
    vip = packed("10.96.0.1")
    shop.world.router.services[vip, 80] = [(mallory.address(), 80)]
    if masquerade:
        shop.world.router.masquerade[shop.client.address()] = packed("192.0.2.1")
    mallory.arrive = lambda data: pass_on(shop, mallory, data)  # type: ignore[method-assign]
    with shop.counts(client={DropReason.RELAYED: 1}):
        shop.client.connect(vip, data=b"for mallory")
        shop.world.run(0.5)
    assert shop.delivered() == b""


def pass_on(shop: Shop, mallory: Pod, data: bytes) -> None:
    """Mallory's raw socket: what comes from the server goes to whoever called her, all else to the server."""
    segment = read(data)
    assert segment is not None
    if segment.source == shop.server.address():
        caller = mallory.__dict__["caller"]
        back = replace(segment, source=mallory.address(), destination=caller[0], dport=caller[1], sport=80)
        shop.world.send(mallory, back.build())
        return
    mallory.__dict__["caller"] = (segment.source, segment.sport)
    on = replace(segment, source=mallory.address(), destination=shop.server.address())
    shop.world.send(mallory, on.build())


def test_relay_of_a_direct_connection_is_seen_by_the_address_the_server_saw() -> None:
    """Mallory on the path dials the server with her own address, and answers with the server's."""
    shop = Shop()
    mallory = shop.mallory(agent=False)
    here, there = mallory.address(), shop.server.address()

    def on_wire(data: bytes) -> Iterator[bytes]:
        segment = read(data)
        assert segment is not None
        if segment.destination == there:
            segment = replace(segment, source=here)
        elif segment.destination == here:
            segment = replace(segment, destination=shop.client.address())
        yield segment.build()

    shop.world.on_wire = on_wire
    with shop.counts(client={DropReason.RELAYED: 1}):
        shop.connect()
        shop.world.run(0.5)
    assert shop.delivered() == b""


# -- disturbing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [True, False])
def test_spoofed_second_syn_of_another_number_does_not_disturb(token: bool) -> None:
    """Half open or live: with the client's address and ports, with the captured token or without."""
    shop = Shop()
    finished_connection(shop)
    connection = shop.connect()
    shop.world.run(0.015)
    syn = shop.world.last("syn")
    spoofed = replace(syn, sequence=(syn.sequence + (1 << 30)) % SEQUENCE_SPACE, payload=syn.payload if token else b"")
    with shop.counts(server={} if token else {DropReason.POLICY: 2}):
        shop.world.inject(spoofed.build())
        shop.world.run(0.1)
        assert bytes(connection.received) == b"one beer"
        shop.world.inject(spoofed.build())
        shop.world.run(0.1)
        connection.write(b", and another")
        shop.world.run(0.1)
    assert bytes(connection.received) == b"one beer, and another"
