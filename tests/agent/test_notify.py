from __future__ import annotations

import logging
from pathlib import Path

import pytest

from agent.notify import notify


def test_a_manager_that_is_not_there_is_said_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    with caplog.at_level(logging.WARNING):
        notify("READY=1")
    assert caplog.messages == ["the service manager cannot be told"]
