"""Conditions under which C must not answer by itself, one by one: each would be a hole if it did."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.harness import world
from tests.harness.segments import ACK, FIN, RST, SYN, URG, Segment, icmp, packed, read, tcp
from tests.harness.shop import CLIENT, SERVER, Shop
from tests.harness.standin_policy import StandInPolicy, only_from, only_to
from tests.harness.world import Pod
from trireme_py.endpoint import Acceptance
from trireme_py.fast import FastDatapath
from trireme_py.messages import encode_ack
from trireme_py.model import Direction, Hook

PASS, PASS_CLEAR, ACCEPT, DROP, PARK = range(5)
OWNED, KNOWN, PLAIN, STRANGER = range(4)
BAD_CHECKSUM = 1
FAST_OPEN = b"\x02\x04\x05\xb4\x22\x02\x01\x01"
ISN, SERVER_ISN = 1000, 5000


class Ends:
    """A warm client and a warm server, and their kernels' packets by hand."""

    def __init__(self) -> None:
        self.shop = Shop()
        self.shop.world.acquaint(self.shop.client, self.shop.server, 80, 4)
        self.client = self.shop.client
        self.server = self.shop.server
        self.sport = 50_000

    def offer(self, pod: Pod, hook: Hook, data: bytes, *, more: bool = False) -> tuple[int, int, bytes | None]:
        assert isinstance(pod.datapath, FastDatapath)
        now, engine = pod.world.now, pod.datapath.engine_endpoint(0)
        engine.add_entropy(pod.world.random.randbytes(16))
        return engine.receive(now.mono_ns, now.wall_s, int(hook is Hook.APPLICATION), data, more)

    def from_client(self, flags: int, sequence: int, acknowledgement: int = 0, payload: bytes = b"") -> Segment:
        ends = (self.client.address(), self.sport, self.server.address(), 80)
        return Segment(*ends, sequence, acknowledgement, flags, payload)

    def from_server(self, flags: int, sequence: int, acknowledgement: int, payload: bytes = b"") -> Segment:
        ends = (self.server.address(), 80, self.client.address(), self.sport)
        return Segment(*ends, sequence, acknowledgement, flags, payload)

    def leaves(self, pod: Pod, segment: Segment, wanted: int) -> Segment:
        verdict, _, packet = self.offer(pod, Hook.APPLICATION, segment.build())
        assert verdict == wanted
        rewritten = read(packet or b"")
        assert rewritten is not None
        return rewritten

    def syn(self, isn: int = ISN) -> Segment:
        """The SYN as it leaves, with its message; and let it arrive."""
        syn = self.leaves(self.client, self.from_client(SYN, isn), PASS_CLEAR)
        assert self.offer(self.server, Hook.NETWORK, syn.build())[0] == PASS
        return syn

    def syn_ack(self, isn: int = ISN) -> Segment:
        """The SYN-ACK as it leaves the server."""
        self.syn(isn)
        return self.leaves(self.server, self.from_server(SYN | ACK, SERVER_ISN, isn + 1), PASS_CLEAR)

    def answered(self, isn: int = ISN) -> None:
        """Up to the SYN-ACK at the client's kernel."""
        syn_ack = self.syn_ack(isn)
        assert self.offer(self.client, Hook.NETWORK, syn_ack.build())[0] == PASS

    def proof(self, payload: bytes = b"") -> Segment:
        """The first ACK as it leaves."""
        self.answered()
        return self.leaves(self.client, self.from_client(ACK, ISN + 1, SERVER_ISN + 1, payload), ACCEPT)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    monkeypatch.setattr(world, "IMPLEMENTATION", "c")
    return Ends()


def parked(answer: tuple[int, int, bytes | None]) -> bool:
    return answer[0] == PARK


def damaged(segment: Segment) -> bytes:
    """An option of it was changed on the way, and its sum was not."""
    data = replace(segment, options=b"\x02\x04\x05\xb4").build()
    at = data.index(b"\x02\x04\x05\xb4")
    return data[: at + 3] + b"\xb5" + data[at + 4 :]


# -- the client's end -------------------------------------------------------------------------------------------------


def test_the_whole_exchange_is_answered(ends: Ends) -> None:
    proof = ends.proof(b"data")
    verdict, _, packet = ends.offer(ends.server, Hook.NETWORK, proof.build())
    rest = read(packet or b"")
    assert verdict == ACCEPT
    assert rest is not None
    assert (rest.sequence, rest.payload) == (ISN + 1, b"data")


