"""Assertions under one pre-shared key: COSE_Mac0 with HMAC-SHA256.

Every holder of the key can claim to be any pod. Three secrets are derived from it, so that none stands in for another
(HKDF-SHA256; info = label and trust domain, length-prefixed): the assertion key, the secret in pair keys, and a 4-byte
key id that is sent, so that "another key" and "tampered with" are told apart.

While the key is changed there are two: one signs, both are believed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from trireme_py import cose, wire
from trireme_py.assertion import CONTEXT, Claims, VerifiedAssertion, check_trust_domain, encode_claims, verified
from trireme_py.auth import read_assertion_untrusted
from trireme_py.errors import ConfigError, CredentialError, InvalidToken
from trireme_py.model import DropReason
from trireme_py.pairing import length_prefixed

MIN_PSK_SIZE: Final = 32
LABEL_ASSERTION: Final = b"TRM1 psk assertion"
LABEL_PAIR: Final = b"TRM1 psk pair"
LABEL_KEY_ID: Final = b"TRM1 psk key id"
KEY_ID_SIZE: Final = 4


@dataclass(frozen=True, slots=True, repr=False)
class _Derived:
    """What is derived from one pre-shared key."""

    id: bytes
    assertion_key: bytes
    pair_salt: bytes

    @classmethod
    def of(cls, psk: bytes, trust_domain: str) -> _Derived:
        return cls(
            _derive(psk, LABEL_KEY_ID, trust_domain, KEY_ID_SIZE),
            _derive(psk, LABEL_ASSERTION, trust_domain, 32),
            _derive(psk, LABEL_PAIR, trust_domain, 32),
        )


class PskAuthenticator:
    """Issues and verifies with a key derived from a pre-shared key; see :class:`trireme_py.auth.Authenticator`."""

    __slots__ = ("_header", "_keys", "_limit", "_signs", "_trust_domain")

    def __init__(self, psk: bytes, trust_domain: str, other: bytes | None = None) -> None:
        """Derive the keys of ``trust_domain``: ``psk`` signs, and what was made with ``other`` is believed, too.

        :raises CredentialError: a key is shorter than 32 bytes, or the trust domain is no name
        """
        keys = (psk,) if other is None else (psk, other)
        if short := [key for key in keys if len(key) < MIN_PSK_SIZE]:
            raise CredentialError(f"pre-shared key has {len(short[0])} bytes, at least {MIN_PSK_SIZE} are needed")
        try:
            check_trust_domain(trust_domain)
        except InvalidToken as error:
            raise CredentialError(str(error)) from error
        self._trust_domain = trust_domain
        derived = [_Derived.of(key, trust_domain) for key in keys]
        self._keys = {key.id: key for key in reversed(derived)}  # the one that signs, should both have one id
        self._signs = derived[0]
        self._header = {cose.HEADER_KEY_ID: self._signs.id}
        self._limit = wire.MAX_ASSERTION - cose.overhead(cose.Kind.MAC0, self._header)

    @property
    def trust_domain(self) -> str:
        return self._trust_domain

    @property
    def mode(self) -> Literal["psk"]:
        return "psk"

    def pair_salt(self, client_assertion: bytes) -> bytes:
        return self._key_of(cose.decode_untrusted(client_assertion, cose.Kind.MAC0, wire.MAX_ASSERTION)).pair_salt

    def issue(self, claims: Claims, salt: bytes) -> bytes:
        if claims.trust_domain != self._trust_domain:
            raise ConfigError(f"trust domain is {self._trust_domain}, no assertion for {claims.trust_domain} is issued")
        payload = encode_claims(claims, "psk", salt, self._limit)
        return cose.mac0(self._signs.assertion_key, self._header, payload, CONTEXT)

    def verify_untrusted(
        self, assertion: bytes, wall_s: float, admit: Callable[[], None] = lambda: None
    ) -> VerifiedAssertion:
        message, claims = read_assertion_untrusted(assertion, cose.Kind.MAC0, "psk", self._trust_domain, wall_s)
        key = self._key_of(message)
        admit()
        cose.verify_mac0_untrusted(message, key.assertion_key, CONTEXT)
        return verified(assertion, claims, "psk")

    def _key_of(self, message: cose.Message) -> _Derived:
        name = message.header.get(cose.HEADER_KEY_ID)
        key = self._keys.get(name) if isinstance(name, bytes) else None
        if key is None:
            raise InvalidToken(DropReason.UNKNOWN_SIGNER, "made with another pre-shared key")
        return key

    def __repr__(self) -> str:
        return f"PskAuthenticator(trust_domain={self._trust_domain!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a pre-shared key does not leave the process")


def _derive(psk: bytes, label: bytes, trust_domain: str, size: int) -> bytes:
    return HKDF(hashes.SHA256(), size, None, length_prefixed(label, trust_domain.encode())).derive(psk)
