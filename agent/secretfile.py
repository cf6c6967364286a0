"""Files that hold a secret: written once and never over another, read only where nobody else could have."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from trireme_py.errors import CredentialError

MAX_FILE: Final = 64 * 1024
"""No key, certificate or bundle of ours comes near; a wrong path (a device, a log) must not be read to its end."""


def write_secret(path: Path, data: bytes) -> None:
    """Create ``path`` with mode 0600 and ``data`` in it, on disk when this returns.

    :raises CredentialError: it exists already, or cannot be written
    """
    _create(path, data, 0o600, "a key is never overwritten: move it away, or choose another name")


def write_new(path: Path, data: bytes) -> None:
    """Create ``path`` with mode 0644; like :func:`write_secret`, never over another file."""
    _create(path, data, 0o644, "move it away, or choose another name")


def _create(path: Path, data: bytes, mode: int, advice: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise CredentialError(f"{path}: exists already; {advice}") from None
    except OSError as error:
        raise CredentialError(f"{path}: cannot be created: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)  # half a key must not look like one
        raise CredentialError(f"{path}: cannot be written: {error.strerror}") from error


def make_private_directory(path: Path) -> None:
    """Create ``path`` for the owner alone; one that is there already stays as it is.

    :raises CredentialError: it cannot be created
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CredentialError(f"{path}: cannot be created: {error.strerror}") from error


def read_public(path: Path, advice: str) -> bytes:
    """Read a small file that need not be secret. ``advice``: the command that makes it.

    :raises CredentialError: it is missing, no file, or too large
    """
    return _read(path, f"run: {advice}")[1]


def read_secret(path: Path, advice: str) -> bytes:
    """Read a small file that only its owner may read. ``advice``: what to do where it is missing.

    A process that is not root may be let in by its group, if root owns the file: so Kubernetes mounts a Secret where
    ``fsGroup`` is set.

    :raises CredentialError: it is missing, no file, too large, or open to others than root and us
    """
    status, data = _read(path, advice)
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) and not _for_our_group(status):
        mode = stat.S_IMODE(status.st_mode)
        mend = "set defaultMode: 0400 on the volume" if is_mounted(path) else f"run: chmod 600 {path}"
        raise CredentialError(f"{path}: mode {mode:04o} lets others at a secret; {mend}")
    if status.st_uid not in (0, os.geteuid()):
        raise CredentialError(f"{path}: belongs to user {status.st_uid}, who can change it; run: chown root {path}")
    return data


def _for_our_group(status: os.stat_result) -> bool:
    """Tell whether root lets our group read, and nobody else in."""
    only_reading = not status.st_mode & (stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO)
    ours = status.st_gid in (os.getegid(), *os.getgroups())
    return os.geteuid() != 0 and status.st_uid == 0 and only_reading and ours


def is_mounted(path: Path) -> bool:
    """Tell whether the kubelet put the file there: its names are links into a folder that it swaps."""
    return (path.parent / "..data").is_symlink()


def _read(path: Path, advice: str) -> tuple[os.stat_result, bytes]:
    try:
        # Not blocking: a named pipe in the place of a file must not hold the agent up.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise CredentialError(f"{path}: no such file; {advice}") from None
    except OSError as error:
        raise CredentialError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)  # of what was opened, not of what the name leads to by now
        if not stat.S_ISREG(status.st_mode):
            raise CredentialError(f"{path}: is not a file; {advice}")
        if status.st_size > MAX_FILE:
            raise CredentialError(f"{path}: has {status.st_size} bytes, too large for a key or certificate")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return status, stream.read(MAX_FILE)
    except OSError as error:
        raise CredentialError(f"{path}: cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
