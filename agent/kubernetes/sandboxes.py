"""Which network namespace belongs to which pod of this node, and how sure that is.

Two sources: the CNI plugin tells of each pod as it starts (:mod:`agent.kubernetes.cni`), and pods that were there
before are found by their addresses (:mod:`agent.kubernetes.discovery`). What the plugin told outlives the agent in a
file: a pod may have no address in the API yet when the agent starts again, and could not be found without it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from agent.kubernetes.starts import Sandbox
from agent.logs import fields
from agent.runtime import SANDBOXES
from agent.source import inode_of
from policy.objects import Pod
from trireme_py.model import Address

log = logging.getLogger(__name__)

RECORD: Final = SANDBOXES
"""In the runtime directory."""
MIRROR_ANNOTATION: Final = "kubernetes.io/config.mirror"
"""On the API's copy of a static pod: the uid that the kubelet, and so the runtime, knows the pod by."""

_NS_GET_NSTYPE: Final = 0xB703  # include/uapi/linux/nsfs.h: _IO(0xb7, 0x3)
_CLONE_NEWNET: Final = 0x40000000  # include/uapi/linux/sched.h
_OWN: Final = "/proc/self/ns/net"

Inode = tuple[int, int]
"""Device and inode number of a namespace: its identity while it lives."""


class _Known(msgspec.Struct, frozen=True, rename="camel"):
    """A sandbox that the plugin told of, as it is written down."""

    pod: str
    uid: str
    container: str
    network_namespace: str
    inode: Inode
    addresses: tuple[bytes, ...]


class Sandboxes:
    """Implements :class:`agent.kubernetes.starts.Locator`. Any thread may call any method."""

    def __init__(self, record: Path) -> None:
        self._record = record
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        """By container, oldest first."""
        self._starting: dict[str, Path] = {}
        """By container: namespaces in which nothing has run yet. An agent that is started anew knows of none."""
        self._found: Mapping[tuple[str, str], tuple[Path, Inode]] = {}
        """By ``namespace/name`` and uid."""

    def restore(self) -> None:
        """Take over what an earlier agent was told, as far as it is still so."""
        try:
            known = msgspec.json.decode(self._record.read_bytes(), type=list[_Known])
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            # No loss but of time: what is in it can be found by addresses, as for pods that never were in it.
            log.warning("record of sandboxes cannot be read", extra=fields(file=self._record, error=error))
            return
        with self._lock:
            self._known = {one.container: one for one in known if _is_there(one)}

    def add(self, sandbox: Sandbox) -> None:
        """Remember ``sandbox``; its namespace must be there, or it is not remembered."""
        inode = network_namespace(sandbox.network_namespace)
        if inode is None:
            return
        path = str(sandbox.network_namespace)
        with self._lock:
            self._known.pop(sandbox.container, None)
            self._known[sandbox.container] = _Known(
                sandbox.pod, sandbox.uid, sandbox.container, path, inode, sandbox.addresses
            )
            self._write()
            if sandbox.starting:
                self._starting[sandbox.container] = sandbox.network_namespace

    def has_started(self, container: str) -> None:
        """From now on something may run in a sandbox."""
        with self._lock:
            self._starting.pop(container, None)

    def addresses_at(self, path: Path) -> tuple[Address, ...]:
        with self._lock:
            told = [one for one in self._known.values() if one.network_namespace == str(path)]
        return next((one.addresses for one in reversed(told) if _is_there(one)), ())

    def is_starting(self, path: Path) -> bool:
        with self._lock:
            return path in self._starting.values()

    def remove(self, container: str) -> None:
        """Forget a sandbox. One that is not known is passed over."""
        with self._lock:
            self._starting.pop(container, None)
            if self._known.pop(container, None) is not None:
                self._write()

    def locate(self, pod: Pod) -> Path | None:
        name = f"{pod.namespace}/{pod.name}"
        with self._lock:
            told = [one for one in self._known.values() if one.pod == name and is_of(pod, one.uid)]
            found = self._found.get((name, pod.uid))
        # The newest first: the sandbox of a pod can be made anew before the runtime has removed the old one.
        for one in reversed(told):
            if _is_there(one):
                return Path(one.network_namespace)
        if found is not None and inode_of(found[0]) == found[1]:
            return found[0]
        return None

    def told(self) -> dict[Inode, str]:
        """Return the namespaces that the plugin told of and that are there, each with its pod (``namespace/name``)."""
        with self._lock:
            # The kernel uses the numbers of namespaces again: one that is gone must not stand for another.
            self._known = {one.container: one for one in self._known.values() if _is_there(one)}
            return {one.inode: one.pod for one in self._known.values()}

    def replace_found(self, found: Mapping[tuple[str, str], tuple[Path, Inode]]) -> None:
        """Take over what discovery found: by pod (``namespace/name``) and uid, the file and what it pinned."""
        with self._lock:
            self._found = dict(found)

    def _write(self) -> None:
        fresh = self._record.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(list(self._known.values())))
            fresh.replace(self._record)
        except OSError as error:
            log.warning("record of sandboxes cannot be written", extra=fields(file=self._record, error=error))


def _is_there(one: _Known) -> bool:
    return inode_of(Path(one.network_namespace)) == one.inode


def is_of(pod: Pod, uid: str) -> bool:
    """Tell whether the pod that the runtime calls ``uid`` is ``pod`` and not an earlier one of its name.

    A runtime that does not tell (an empty ``uid``) is believed by the name alone.
    """
    return uid in ("", pod.uid, pod.annotations.get(MIRROR_ANNOTATION, pod.uid))


def network_namespace(path: str | os.PathLike[str]) -> Inode | None:
    """Return what identifies the network namespace that ``path`` pins.

    None if there is no file, or one of another kind, or it is the agent's own namespace, which is the node's.
    """
    try:
        own, status = os.stat(_OWN), os.stat(path)
        # All namespaces, and nothing else, live on one device: no other file is opened.
        if status.st_dev != own.st_dev or status.st_ino == own.st_ino:
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return (status.st_dev, status.st_ino) if fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == _CLONE_NEWNET else None
        finally:
            os.close(descriptor)
    except (OSError, ValueError):  # an octet of zero in the name is a ValueError
        return None
