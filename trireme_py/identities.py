"""Identities at hand: our own pods', the peers' that were verified before, and the keys between them.

A known peer costs one dictionary look-up. An unknown one costs signatures and a key agreement, so it is admitted by a
rate limit first (per pod, so that a flood to one pod does not starve another's newcomers).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from trireme_py.assertion import CLOCK_SKEW_S, identity_id
from trireme_py.auth import Authenticator
from trireme_py.errors import InvalidToken
from trireme_py.model import DropReason, Identity, Instant
from trireme_py.pairing import AgreementKey
from trireme_py.ratelimit import TokenBucket

MAX_PEERS: Final = 65_536
"""About the pods of the largest supported cluster sharded over its nodes' neighbours; 1.5 kB each."""
MAX_PAIR_KEYS: Final = 65_536
UNKNOWN_PER_SECOND: Final = 200
UNKNOWN_BURST: Final = 64
"""A verification costs up to 0.4 ms: a flood of unknown identities is held below a tenth of a core per pod."""


@dataclass(frozen=True, slots=True)
class LocalIdentity:
    """The assertion a local pod presents, and the key behind it."""

    id: bytes
    assertion: bytes
    key: AgreementKey
    not_after: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class Peer:
    """A verified assertion of somebody else."""

    identity: Identity
    agreement_key: bytes
    not_before: int
    not_after: int
    assertion: bytes


class Identities:
    """The verified peers and the pair keys, both bounded, the least recently used going first."""

    __slots__ = ("_buckets", "_pair_keys", "_peers", "authenticator", "known", "refused", "verified")

    def __init__(self, authenticator: Authenticator) -> None:
        self.authenticator = authenticator
        self._peers: OrderedDict[bytes, Peer] = OrderedDict()
        self._pair_keys: OrderedDict[tuple[bytes, bytes], bytes] = OrderedDict()
        self._buckets: dict[int, TokenBucket] = {}
        self.known = 0
        """Assertions that had been verified before."""
        self.verified = 0
        self.refused = 0
        """Assertions whose verification failed, or that came faster than they may be verified."""

    def __len__(self) -> int:
        return len(self._peers)

    def resolve_untrusted(self, now: Instant, endpoint: int, claimed_id: bytes, assertion: bytes) -> Peer:
        """Return the peer behind an assertion that arrived for ``endpoint``.

        Raises InvalidToken with the reason. A failure leaves nothing behind but a spent token of the rate limit.
        """
        peer = self._peers.get(claimed_id)
        if peer is not None and peer.assertion == assertion:
            if now.wall_s >= peer.not_after + CLOCK_SKEW_S:
                del self._peers[claimed_id]
                raise InvalidToken(DropReason.EXPIRED, peer.identity.name)
            self._peers.move_to_end(claimed_id)
            self.known += 1
            return peer
        try:
            peer = self._verify_untrusted(now, endpoint, claimed_id, assertion)
        except InvalidToken:
            self.refused += 1
            raise
        self.verified += 1
        self._peers[claimed_id] = peer
        if len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)
        return peer

    def _verify_untrusted(self, now: Instant, endpoint: int, claimed_id: bytes, assertion: bytes) -> Peer:
        if identity_id(assertion) != claimed_id:
            raise InvalidToken(DropReason.MALFORMED_ASSERTION, "the id is not this assertion's")

        def admit() -> None:
            bucket = self._buckets.get(endpoint)
            if bucket is None:
                bucket = self._buckets[endpoint] = TokenBucket(UNKNOWN_PER_SECOND, UNKNOWN_BURST)
            if not bucket.take(now.mono_ns):
                raise InvalidToken(DropReason.RATE_LIMITED)

        verified = self.authenticator.verify_untrusted(assertion, now.wall_s, admit)
        return Peer(verified.identity, verified.agreement_key, verified.not_before, verified.not_after, assertion)

    def pair_key(self, local: LocalIdentity, peer: Peer, *, local_is_client: bool) -> bytes:
        """Return the 32-octet key between two identities in their roles.

        Raises InvalidToken on a useless peer key, or when the client's pre-shared key is no longer in use.
        """
        ends = (local.id, peer.identity.id) if local_is_client else (peer.identity.id, local.id)
        # Only our own side's key makes this one secret, and that key changes with our id; so the ids are a full name,
        # but for a pair whose two ends are both ours: then both ends derive the same key anyway.
        key = self._pair_keys.get(ends)
        if key is None:
            salt = self.authenticator.pair_salt(local.assertion if local_is_client else peer.assertion)
            key = local.key.pair_key(peer.agreement_key, ends[0], ends[1], self.authenticator.trust_domain, salt)
            self._pair_keys[ends] = key
            if len(self._pair_keys) > MAX_PAIR_KEYS:
                self._pair_keys.popitem(last=False)
        else:
            self._pair_keys.move_to_end(ends)
        return key

    def forget_peers(self) -> None:
        """Verify everybody anew: other keys are in use, and who was believed under the old ones need not be now."""
        self._peers.clear()
        self._pair_keys.clear()

    def forget_endpoint(self, endpoint: int) -> None:
        self._buckets.pop(endpoint, None)
