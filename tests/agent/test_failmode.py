from __future__ import annotations

import pytest

from agent.failmode import FailMode, FailureCause, verdict_for_failure
from trireme_py.model import Verdict

MATRIX = {
    (FailMode.CLOSED, FailureCause.CRASH): Verdict.DROP,
    (FailMode.CLOSED, FailureCause.SHUTDOWN): Verdict.DROP,
    (FailMode.CLOSED, FailureCause.RULE_ERROR): Verdict.DROP,
    (FailMode.OPEN, FailureCause.CRASH): Verdict.DROP,
    (FailMode.OPEN, FailureCause.SHUTDOWN): Verdict.PASS,
    (FailMode.OPEN, FailureCause.RULE_ERROR): Verdict.PASS,
}


def test_the_matrix_is_complete() -> None:
    assert set(MATRIX) == {(mode, cause) for mode in FailMode for cause in FailureCause}


@pytest.mark.parametrize(("mode", "cause"), MATRIX)
def test_each_failure_has_its_verdict(mode: FailMode, cause: FailureCause) -> None:
    assert verdict_for_failure(mode, cause) is MATRIX[mode, cause]
