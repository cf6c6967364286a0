from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.runtime import CNI_SOCKET, Recorded, RuntimeDirectory
from trireme_py.errors import ConfigError

PATIENCE_S = 30.0
RECORD = Recorded("shop/db", "/run/netns/db", (4, 4026532000), 7, "00ff")


def test_what_is_written_can_be_read_by_the_next_agent(tmp_path: Path) -> None:
    first = RuntimeDirectory(tmp_path / "run")
    first.lock()
    assert first.read() == []
    first.write([RECORD])
    first.release()
    second = RuntimeDirectory(tmp_path / "run")
    second.lock()
    assert second.read() == [RECORD]
    assert second.remove()
    second.release()
    assert not (tmp_path / "run").exists()


def test_removing_takes_the_sockets_of_an_agent_that_was_killed(tmp_path: Path) -> None:
    runtime = RuntimeDirectory(tmp_path / "run")
    runtime.lock()
    for path in (runtime.observe_socket, runtime.status_socket, runtime.path / CNI_SOCKET):
        path.touch()
    assert runtime.remove()
    runtime.release()


def test_removing_leaves_what_is_not_ours(tmp_path: Path) -> None:
    """``trireme cleanup --runtime-directory`` may be given the folder with the keys by mistake."""
    (tmp_path / "psk.key").write_text("secret")
    runtime = RuntimeDirectory(tmp_path)
    runtime.lock()
    runtime.write([RECORD])
    (tmp_path / "last-good").mkdir()
    assert not runtime.remove()
    runtime.release()
    assert [path.name for path in tmp_path.iterdir()] == ["psk.key"]


def test_two_agents_are_kept_apart(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from agent.runtime import RuntimeDirectory;"
        "RuntimeDirectory(pathlib.Path(sys.argv[1])).lock(); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        runtime = RuntimeDirectory(tmp_path / "run")
        with pytest.raises(ConfigError, match=rf"an agent runs here \(process {other.pid}\)"):
            runtime.lock()
        other.stdin.close()
        other.wait()
        runtime.lock()
        runtime.release()


HOLD = (
    "import sys, pathlib; from agent.runtime import RuntimeDirectory;"
    "runtime = RuntimeDirectory(pathlib.Path(sys.argv[1])); runtime.lock(); print('locked', flush=True);"
    "sys.stdin.readline() and runtime.remove()"
)
"""Holds the lock until its input ends; a line in it removes the directory."""


@pytest.mark.parametrize("removed", [False, True])
def test_one_that_waits_gets_the_lock_that_others_see(
    tmp_path: Path, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.runtime.REMOVED_PATIENCE_S", 0.01)
    place, taken, stop = tmp_path / "run", threading.Event(), threading.Event()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        runtime = RuntimeDirectory(place)
        assert not runtime.lock_in_turn(taken.set, stop)
        assert not taken.is_set()
        other.communicate("remove\n" if removed else "")
        assert taken.wait(PATIENCE_S)
        with pytest.raises(ConfigError, match=rf"an agent runs here \(process {os.getpid()}\)"):
            RuntimeDirectory(place).lock()
        runtime.release()


def test_where_nobody_has_the_lock_it_is_taken_at_once(tmp_path: Path) -> None:
    runtime = RuntimeDirectory(tmp_path / "run")
    assert runtime.lock_in_turn(lambda: None, threading.Event())
    with pytest.raises(ConfigError):
        RuntimeDirectory(tmp_path / "run").lock()
    runtime.release()


def test_it_is_for_root_alone(tmp_path: Path) -> None:
    runtime = RuntimeDirectory(tmp_path / "run")
    runtime.lock()
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    runtime.write([RECORD])
    assert (tmp_path / "run" / "state.json").stat().st_mode & 0o777 == 0o600
    runtime.release()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(ConfigError, match=r"others may write.*spec\.runtimeDirectory"):
        RuntimeDirectory(tmp_path).lock()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{", '{"version": 2, "pods": []}', '{"version": 1, "pods": [{"pod": "a/b"}]}'])
def test_a_record_that_cannot_be_read_is_not_forgotten(tmp_path: Path, text: str) -> None:
    runtime = RuntimeDirectory(tmp_path)
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(ConfigError, match=r"state\.json.*remove it, then run: trireme cleanup --config DIR"):
        runtime.read()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/run.*spec\.runtimeDirectory"):
        RuntimeDirectory(tmp_path / "file" / "run").lock()


def test_the_lock_goes_with_its_process_not_with_its_file(tmp_path: Path) -> None:
    runtime = RuntimeDirectory(tmp_path)
    (tmp_path / "agent.lock").write_text("99999999\n")
    runtime.lock()
    assert (tmp_path / "agent.lock").read_text() == f"{os.getpid()}\n"
    runtime.release()