def test_a_syn_is_parked(ends: Ends) -> None:
    plain = ends.from_client(SYN, ISN)
    with_fast_open = replace(plain, options=FAST_OPEN)
    elsewhere = replace(plain, dport=81)
    for odd in (with_fast_open, elsewhere):
        assert parked(ends.offer(ends.client, Hook.APPLICATION, odd.build()))
    ends.syn()
    assert parked(ends.offer(ends.client, Hook.APPLICATION, plain.build()))  # repeated
    assert ends.offer(ends.client, Hook.APPLICATION, ends.from_client(SYN, ISN + 9).build())[0] == PASS_CLEAR  # anew


def test_a_policy_under_which_nobody_may_be_dialled_parks_every_syn(ends: Ends) -> None:
    ends.client.set_policy(StandInPolicy(egress=frozenset()))
    assert parked(ends.offer(ends.client, Hook.APPLICATION, ends.from_client(SYN, ISN).build()))


def test_a_damaged_syn_ack_is_not_blessed_with_a_new_checksum(ends: Ends) -> None:
    syn_ack = ends.syn_ack()
    assert ends.offer(ends.client, Hook.NETWORK, damaged(syn_ack))[:2] == (DROP, BAD_CHECKSUM)
    assert ends.offer(ends.client, Hook.NETWORK, syn_ack.build())[0] == PASS


def test_a_syn_ack_that_is_not_quite_right_is_parked(ends: Ends) -> None:
    syn_ack = ends.syn_ack()
    payload = bytearray(syn_ack.payload)
    payload[90] ^= 1  # the MAC
    for odd in (
        replace(syn_ack, payload=bytes(payload)),
        replace(syn_ack, payload=b""),
        replace(syn_ack, payload=syn_ack.payload[:-1]),
        replace(syn_ack, acknowledgement=ISN + 2),
    ):
        assert parked(ends.offer(ends.client, Hook.NETWORK, odd.build()))


def test_a_second_syn_ack_is_parked_even_if_it_is_authentic(ends: Ends) -> None:
    """One SYN-ACK is proven for and no other."""
    syn_ack = ends.syn_ack()
    again = ends.leaves(ends.server, ends.from_server(SYN | ACK, SERVER_ISN + 1, ISN + 1), PASS_CLEAR)
    assert ends.offer(ends.client, Hook.NETWORK, syn_ack.build())[0] == PASS
    for late in (syn_ack, again):
        assert parked(ends.offer(ends.client, Hook.NETWORK, late.build()))


def test_a_server_that_was_reached_by_somebody_else_is_parked(ends: Ends) -> None:
    """All is authentic, but the server saw another client: a relay, or a router that Python has to think about."""
    syn = ends.leaves(ends.client, ends.from_client(SYN, ISN), PASS_CLEAR)
    relay = packed("10.1.0.66")
    assert isinstance(ends.server.datapath, FastDatapath)
    shared, pod, peer = ends.server.datapath._shared, ends.server.datapath._endpoints[0], ends.client.identity
    assert peer is not None
    assert pod.identity is not None
    known = shared.identities.resolve_untrusted(ends.shop.world.now, 0, peer.id, peer.assertion)
    decision = pod.policy.decide(Direction.INGRESS, known.identity, relay, 6, 80)
    shared.teach(Acceptance(0, Direction.INGRESS, pod.identity, known, relay, 80, decision, None))
    assert ends.offer(ends.server, Hook.NETWORK, replace(syn, source=relay).build())[0] == PASS
    to_relay = replace(ends.from_server(SYN | ACK, SERVER_ISN, ISN + 1), destination=relay)
    syn_ack = ends.leaves(ends.server, to_relay, PASS_CLEAR)
    back = replace(syn_ack, destination=ends.client.address())
    assert parked(ends.offer(ends.client, Hook.NETWORK, back.build()))


def test_a_first_segment_without_room_for_a_proof_is_parked(ends: Ends) -> None:
    ends.answered()
    first = ends.from_client(ACK, ISN + 1, SERVER_ISN + 1)
    for odd in (
        replace(first, payload=bytes(1280 - 40 - 28 + 1)),
        replace(first, flags=ACK | URG),
        replace(first, sequence=ISN + 2),
    ):
        assert parked(ends.offer(ends.client, Hook.APPLICATION, odd.build()))
    largest = replace(first, payload=bytes(1280 - 40 - 28))
    assert ends.offer(ends.client, Hook.APPLICATION, largest.build())[0] == ACCEPT


