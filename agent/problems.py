"""Problems in the log: each once when it appears and once when it is gone, however often somebody looks."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from agent.logs import fields
from policy.files import Problem

log = logging.getLogger(__name__)


class ProblemLog:
    """Remembers what it has said."""

    def __init__(self) -> None:
        self._said: frozenset[Problem] = frozenset()

    def take(self, problems: Iterable[Problem]) -> None:
        """Say what is new among the ``problems`` there are now, and what is there no more."""
        now = frozenset(problems)
        if now == self._said:
            return
        for problem in sorted(now - self._said):
            text = f"{problem.message}; {problem.hint}" if problem.hint else problem.message
            log.error("config problem", extra=fields(at=_place(problem), field=problem.field, problem=text))
        for problem in sorted(self._said - now):
            log.info("config problem solved", extra=fields(at=_place(problem), field=problem.field))
        self._said = now


def _place(problem: Problem) -> str:
    return f"{problem.file}:{problem.line}" if problem.line else problem.file
