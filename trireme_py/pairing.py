"""The pair key: what two nodes share for one pair of identities, and nobody else can compute.

``K = HKDF-SHA256(ikm, salt, info)``, 32 bytes (RFC 5869), with

- ikm: X25519 (RFC 7748) of the two agreement keys, each taken from its owner's assertion;
- salt: a secret derived from the pre-shared key, or nothing in PKI mode;
- info: label, trust domain, client's identity id, server's identity id, each behind its length as 2 octets big-endian.

The roles are part of ``info``: A calling B and B calling A use different keys.

What Python can do about wiping: nothing reliable. ``bytes`` cannot be overwritten, and copies may stay in freed memory
until it is used again. So the private key lives inside the cryptography library (OpenSSL clears it when it is freed),
is made anew for each assertion lifetime, is never written anywhere, and dropping the last reference is the wipe. Pair
keys are ``bytes``; a core dump or a swapped-out page can hold them (docs/identity.md: how to turn both off).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from trireme_py import wire
from trireme_py.errors import InvalidToken
from trireme_py.model import DropReason

PAIR_KEY_LABEL: Final = b"TRM1 pair key"
SEED_SIZE: Final = 32


def length_prefixed(*fields: bytes) -> bytes:
    """Join fields so that no two lists of fields give the same bytes."""
    return b"".join(len(field).to_bytes(2, "big") + field for field in fields)


class AgreementKey:
    """A node's X25519 key pair for one assertion lifetime."""

    __slots__ = ("_private", "public")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_SIZE:
            raise ValueError(f"an agreement key is made of {SEED_SIZE} random bytes, not {len(seed)}")
        self._private = X25519PrivateKey.from_private_bytes(seed)
        self.public: Final = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, entropy: Callable[[int], bytes]) -> AgreementKey:
        """Make a key of 32 bytes drawn from ``entropy``."""
        return cls(entropy(SEED_SIZE))

    def pair_key(
        self, peer_public: bytes, client_id: bytes, server_id: bytes, trust_domain: str, salt: bytes = b""
    ) -> bytes:
        """Return the 32-byte key for connections from ``client_id`` to ``server_id``.

        ``salt`` is :meth:`Authenticator.pair_salt` of the client's assertion.

        :raises InvalidToken: MALFORMED_ASSERTION, if the peer's key is not one (RFC 7748, section 6.1: a shared secret
            of zeros, which anybody can compute)
        """
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(peer_public))
        except ValueError:  # the library's answer to both a wrong length and a secret of zeros
            raise InvalidToken(DropReason.MALFORMED_ASSERTION, "agreement key is not usable") from None
        if not any(shared):
            raise InvalidToken(DropReason.MALFORMED_ASSERTION, "agreement key is of small order")
        info = length_prefixed(PAIR_KEY_LABEL, trust_domain.encode(), client_id, server_id)
        return HKDF(hashes.SHA256(), wire.PAIR_KEY_SIZE, salt or None, info).derive(shared)

    def __repr__(self) -> str:
        return f"AgreementKey(public={self.public.hex()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an agreement key does not leave the process")
