"""What an attacker or a broken link does to bytes, reproducibly."""

from __future__ import annotations

import random
from collections.abc import Iterator


def bit_flips(data: bytes) -> Iterator[bytes]:
    """Every copy of ``data`` that differs in exactly one bit."""
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        yield bytes(flipped)


def truncations(data: bytes) -> Iterator[bytes]:
    """Every proper prefix of ``data``."""
    return (data[:length] for length in range(len(data)))


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """``count`` seeded mutations, each of one to three edits; none is ``data`` itself."""
    rng = random.Random(seed)
    produced = 0
    while produced < count:
        mutated = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            _edit(rng, mutated)
        if mutated != data:
            produced += 1
            yield bytes(mutated)


def _edit(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 1, 2, 4, 9, 33)))
    match rng.randrange(5):
        case 0:  # overwrite; the heads of CBOR are where it hurts
            data[start:end] = bytes(
                rng.choice((0x00, 0x1F, 0x5F, 0x7F, 0x9F, 0xBF, 0xF6, 0xFF)) for _ in range(start, end)
            )
        case 1:
            data[start:end] = rng.randbytes(end - start)
        case 2:
            del data[start:end]
        case 3:
            data[start:start] = data[start:end]
        case _:
            data[start:start] = rng.randbytes(end - start)
