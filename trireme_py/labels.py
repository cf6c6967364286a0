"""Pod labels that do not fit in clear, as salted hashes on which selectors still evaluate.

One byte string::

    offset  size  field
    0       8     salt, drawn anew for each assertion
    8       14    record: hash of the key (6), hash of the pair (8); as many as there are labels, ascending, and no key
                  hash twice

    key hash  = BLAKE2s-48(key, salt=salt, person="TRM1lkey")
    pair hash = BLAKE2s-64(length of key as 2 octets big-endian | key | value, salt=salt, person="TRM1lval")

Whoever chooses labels does not know the salt when choosing, so collisions cannot be searched for beforehand; what
chance is left to guessing is in docs/identity.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2s
from itertools import pairwise
from typing import Final

from trireme_py.cose import malformed

# -- Specification ----------------------------------------------------------------------------------------------------

SALT_SIZE: Final = 8
"""The size of the salt in BLAKE2s's parameter block (RFC 7693, section 2.5)."""
KEY_HASH_SIZE: Final = 6
PAIR_HASH_SIZE: Final = 8
RECORD_SIZE: Final = KEY_HASH_SIZE + PAIR_HASH_SIZE
PERSON_KEY: Final = b"TRM1lkey"
PERSON_PAIR: Final = b"TRM1lval"


def key_hash(salt: bytes, key: str) -> bytes:
    """Return the 6-byte hash of a label's key."""
    return blake2s(key.encode(), digest_size=KEY_HASH_SIZE, salt=salt, person=PERSON_KEY).digest()


def record(salt: bytes, key: str, value: str) -> bytes:
    """Return the 14-byte record of a label."""
    name = key.encode()
    pair = len(name).to_bytes(2, "big") + name + value.encode()
    return key_hash(salt, key) + blake2s(pair, digest_size=PAIR_HASH_SIZE, salt=salt, person=PERSON_PAIR).digest()


@dataclass(frozen=True, slots=True)
class HashedLabels:
    """Labels of which only hashes are known; satisfies :class:`trireme_py.model.Labels`."""

    salt: bytes
    keys: frozenset[bytes]
    """Key hashes, 6 bytes each."""
    records: frozenset[bytes]
    """Whole records, 14 bytes each: a value matches only if both of its hashes do."""

    def has_key(self, key: str) -> bool:
        return key_hash(self.salt, key) in self.keys

    def has_value(self, key: str, value: str) -> bool:
        return record(self.salt, key, value) in self.records

    def describe(self) -> Mapping[str, str]:
        return {}


def hash_labels(labels: Mapping[str, str], salt: bytes) -> bytes:
    """Encode ``labels`` under a fresh 8-byte ``salt``."""
    if len(salt) != SALT_SIZE:
        raise ValueError(f"salt must have {SALT_SIZE} bytes, not {len(salt)}")
    return salt + b"".join(sorted(record(salt, key, value) for key, value in labels.items()))


def read_hashed_labels_untrusted(data: bytes) -> HashedLabels:
    """Decode what :func:`hash_labels` wrote."""
    if len(data) < SALT_SIZE or (len(data) - SALT_SIZE) % RECORD_SIZE:
        malformed("hashed labels have a wrong size")
    salt = data[:SALT_SIZE]
    records = [data[offset : offset + RECORD_SIZE] for offset in range(SALT_SIZE, len(data), RECORD_SIZE)]
    keys = [entry[:KEY_HASH_SIZE] for entry in records]
    # A key with two values would make In and NotIn true at once.
    if any(first >= second for first, second in pairwise(keys)):
        malformed("hashed labels are not ascending")
    return HashedLabels(salt, frozenset(keys), frozenset(records))
