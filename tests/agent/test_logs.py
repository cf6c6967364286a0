from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from agent import logs
from agent.logs import KeyValueFormatter, RateLimit, fields


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """A logger of our own: the root's handlers belong to pytest."""
    root = logging.getLogger()
    kept, level = list(root.handlers), root.level
    stream = io.StringIO()
    logs.set_up(stream)
    yield stream
    root.handlers[:] = kept
    root.setLevel(level)


def test_a_line_is_key_value_in_utc(stream: io.StringIO) -> None:
    logging.getLogger("agent.x").info("pod bound", extra=fields(pod="shop/db", netns="/run/netns/a b", n=3, t=0.5))
    line = stream.getvalue()
    assert line.startswith("time=20")
    assert 'Z level=info from=agent.x msg="pod bound" pod=shop/db netns="/run/netns/a b" n=3 t=0.500\n' in line


def test_bytes_never_reach_the_log(stream: io.StringIO) -> None:
    key = b"very secret key"
    logging.getLogger("x").warning("key", extra=fields(key=key, view=memoryview(key), array=bytearray(key)))
    assert "secret" not in stream.getvalue()
    assert "key=<15-bytes> " in stream.getvalue().replace('"', "")


def test_one_event_is_one_line_whatever_is_in_it(stream: io.StringIO) -> None:
    try:
        raise ValueError('first\nsecond "quoted"\x1b[31m')
    except ValueError:
        logging.getLogger("x").exception("went\nwrong")
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert r"\x1b[31m" in text


def test_a_chatty_site_is_held_back_and_says_how_much() -> None:
    now = 0.0
    limit = RateLimit(lambda: now)

    def record(level: int = logging.WARNING) -> logging.LogRecord:
        return logging.LogRecord("x", level, "file.py", 7, "full", None, None)

    assert sum(limit.filter(record()) for _ in range(100)) == logs.RATE_BURST
    assert limit.filter(record(logging.ERROR))
    now = logs.RATE_WINDOW_S
    late = record()
    assert limit.filter(late)
    assert f"suppressed={100 - logs.RATE_BURST}" in KeyValueFormatter().format(late)
