"""UDP on the fast path: Python alone and the engine in C in front of it are fed the same, and must say the same."""

from __future__ import annotations

import pytest

from tests.harness import world
from tests.harness.datagram_storm import DatagramStorm
from tests.harness.overheard import Heard, assert_same, listen_in


def weather(implementation: str, mode: str, seed: int, flows: int) -> Heard:
    """What one storm sounds like."""
    heard = Heard()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(world, "IMPLEMENTATION", implementation)
        listen_in(heard, monkeypatch)
        scene = DatagramStorm(seed, mode)
        scene.rain(flows)
        heard.collect(scene.guarded)
    return heard


@pytest.mark.parametrize(("mode", "seed"), [("psk", 1), ("psk", 2), ("pki", 3)])
def test_both_say_the_same_in_a_storm(mode: str, seed: int) -> None:
    python, c = (weather(implementation, mode, seed, 600) for implementation in ("python", "c"))
    assert_same(python, c)
    # It was worth comparing: C has accepted flows of its own, and handed others over.
    assert c.answered_in_c > 100, c.answered_in_c
    assert c.parked > 1000, c.parked
