"""Chores: each at its time, one that fails hinders no other, and stopping ends the thread."""

from __future__ import annotations

import logging
import threading

import pytest

from agent.kubernetes.chores import Chores
from trireme_py.errors import CredentialError


class Chore:
    """Returns what it is told to, and counts."""

    def __init__(self, *answers: float | Exception | None) -> None:
        self.answers = list(answers)
        self.steps = 0

    def step(self) -> float | None:
        self.steps += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def run(chores: Chores, clock: list[float], until: float) -> None:
    while clock[0] < until:
        chores.run_due()
        clock[0] += 1


def test_each_chore_runs_at_its_time() -> None:
    clock = [0.0]
    often, seldom, once = Chore(2), Chore(5), Chore(None)
    run(Chores([often, seldom, once], lambda: clock[0]), clock, 10)
    assert (often.steps, seldom.steps, once.steps) == (5, 2, 1)


@pytest.mark.parametrize("error", [OSError("no API server"), CredentialError("no key")])
def test_one_that_fails_hinders_no_other_and_is_tried_again(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    clock = [0.0]
    failing, other = Chore(error, 1000), Chore(10)
    with caplog.at_level(logging.ERROR):
        run(Chores([failing, other], lambda: clock[0]), clock, 61)
    assert (failing.steps, other.steps) == (2, 7)
    assert [str(error) in str(record.__dict__) for record in caplog.records] == [True]


def test_the_thread_runs_chores_and_ends_when_told() -> None:
    ran = threading.Event()

    class Telling(Chore):
        def step(self) -> float | None:
            ran.set()
            return 3600

    chores = Chores([Telling(None)])
    chores.start()
    assert ran.wait(30)
    chores.stop()  # returns, although the next step is an hour away


def test_the_thread_ends_by_itself_when_nothing_is_left() -> None:
    chores = Chores([Chore(None)])
    chores.start()
    chores.stop()