def test_a_policy_replaced_since_the_syn_ack_is_asked_before_the_proof(ends: Ends) -> None:
    ends.answered()
    ends.client.set_policy(only_to(SERVER))
    assert parked(ends.offer(ends.client, Hook.APPLICATION, ends.from_client(ACK, ISN + 1, SERVER_ISN + 1).build()))


def test_data_that_arrives_before_our_proof_is_parked(ends: Ends) -> None:
    """Also where an older connection of the same ports had been accepted."""
    assert ends.offer(ends.server, Hook.NETWORK, ends.proof().build())[0] == ACCEPT
    ends.answered(ISN + 70_000)
    early = ends.from_server(ACK, SERVER_ISN + 1, ISN + 70_001, b"data")
    for odd in (early, replace(early, flags=RST), replace(early, flags=FIN | ACK)):
        assert parked(ends.offer(ends.client, Hook.NETWORK, odd.build()))


def test_the_mark_goes_on_the_last_packet_that_waits(ends: Ends) -> None:
    ends.answered()
    first = ends.from_client(ACK, ISN + 1, SERVER_ISN + 1)
    assert ends.offer(ends.client, Hook.APPLICATION, first.build(), more=True)[0] == PASS
    data = replace(first, payload=b"data").build()
    assert ends.offer(ends.client, Hook.APPLICATION, data, more=True)[0] == PASS
    assert ends.offer(ends.client, Hook.APPLICATION, data)[0] == ACCEPT


# -- the server's end -------------------------------------------------------------------------------------------------


def test_a_syn_that_is_not_quite_right_is_not_answered(ends: Ends) -> None:
    syn = ends.leaves(ends.client, ends.from_client(SYN, ISN), PASS_CLEAR)
    assert ends.offer(ends.server, Hook.NETWORK, damaged(syn))[:2] == (DROP, BAD_CHECKSUM)
    assert parked(ends.offer(ends.server, Hook.NETWORK, replace(syn, options=FAST_OPEN).build()))
    assert parked(ends.offer(ends.server, Hook.NETWORK, replace(syn, dport=81).build()))
    assert parked(ends.offer(ends.server, Hook.NETWORK, replace(syn, source=ends.server.address()).build()))
    assert ends.offer(ends.server, Hook.NETWORK, syn.build())[0] == PASS
    assert ends.offer(ends.server, Hook.NETWORK, syn.build())[0] == PASS  # the same, once more
    assert parked(ends.offer(ends.server, Hook.NETWORK, replace(syn, sequence=ISN + 1).build()))
    other_nonce = syn.payload[:28] + bytes(16) + syn.payload[44:]
    assert parked(ends.offer(ends.server, Hook.NETWORK, replace(syn, payload=other_nonce).build()))


def test_a_late_copy_of_an_accepted_connection_s_syn_is_parked(ends: Ends) -> None:
    syn = ends.syn()
    ends.offer(ends.server, Hook.APPLICATION, ends.from_server(SYN | ACK, SERVER_ISN, ISN + 1).build())
    live = ends.shop.assert_works()
    assert live
    captured = next(one for one in map(read, ends.shop.world.captured) if one and one.flags == SYN)
    assert captured.sport != syn.sport
    assert parked(ends.offer(ends.server, Hook.NETWORK, captured.build()))


def test_a_proof_that_is_not_quite_right_is_parked(ends: Ends) -> None:
    proof = ends.proof(b"data")
    wrong = bytearray(proof.payload)
    wrong[27] ^= 1
    header = b"\xf7TRM\x01\x03\x01\x00\x00\x1d\x00\x00" + proof.payload[12:]
    for odd, park in (
        (replace(proof, payload=bytes(wrong)), KNOWN),
        (replace(proof, payload=header), KNOWN),
        (replace(proof, acknowledgement=SERVER_ISN + 2), KNOWN),
        (replace(proof, flags=ACK | RST), KNOWN),
        (replace(proof, payload=proof.payload[:20]), KNOWN),
        (replace(proof, sequence=proof.sequence + 1), KNOWN),
        (replace(proof, payload=b"data", sequence=ISN + 1), KNOWN),
        (replace(proof, payload=b"", sequence=ISN + 1), KNOWN),
    ):
        assert ends.offer(ends.server, Hook.NETWORK, odd.build()) == (PARK, park, None)
    assert ends.offer(ends.server, Hook.NETWORK, damaged(proof))[:2] == (DROP, BAD_CHECKSUM)
    assert ends.offer(ends.server, Hook.NETWORK, proof.build())[0] == ACCEPT


