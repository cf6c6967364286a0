from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.assertions import SALT, realistic_labels
from trireme_py.errors import InvalidToken
from trireme_py.labels import (
    KEY_HASH_SIZE,
    RECORD_SIZE,
    SALT_SIZE,
    hash_labels,
    key_hash,
    read_hashed_labels_untrusted,
)
from trireme_py.model import DropReason, Labels

NAMES = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,20}[a-zA-Z0-9])?", fullmatch=True)
LABELS = st.dictionaries(NAMES, st.one_of(st.just(""), NAMES), max_size=20)


def test_known_answer() -> None:
    """Computed with hashlib's BLAKE2s from the layout in the module's docstring; fixed since."""
    encoded = hash_labels({"tier": "web", "app.kubernetes.io/name": "frontend"}, SALT)
    assert encoded.hex() == (
        "5a17000000000001" "1bb2ee7abd34510bfd5bd5134879" "492d78226f2b93c8fbbfbcbc80b8"
    )  # fmt: skip


@given(labels=LABELS, others=LABELS, salt=st.binary(min_size=SALT_SIZE, max_size=SALT_SIZE))
def test_hashed_labels_answer_as_labels_in_clear_do(
    labels: dict[str, str], others: dict[str, str], salt: bytes
) -> None:
    hashed: Labels = read_hashed_labels_untrusted(hash_labels(labels, salt))
    for key, value in (labels | others).items():
        assert hashed.has_key(key) == (key in labels)
        assert hashed.has_value(key, value) == (labels.get(key) == value)
        assert hashed.has_value(key, value + "x") == (labels.get(key) == value + "x")
    assert hashed.describe() == {}


def test_key_and_value_do_not_run_together() -> None:
    hashed = read_hashed_labels_untrusted(hash_labels({"ab": "c"}, SALT))
    assert hashed.has_value("ab", "c")
    assert not hashed.has_value("a", "bc")
    assert not hashed.has_value("abc", "")


def test_another_salt_gives_other_hashes() -> None:
    """Collisions found for one assertion are worth nothing for the next."""
    labels = realistic_labels(60).items
    one, two = hash_labels(labels, SALT), hash_labels(labels, bytes(SALT_SIZE))
    first, second = read_hashed_labels_untrusted(one), read_hashed_labels_untrusted(two)
    assert first.keys.isdisjoint(second.keys)
    assert len(one) == len(two) == SALT_SIZE + 60 * RECORD_SIZE


def test_no_labels() -> None:
    hashed = read_hashed_labels_untrusted(hash_labels({}, SALT))
    assert not hashed.has_key("app")
    assert not hashed.has_value("app", "")


def broken() -> dict[str, bytes]:
    good = hash_labels({"tier": "web", "app": "shop"}, SALT)
    first, second = good[SALT_SIZE : SALT_SIZE + RECORD_SIZE], good[SALT_SIZE + RECORD_SIZE :]
    return {
        "empty": b"",
        "salt cut off": SALT[:-1],
        "record cut off": good[:-1],
        "an octet too many": good + b"\0",
        "descending": SALT + second + first,
        "record twice": SALT + first + first,
        "key with two values": SALT + first[:KEY_HASH_SIZE] + bytes(8) + first[:KEY_HASH_SIZE] + b"\xff" * 8,
    }


@pytest.mark.parametrize("data", broken().values(), ids=broken().keys())
def test_what_is_not_taken(data: bytes) -> None:
    with pytest.raises(InvalidToken) as caught:
        read_hashed_labels_untrusted(data)
    assert caught.value.reason is DropReason.MALFORMED_ASSERTION


def test_a_salt_of_the_wrong_size_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="8 bytes"):
        hash_labels({}, b"short")


def test_hashes_are_spread() -> None:
    """A weak check that no octet of the hash is constant."""
    seen = [key_hash(SALT, f"key-{number}") for number in range(256)]
    assert all(len({digest[octet] for digest in seen}) > 100 for octet in range(KEY_HASH_SIZE))
