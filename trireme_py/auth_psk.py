"""Assertions under one pre-shared key: COSE_Mac0 with HMAC-SHA256.

Every holder of the key can claim to be any pod. Three secrets are derived from it, so that none stands in for another
(HKDF-SHA256; info = label and trust domain, length-prefixed): the assertion key, the secret in pair keys, and a 4-byte
key id that is sent, so that "another key" and "tampered with" are told apart.
"""

from __future__ import annotations

from collections.abc import Callable
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


class PskAuthenticator:
    """Issues and verifies with a key derived from a pre-shared key; see :class:`trireme_py.auth.Authenticator`."""

    __slots__ = ("_header", "_key", "_limit", "_pair_salt", "_trust_domain")

    def __init__(self, psk: bytes, trust_domain: str) -> None:
        """Derive the keys of ``trust_domain``.

        :raises CredentialError: the key is shorter than 32 bytes, or the trust domain is no name
        """
        if len(psk) < MIN_PSK_SIZE:
            raise CredentialError(f"pre-shared key has {len(psk)} bytes, at least {MIN_PSK_SIZE} are needed")
        try:
            check_trust_domain(trust_domain)
        except InvalidToken as error:
            raise CredentialError(str(error)) from error
        self._trust_domain = trust_domain
        self._key = _derive(psk, LABEL_ASSERTION, trust_domain, 32)
        self._pair_salt = _derive(psk, LABEL_PAIR, trust_domain, 32)
        self._header = {cose.HEADER_KEY_ID: _derive(psk, LABEL_KEY_ID, trust_domain, KEY_ID_SIZE)}
        self._limit = wire.MAX_ASSERTION - cose.overhead(cose.Kind.MAC0, self._header)

    @property
    def trust_domain(self) -> str:
        return self._trust_domain

    @property
    def mode(self) -> Literal["psk"]:
        return "psk"

    @property
    def pair_salt(self) -> bytes:
        return self._pair_salt

    def issue(self, claims: Claims, salt: bytes) -> bytes:
        if claims.trust_domain != self._trust_domain:
            raise ConfigError(f"trust domain is {self._trust_domain}, no assertion for {claims.trust_domain} is issued")
        payload = encode_claims(claims, "psk", salt, self._limit)
        return cose.mac0(self._key, self._header, payload, CONTEXT)

    def verify_untrusted(
        self, assertion: bytes, wall_s: float, admit: Callable[[], None] = lambda: None
    ) -> VerifiedAssertion:
        message, claims = read_assertion_untrusted(assertion, cose.Kind.MAC0, "psk", self._trust_domain, wall_s)
        if message.header.get(cose.HEADER_KEY_ID) != self._header[cose.HEADER_KEY_ID]:
            raise InvalidToken(DropReason.UNKNOWN_SIGNER, "made with another pre-shared key")
        admit()
        cose.verify_mac0_untrusted(message, self._key, CONTEXT)
        return verified(assertion, claims, "psk")

    def __repr__(self) -> str:
        return f"PskAuthenticator(trust_domain={self._trust_domain!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a pre-shared key does not leave the process")


def _derive(psk: bytes, label: bytes, trust_domain: str, size: int) -> bytes:
    return HKDF(hashes.SHA256(), size, None, length_prefixed(label, trust_domain.encode())).derive(psk)
