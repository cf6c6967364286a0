"""The runtime directory: what must outlive a killed agent, and what keeps two agents apart.

::

    agent.lock      locked by the agent that runs (flock); holds its process id
    state.json      the namespaces with rules of ours, each with its epoch and the fingerprint of its policy
    last-good/      the last good text of each file of the configuration folder
    observe.sock    the observe socket

Everything is for root alone (mode 0700).
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from trireme_py.errors import ConfigError, KernelError

STATE_VERSION: Final = 1


class Recorded(msgspec.Struct, frozen=True, rename="camel"):
    """One namespace that holds rules of ours."""

    pod: str
    network_namespace: str
    """Path of the file that pins it."""
    inode: tuple[int, int]
    """Device and inode of that file: another namespace under the same name has no state of ours."""
    epoch: int
    fingerprint: str
    """Of the policy that was in force under that epoch."""


class _State(msgspec.Struct, frozen=True, rename="camel"):
    version: int
    pods: list[Recorded]


class RuntimeDirectory:
    """The agent's runtime directory, made on first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def observe_socket(self) -> Path:
        return self.path / "observe.sock"

    @property
    def last_good(self) -> Path:
        return self.path / "last-good"

    @property
    def _state(self) -> Path:
        return self.path / "state.json"

    def lock(self) -> None:
        """Take the directory for this process. Raises ConfigError if an agent runs, or it cannot be made."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"runtime directory {self.path}: {error.strerror}; run as root or set spec.runtimeDirectory"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise ConfigError(
                f"runtime directory {self.path}: an agent runs here (process {pid}); stop it with: kill {pid}"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock = descriptor

    def read(self) -> list[Recorded]:
        """Return what an agent recorded; nothing if there is no record.

        Raises ConfigError if there is one that cannot be read: forgetting it could leave rules behind for ever.
        """
        try:
            state = msgspec.json.decode(self._state.read_bytes(), type=_State)
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(f"{self._state}: {error}; remove it, then clean each namespace by name") from error
        if state.version != STATE_VERSION:
            raise ConfigError(f"{self._state}: version {state.version} is not {STATE_VERSION}; run: trireme cleanup")
        return state.pods

    def write(self, pods: Iterable[Recorded]) -> None:
        """Replace the record as a whole. Raises KernelError if it cannot be written."""
        fresh = self._state.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(_State(STATE_VERSION, list(pods))))
            fresh.replace(self._state)
        except OSError as error:
            raise KernelError(f"{self._state}: {error.strerror}; free some space in {self.path}") from error

    def remove(self) -> None:
        """Remove the directory and all in it; the caller holds the lock."""
        shutil.rmtree(self.path, ignore_errors=True)

    def release(self) -> None:
        """Let the directory go, with what is in it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
