"""Network namespaces: make one, name it, remove it, and run code inside one.

A namespace belongs to a thread, not to a process (setns(2)). Code runs inside a namespace on a thread made for that
one call, which then ends: no thread that anybody else uses ever changes its namespace, and nothing has to find its way
back. Sockets made inside stay in their namespace for life and keep it alive; so do child processes started inside.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from trireme_py.errors import KernelError

RUN_DIR: Final = Path("/run/netns")
"""Where iproute2, CNI plugins and container runtimes pin namespaces by name."""

_CLONE_NEWNET: Final = 0x40000000  # include/uapi/linux/sched.h
_MS_BIND: Final = 4096  # include/uapi/linux/mount.h
_MNT_DETACH: Final = 2  # include/linux/fs.h
_LIBC: Final = ctypes.CDLL(None, use_errno=True)  # os.setns and os.unshare came with Python 3.12

T = TypeVar("T")


def namespace_path(namespace: str | os.PathLike[str]) -> Path:
    """Return the file that pins ``namespace``: itself if it is a path, else the file of that name in ``RUN_DIR``."""
    text = os.fspath(namespace)
    return Path(text) if "/" in text else RUN_DIR / text


def enter(namespace: str | os.PathLike[str]) -> None:
    """Move the calling thread, and no other, into ``namespace`` for good. Raises :class:`KernelError`."""
    path = namespace_path(namespace)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(
            f"network namespace {path}: {error.strerror}; 'ip netns list' shows those with names"
        ) from error
    try:
        if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise KernelError(f"network namespace {path}: setns: {reason} (needs CAP_SYS_ADMIN)")
    finally:
        os.close(descriptor)


def resident(namespace: str | os.PathLike[str]) -> ThreadPoolExecutor:
    """Return an executor with one thread, which lives inside ``namespace``. The caller shuts it down.

    Raises :class:`KernelError` if the namespace cannot be entered.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"netns-{namespace_path(namespace).name}")
    try:
        pool.submit(enter, namespace).result()
    except BaseException:
        pool.shutdown()
        raise
    return pool


def run_inside(namespace: str | os.PathLike[str], function: Callable[[], T]) -> T:
    """Call ``function`` on a thread of its own inside ``namespace``; return what it returns, raise what it raises.

    Raises :class:`KernelError` if the namespace cannot be entered; ``function`` has then not been called.
    """
    with resident(namespace) as pool:
        return pool.submit(function).result()


def run_inside_new(function: Callable[[], T]) -> T:
    """Call ``function`` inside a new namespace without a name, which is gone when the call is over."""

    def unshare_and_call() -> T:
        _unshare("scratch")
        return function()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="netns-scratch") as pool:
        return pool.submit(unshare_and_call).result()


def create(namespace: str | os.PathLike[str]) -> Path:
    """Make a new network namespace, pinned by name like ``ip netns add`` does; return its path.

    Raises :class:`KernelError` if it is there already or may not be made; nothing is left behind then.
    """
    path = namespace_path(namespace)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except OSError as error:
        raise KernelError(f"network namespace {path}: cannot be created: {error.strerror}") from error

    def unshare_and_pin() -> None:
        _unshare(path)
        if _LIBC.mount(b"/proc/thread-self/ns/net", os.fsencode(path), b"none", _MS_BIND, None) != 0:
            raise KernelError(f"network namespace {path}: mount: {os.strerror(ctypes.get_errno())}")

    try:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"netns-{path.name}") as pool:
            pool.submit(unshare_and_pin).result()
    except KernelError:
        path.unlink(missing_ok=True)
        raise
    return path


def remove(namespace: str | os.PathLike[str]) -> None:
    """Unpin a namespace and remove its name; nothing happens if it is not there.

    The namespace itself goes when the last socket and the last process inside it are gone.
    """
    path = namespace_path(namespace)
    _LIBC.umount2(os.fsencode(path), _MNT_DETACH)  # fails if a half-made one was never mounted: unlink tells
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise KernelError(f"network namespace {path}: cannot be removed: {error.strerror}") from error


def exists(namespace: str | os.PathLike[str]) -> bool:
    """Tell whether there is a network namespace at this name or path.

    Where one is removed, the file that it was mounted on stays for a moment.
    """
    try:
        return namespace_path(namespace).stat().st_dev == os.stat("/proc/self/ns/net").st_dev
    except OSError:
        return False


def _unshare(what: object) -> None:
    if _LIBC.unshare(_CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise KernelError(f"network namespace {what}: unshare: {reason} (needs CAP_SYS_ADMIN)")


def mount_tmpfs(path: str | os.PathLike[str]) -> None:
    """Mount an empty tmpfs at ``path``, in this process's mount namespace. Raises :class:`KernelError`."""
    if _LIBC.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, None) != 0:
        raise KernelError(f"mount tmpfs on {os.fspath(path)}: {os.strerror(ctypes.get_errno())}")
