"""The runtime directory: what must outlive a killed agent, and what keeps two agents apart.

::

    agent.lock          locked by the agent that runs (flock); holds its process id
    state.json          the namespaces with rules of ours, each with its epoch and the fingerprint of its policy
    node                the path of the node's own namespace, which holds rules of ours too
    last-good/          the last good text of each file of the configuration folder
    observe.sock        the observe socket
    cluster-node.pem    in a cluster: this node's key and certificate
    installation        in a cluster: whether agents are still being installed
    cni.sock            in a cluster: the CNI plugin's
    sandboxes.json      in a cluster: what the CNI plugin told of pods

Everything is for root alone: the directory is made with mode 0700, and one that others may write is refused.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from agent.logs import fields
from trireme_py.errors import ConfigError, KernelError

log = logging.getLogger(__name__)

STATE_VERSION: Final = 1
LOCK: Final = "agent.lock"
NODE: Final = "node"
NODE_KEYS: Final = "cluster-node.pem"
INSTALLATION: Final = "installation"
CNI_SOCKET: Final = "cni.sock"
SANDBOXES: Final = "sandboxes.json"
REMOVED_PATIENCE_S: Final = 1.0
_FORGET: Final = "remove it, then run: trireme cleanup --config DIR"
"""Without the record, the folder is what says where rules of ours may be."""


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
    def ours(self) -> bool:
        """Whether this process has it."""
        return self._lock is not None

    @property
    def observe_socket(self) -> Path:
        return self.path / "observe.sock"

    @property
    def status_socket(self) -> Path:
        return self.path / "status.sock"

    @property
    def last_good(self) -> Path:
        return self.path / "last-good"

    @property
    def _state(self) -> Path:
        return self.path / "state.json"

    @property
    def used(self) -> bool:
        """Whether an agent has left anything here."""
        return any(map(os.path.lexists, (self._state, self.path / NODE, self.path / LOCK, self.last_good)))

    def lock(self) -> None:
        """Take the directory for this process. Raises ConfigError if an agent runs, or it cannot be made or trusted."""
        if (pid := self._try_lock()) is not None:
            raise ConfigError(
                f"runtime directory {self.path}: an agent runs here (process {pid}); stop it with: kill {pid}"
            )

    def lock_in_turn(self, taken: Callable[[], None], stop: threading.Event) -> bool:
        """Take the directory now, or when the agent that has it lets go of it; tell whether that was now.

        Else a thread waits, and calls ``taken`` when it has it; setting ``stop`` ends it, or the process does.
        Raises ConfigError if it cannot be made or trusted.
        """
        if (pid := self._try_lock()) is None:
            return True
        log.info("an agent runs here; taking over when it ends", extra=fields(process=pid))

        def wait() -> None:
            while not stop.is_set():
                try:
                    descriptor = self._open_lock()
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                    if self._is_the_lock(descriptor):
                        self._keep(descriptor)
                        taken()
                        return
                    # Who had it has removed it: the installation ends here, and we are to hear of it any moment.
                    os.close(descriptor)
                except (OSError, ConfigError) as error:
                    log.error("the turn cannot be waited for", extra=fields(error=error))
                stop.wait(REMOVED_PATIENCE_S)

        threading.Thread(target=wait, name="turn", daemon=True).start()
        return False

    def _try_lock(self) -> str | None:
        """Take the lock; return who has it if somebody has."""
        descriptor = self._open_lock()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            return pid
        self._keep(descriptor)
        return None

    def _open_lock(self) -> int:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_owner()
            return os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"runtime directory {self.path}: {error.strerror}; run as root or set spec.runtimeDirectory"
            ) from error

    def _is_the_lock(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path / LOCK))
        except FileNotFoundError:
            return False

    def _keep(self, descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock = descriptor

    def _check_owner(self) -> None:
        """Refuse a directory in which somebody else could put a record, or a link where a file of ours will be."""
        status = self.path.stat()
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.S_IMODE(status.st_mode)
            raise ConfigError(
                f"runtime directory {self.path}: others may write there (user {status.st_uid}, mode {mode:04o}); "
                "set spec.runtimeDirectory to a directory of root's own"
            )

    def read(self) -> list[Recorded]:
        """Return what an agent recorded; nothing if there is no record.

        Raises ConfigError if there is one that cannot be read: forgetting it could leave rules behind for ever.
        """
        try:
            state = msgspec.json.decode(self._state.read_bytes(), type=_State)
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(f"{self._state}: {error}; {_FORGET}") from error
        if state.version != STATE_VERSION:
            raise ConfigError(f"{self._state}: version {state.version} is not {STATE_VERSION}; {_FORGET}")
        return state.pods

    def write(self, pods: Iterable[Recorded]) -> None:
        """Replace the record as a whole. Raises KernelError if it cannot be written."""
        fresh = self._state.with_suffix(".new")
        try:
            with open(fresh, "wb", opener=_for_root_alone) as stream:
                stream.write(msgspec.json.encode(_State(STATE_VERSION, list(pods))))
            fresh.replace(self._state)
        except OSError as error:
            raise KernelError(f"{self._state}: {error.strerror}; free some space in {self.path}") from error

    def write_node(self, namespace: Path) -> None:
        """Record the node's own namespace, before any rule is laid there. Raises KernelError."""
        try:
            with open(self.path / NODE, "w", encoding="utf-8", opener=_for_root_alone) as stream:
                stream.write(str(namespace))
        except OSError as error:
            raise KernelError(f"{self.path / NODE}: {error.strerror}; free some space in {self.path}") from error

    def read_node(self) -> Path | None:
        """Return what :meth:`write_node` recorded last, None if nothing. Raises ConfigError."""
        try:
            return Path((self.path / NODE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.path / NODE}: {error}; {_FORGET}") from error

    def remove(self) -> bool:
        """Remove what is ours, and the directory if nothing else is in it; tell whether it is gone.

        The caller holds the lock. What is not ours stays: the path may be a mistake, of the folder with the keys, say.
        """
        shutil.rmtree(self.last_good, ignore_errors=True)
        replaced = (self._state, *(self.path / name for name in (NODE_KEYS, INSTALLATION, SANDBOXES)))
        fresh = (path.with_suffix(".new") for path in replaced)
        for path in (
            *fresh,
            *replaced,
            self.path / NODE,
            self.observe_socket,
            self.status_socket,
            self.path / CNI_SOCKET,
            self.path / LOCK,
        ):
            path.unlink(missing_ok=True)
        try:
            self.path.rmdir()
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Let the directory go, with what is in it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def no_answer(what: str, path: Path, error: OSError, as_root: str) -> KernelError:
    """Say why nobody answers on a socket in a runtime directory. ``as_root``: the command that may ask."""
    if isinstance(error, PermissionError):
        return KernelError(f"{what} {path}: is for root alone; run: {as_root}")
    return KernelError(
        f"{what} {path}: {error.strerror or error}; is the agent running? "
        "Start it with: trireme agent --config DIR; or name its spec.runtimeDirectory: --runtime-directory DIR"
    )


def _for_root_alone(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
