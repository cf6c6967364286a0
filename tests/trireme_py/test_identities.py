"""Known peers cost a look-up, unknown ones a token of the rate limit, and neither grows without bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.harness import assertions
from tests.harness.recorded import SERVER_KEY, identities
from trireme_py import identities as module
from trireme_py.assertion import CLOCK_SKEW_S, VerifiedAssertion, identity_id
from trireme_py.auth_psk import PskAuthenticator
from trireme_py.errors import InvalidToken
from trireme_py.identities import UNKNOWN_BURST, UNKNOWN_PER_SECOND, Identities, LocalIdentity, Peer
from trireme_py.model import DropReason, Instant

SECOND = 1_000_000_000
NOW = Instant(SECOND, float(assertions.NOW))


class Counting(PskAuthenticator):
    """The real one, counting how often it comes to cryptography."""

    verified = 0

    def verify_untrusted(
        self, assertion: bytes, wall_s: float, admit: Callable[[], None] = lambda: None
    ) -> VerifiedAssertion:
        def counted() -> None:
            admit()
            type(self).verified += 1

        return super().verify_untrusted(assertion, wall_s, counted)


@pytest.fixture
def known() -> Identities:
    Counting.verified = 0
    return Identities(Counting(assertions.PSK, assertions.TRUST_DOMAIN))


def refused(known: Identities, now: Instant, claimed: bytes, assertion: bytes, endpoint: int = 0) -> DropReason:
    with pytest.raises(InvalidToken) as refusal:
        known.resolve_untrusted(now, endpoint, claimed, assertion)
    return refusal.value.reason


def test_known_peer_is_not_verified_again(known: Identities) -> None:
    client, _ = identities()
    peers = [known.resolve_untrusted(NOW, 0, client.id, client.assertion) for _ in range(5)]
    assert all(peer is peers[0] for peer in peers)
    assert peers[0].identity.name == "shop/frontend-7d9f8c6b5-x2x4z"
    assert (Counting.verified, known.known, known.verified, known.refused) == (1, 4, 1, 0)


def test_who_was_believed_is_verified_anew_when_keys_changed(known: Identities) -> None:
    client, server = identities()
    peer = known.resolve_untrusted(NOW, 0, client.id, client.assertion)
    before = known.pair_key(server, peer, local_is_client=False)
    known.authenticator = PskAuthenticator(assertions.PSK[::-1], assertions.TRUST_DOMAIN)
    assert known.resolve_untrusted(NOW, 0, client.id, client.assertion) is peer
    known.forget_peers()
    assert refused(known, NOW, client.id, client.assertion) is DropReason.UNKNOWN_SIGNER
    with pytest.raises(InvalidToken):
        known.pair_key(server, peer, local_is_client=False)
    known.authenticator = PskAuthenticator(assertions.PSK[::-1], assertions.TRUST_DOMAIN, assertions.PSK)
    again = known.resolve_untrusted(NOW, 0, client.id, client.assertion)
    assert known.pair_key(server, again, local_is_client=False) == before


def test_id_of_another_assertion_is_malformed_and_costs_no_signature(known: Identities) -> None:
    """Also where the id is a known one: an id alone says nothing."""
    client, server = identities()
    known.resolve_untrusted(NOW, 0, client.id, client.assertion)
    assert refused(known, NOW, client.id, server.assertion) is DropReason.MALFORMED_ASSERTION
    assert refused(known, NOW, bytes(16), client.assertion) is DropReason.MALFORMED_ASSERTION
    assert Counting.verified == 1
    assert len(known) == 1


def test_failure_leaves_nothing_behind(known: Identities) -> None:
    client, _ = identities()
    bad = client.assertion[:-1] + b"!"
    assert refused(known, NOW, identity_id(bad), bad) is DropReason.BAD_SIGNATURE
    assert (len(known), known.refused, known.verified) == (0, 1, 0)
    known.resolve_untrusted(NOW, 0, client.id, client.assertion)


def test_unknown_assertions_are_limited_before_any_signature_and_per_pod(known: Identities) -> None:
    client, server = identities()
    known.resolve_untrusted(NOW, 0, client.id, client.assertion)
    reasons = []
    for number in range(1_000):
        bad = client.assertion[:-2] + number.to_bytes(2, "big")
        reasons.append(refused(known, NOW, identity_id(bad), bad))
    assert set(reasons) == {DropReason.BAD_SIGNATURE, DropReason.RATE_LIMITED}
    assert Counting.verified == UNKNOWN_BURST
    # Known ones are as quick as ever, newcomers to other pods are not in the way, and time heals.
    known.resolve_untrusted(NOW, 0, client.id, client.assertion)
    assert refused(known, NOW, server.id, server.assertion) is DropReason.RATE_LIMITED
    known.resolve_untrusted(NOW, 1, server.id, server.assertion)
    later = Instant(NOW.mono_ns + SECOND // UNKNOWN_PER_SECOND, NOW.wall_s)
    bad = client.assertion[:-1] + b"!"
    assert refused(known, later, identity_id(bad), bad) is DropReason.BAD_SIGNATURE
    known.forget_endpoint(0)
    assert refused(known, later, identity_id(bad), bad) is DropReason.BAD_SIGNATURE


@pytest.mark.parametrize("cached", [True, False])
def test_end_is_the_same_whether_cached_or_not(known: Identities, cached: bool) -> None:
    client, _ = identities()
    if cached:
        known.resolve_untrusted(NOW, 0, client.id, client.assertion)
    last = client.not_after + CLOCK_SKEW_S - 1
    known.resolve_untrusted(Instant(SECOND, last), 0, client.id, client.assertion)
    for _ in range(3):
        assert refused(known, Instant(SECOND, last + 1), client.id, client.assertion) is DropReason.EXPIRED


def test_least_recently_used_peer_makes_room(known: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PEERS", 2)
    authenticator = assertions.psk_authenticator()
    made = [authenticator.issue(assertions.claims(pod=f"pod-{number}"), assertions.SALT) for number in range(3)]
    for assertion in (made[0], made[1], made[0], made[2]):
        known.resolve_untrusted(NOW, 0, identity_id(assertion), assertion)
    assert len(known) == 2
    known.resolve_untrusted(NOW, 0, identity_id(made[0]), made[0])
    assert Counting.verified == 3
    known.resolve_untrusted(NOW, 0, identity_id(made[1]), made[1])
    assert Counting.verified == 4


def other_side(known: Identities, local: LocalIdentity) -> Peer:
    return known.resolve_untrusted(NOW, 0, local.id, local.assertion)


def test_both_ends_have_one_key_and_each_role_its_own(known: Identities) -> None:
    client, server = identities()
    at_client = known.pair_key(client, other_side(known, server), local_is_client=True)
    at_server = Identities(known.authenticator).pair_key(server, other_side(known, client), local_is_client=False)
    assert at_client == at_server
    assert len(at_client) == 32
    reverse = known.pair_key(client, other_side(known, server), local_is_client=False)
    assert reverse != at_client


def test_pair_keys_are_made_once_and_bounded(known: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAIR_KEYS", 2)
    client, server = identities()
    peer = other_side(known, server)
    key = known.pair_key(client, peer, local_is_client=True)
    assert known.pair_key(client, peer, local_is_client=True) is key
    for number in range(3):
        known.pair_key(replace(client, id=bytes([number]) * 16), peer, local_is_client=True)
    assert len(known._pair_keys) == 2
    again = known.pair_key(client, peer, local_is_client=True)
    assert again == key


def test_useless_agreement_key_makes_no_pair_key(known: Identities) -> None:
    """Of small order: anybody could compute the secret (RFC 7748, section 6.1)."""
    client, server = identities()
    peer = other_side(known, server)
    assert peer.agreement_key == SERVER_KEY.public
    with pytest.raises(InvalidToken) as refusal:
        known.pair_key(client, replace(peer, agreement_key=bytes(32)), local_is_client=True)
    assert refusal.value.reason is DropReason.MALFORMED_ASSERTION
    assert not known._pair_keys


def test_what_is_refused_cheaply_takes_no_newcomer_s_turn(known: Identities) -> None:
    """Anybody can send octets with an id that fits them; only what comes to cryptography counts against the rate."""
    client, _ = identities()
    for number in range(10 * UNKNOWN_BURST):
        junk = number.to_bytes(100, "big")
        assert refused(known, NOW, identity_id(junk), junk) is DropReason.MALFORMED_ASSERTION
    assert known.resolve_untrusted(NOW, 0, client.id, client.assertion).identity.namespace == "shop"
    assert Counting.verified == 1