def test_a_proof_made_with_another_key_is_parked(ends: Ends) -> None:
    syn = ends.syn()
    syn_ack = ends.leaves(ends.server, ends.from_server(SYN | ACK, SERVER_ISN, ISN + 1), PASS_CLEAR)
    forged = encode_ack(syn.payload[:44], syn_ack.payload[:96], bytes(32))
    proof = ends.from_client(ACK, ISN + 1 - 28, SERVER_ISN + 1, forged)
    assert parked(ends.offer(ends.server, Hook.NETWORK, proof.build()))


def test_a_policy_replaced_since_the_syn_is_asked_at_the_proof(ends: Ends) -> None:
    proof = ends.proof()
    ends.server.set_policy(only_from(CLIENT))
    assert parked(ends.offer(ends.server, Hook.NETWORK, proof.build()))


def test_the_pod_can_have_nothing_to_say_before_the_proof(ends: Ends) -> None:
    ends.proof()
    early = ends.from_server(ACK, SERVER_ISN + 1, ISN + 1, b"data")
    assert parked(ends.offer(ends.server, Hook.APPLICATION, early.build()))


def test_behind_a_redirect_the_proxy_s_port_is_the_connection_s_too(ends: Ends) -> None:
    syn = ends.syn()
    proxied = replace(ends.from_server(SYN | ACK, SERVER_ISN, ISN + 1), sport=15_006)
    syn_ack = ends.leaves(ends.server, proxied, PASS_CLEAR)
    assert ends.offer(ends.client, Hook.NETWORK, replace(syn_ack, sport=80).build())[0] == PASS
    proof = ends.leaves(ends.client, ends.from_client(ACK, ISN + 1, SERVER_ISN + 1), ACCEPT)
    assert ends.offer(ends.server, Hook.NETWORK, proof.build())[0] == ACCEPT
    answer = tcp((syn.destination, 15_006), (syn.source, syn.sport), SERVER_ISN + 1, ISN + 1, ACK, b"data")
    assert ends.offer(ends.server, Hook.APPLICATION, answer)[0] == ACCEPT


def test_ports_used_again_begin_a_connection_of_their_own(ends: Ends) -> None:
    assert isinstance(ends.server.datapath, FastDatapath)
    for isn in (ISN, ISN + 70_000, ISN + 140_000):
        ends.answered(isn)
        proof = ends.leaves(ends.client, ends.from_client(ACK, isn + 1, SERVER_ISN + 1), ACCEPT)
        assert ends.offer(ends.server, Hook.NETWORK, proof.build())[0] == ACCEPT
        for pod in (ends.client, ends.server):
            assert isinstance(pod.datapath, FastDatapath)
            assert pod.datapath.gauges().live == 1


def test_segments_of_an_accepted_connection_are_parked_under_a_new_policy(ends: Ends) -> None:
    proof = ends.proof()
    assert ends.offer(ends.server, Hook.NETWORK, proof.build())[0] == ACCEPT
    there, back = ends.from_client(ACK, ISN + 1, SERVER_ISN + 1, b"1"), ends.from_server(ACK, SERVER_ISN + 1, ISN + 2)
    cases = ((ends.client, Hook.APPLICATION, there), (ends.client, Hook.NETWORK, back),
             (ends.server, Hook.NETWORK, there), (ends.server, Hook.APPLICATION, back))  # fmt: skip
    for pod, hook, segment in cases:
        assert ends.offer(pod, hook, segment.build())[0] == ACCEPT
    ends.client.set_policy(only_to(SERVER))
    ends.server.set_policy(only_from(CLIENT))
    for pod, hook, segment in cases:
        assert ends.offer(pod, hook, segment.build()) == (PARK, OWNED, None)


def test_an_icmp_error_takes_the_connection_it_quotes_along(ends: Ends) -> None:
    syn = ends.syn()
    unreachable = icmp(ends.server.address(), ends.client.address(), 3, body=syn.build()[:60])
    assert parked(ends.offer(ends.client, Hook.NETWORK, unreachable))
    assert isinstance(ends.client.datapath, FastDatapath)
    engine = ends.client.datapath.engine_endpoint(0)
    assert engine.hand_over(0, unreachable)
    assert ends.client.datapath.gauges().opening == 0
