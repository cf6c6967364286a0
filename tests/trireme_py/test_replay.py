"""The window of counters: each once, the old ones never."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trireme_py._fastpath import Session
from trireme_py.replay import WINDOW, PlainCounter, ReplayWindow, Window

Make = Callable[[], Window]


@pytest.fixture(params=[ReplayWindow, lambda: Session(1)], ids=["python", "c"])
def make(request: pytest.FixtureRequest) -> Make:
    """The window, as Python has it alone and as it shares it with the engine in C."""
    made: Make = request.param
    return made


def offer(window: Window, counter: int) -> bool:
    fresh = window.is_fresh(counter)
    assert window.commit(counter) == fresh
    assert not window.commit(counter)
    return fresh


def test_each_number_is_given_away_once() -> None:
    for counter in (PlainCounter(), Session(1)):
        assert [counter.take() for _ in range(3)] == [1, 2, 3]


def test_counters_begin_at_one(make: Make) -> None:
    assert not make().is_fresh(0)
    assert make().is_fresh(1)


def test_asking_remembers_nothing(make: Make) -> None:
    window = make()
    assert window.is_fresh(7)
    assert window.is_fresh(7)
    window.commit(7)
    assert not window.is_fresh(7)


def test_the_edge_of_the_window(make: Make) -> None:
    window = make()
    window.commit(WINDOW + 10)
    assert not window.is_fresh(10)  # as far behind as the window is long
    assert window.is_fresh(11)
    window.commit(11)
    assert not window.is_fresh(11)
    window.commit(WINDOW + 11)
    assert not window.is_fresh(11)
    assert window.is_fresh(12)


def test_a_jump_forgets_nothing_that_could_be_taken_again(make: Make) -> None:
    window = make()
    for counter in (1, 2, 3):
        window.commit(counter)
    far = (1 << 64) - 1
    window.commit(far)
    for counter in (1, 2, 3, far):
        assert not window.is_fresh(counter)
    assert window.is_fresh(far - 1)


@given(st.lists(st.one_of(st.integers(0, 40), st.integers(0, 5_000), st.integers(0, (1 << 64) - 1)), max_size=200))
def test_agrees_with_a_set_of_all_that_was_seen(counters: list[int]) -> None:
    window, session, seen, highest = ReplayWindow(), Session(1), set[int](), 0
    for counter in counters:
        expected = counter > 0 and counter not in seen and counter > highest - WINDOW
        assert offer(window, counter) == offer(session, counter) == expected
        if expected:
            seen.add(counter)
            highest = max(highest, counter)


def test_every_permutation_within_the_window_arrives_once(make: Make) -> None:
    rng = random.Random(6479)
    window = make()
    for block in range(8):
        counters = list(range(1 + block * (WINDOW // 2), 1 + (block + 1) * (WINDOW // 2)))
        rng.shuffle(counters)
        assert all(offer(window, counter) for counter in counters)
        assert not any(offer(window, counter) for counter in counters)
