"""Logging: one line an event, ``key=value``, on standard error.

A field that is ``bytes`` is written as its length only. Keys, tokens and packets are bytes everywhere in this project,
so none of them can reach a log by accident; what people should read is formatted by whoever logs it.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TextIO

_PLAIN: Final = re.compile(r"[A-Za-z0-9_.:/@%+,\[\]-]+")

RATE_BURST: Final = 20
"""Lines of one call site let through per window: enough to see a pattern, too few to fill a disk."""
RATE_WINDOW_S: Final = 10.0


def fields(**values: object) -> dict[str, object]:
    """Wrap the fields of one line: ``log.info("pod bound", extra=fields(pod=name))``."""
    return {"fields": values}


def _value(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)}-bytes>"
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    # Any other control character could drive the terminal of whoever reads the log.
    return '"' + "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in escaped) + '"'


class KeyValueFormatter(logging.Formatter):
    """Formats a record as ``time=… level=… from=… msg="…" key=value …`` in UTC, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        pairs: list[tuple[str, object]] = [
            ("time", moment),
            ("level", record.levelname.lower()),
            ("from", record.name),
            ("msg", record.getMessage()),
        ]
        extra = record.__dict__.get("fields")
        if isinstance(extra, dict):
            pairs += extra.items()
        if record.exc_info:
            pairs.append(("traceback", self.formatException(record.exc_info)))
        return " ".join(f"{key}={_value(value)}" for key, value in pairs)


class RateLimit(logging.Filter):
    """Lets at most :data:`RATE_BURST` lines of one call site through in :data:`RATE_WINDOW_S` seconds.

    What was held back is said by the site's next line as ``suppressed=N``. Errors always pass.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._sites: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        site = record.pathname, record.lineno
        now = self._clock()
        began, count = self._sites.get(site, (now, 0))
        if now - began >= RATE_WINDOW_S:
            if count > RATE_BURST:
                previous = record.__dict__.get("fields") or {}
                record.__dict__["fields"] = {**previous, "suppressed": count - RATE_BURST}
            began, count = now, 0
        self._sites[site] = began, count + 1
        return count < RATE_BURST


def set_up(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send every log line of the process to ``stream`` (default: standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    handler.addFilter(RateLimit())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # watchfiles logs each batch of changes at INFO; we say ourselves what changed.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
