"""Fail-open or fail-closed: the one place where it is decided.

Everything else asks :func:`verdict_for_failure` and knows neither mode. Fail-closed is the default; fail-open is an
explicit choice of the installation, for people who would rather be reachable than certain.
"""

from __future__ import annotations

from enum import Enum

from trireme_py.model import Verdict


class FailMode(Enum):
    """What the installation chose; the value is what stands in the configuration."""

    CLOSED = "closed"
    OPEN = "open"


class FailureCause(Enum):
    """Why a packet cannot be judged."""

    CRASH = "crash"
    """Judging this very packet raised an exception that nobody expected."""
    SHUTDOWN = "shutdown"
    """The agent is stopping, has stopped or died: nobody listens on the queue."""
    RULE_ERROR = "rule_error"
    """A rule that is not ours sent the packet here, from a hook that is not ours to judge."""


def verdict_for_failure(mode: FailMode, cause: FailureCause) -> Verdict:
    """Return DROP or PASS for a packet that cannot be judged because of ``cause``.

    Never ACCEPT: a connection that was let through without judgement stays unmarked, so that it is judged as soon as
    that is possible again. A packet that makes us fail is dropped in either mode: what arrives from the network must
    never open the door, and under CRASH the packet itself is the reason.
    """
    if mode is FailMode.OPEN and cause is not FailureCause.CRASH:
        return Verdict.PASS
    return Verdict.DROP
