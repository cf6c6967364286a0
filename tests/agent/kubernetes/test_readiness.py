from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from agent.kubernetes.readiness import Readiness


def test_the_file_is_there_from_the_first_mark_to_the_end(tmp_path: Path) -> None:
    file = tmp_path / "ready"
    file.touch()  # by an earlier container of the same pod
    with ExitStack() as closing:
        readiness = Readiness(closing, file)
        assert not file.exists()
        readiness.mark()
        assert file.exists()
        readiness.mark()
    assert not file.exists()
