from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trireme_py.ratelimit import TokenBucket

SECOND = 1_000_000_000


def test_burst_at_once_and_the_rate_in_the_long_run() -> None:
    bucket = TokenBucket(per_second=10, burst=5)
    assert [bucket.take(0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert not bucket.take(SECOND // 10 - 1)
    assert bucket.take(SECOND // 10)
    assert not bucket.take(SECOND // 10)


def test_idle_time_saves_up_to_the_burst_and_no_more() -> None:
    bucket = TokenBucket(per_second=10, burst=3)
    assert all(bucket.take(0) for _ in range(3))
    assert [bucket.take(3600 * SECOND) for _ in range(4)] == [True, True, True, False]


def test_clock_that_goes_back_gains_nothing() -> None:
    bucket = TokenBucket(per_second=1_000, burst=1)
    assert bucket.take(10 * SECOND)
    assert not bucket.take(5 * SECOND)
    assert not bucket.take(10 * SECOND)
    assert bucket.take(10 * SECOND + SECOND // 1_000)


@given(st.integers(1, 50), st.integers(1, 20), st.lists(st.integers(0, SECOND), max_size=60))
def test_never_more_than_burst_and_rate_together(per_second: int, burst: int, steps: list[int]) -> None:
    bucket = TokenBucket(per_second, burst)
    now = taken = 0
    for step in steps:
        now += step
        taken += bucket.take(now)
        assert taken <= burst + now * per_second / SECOND
