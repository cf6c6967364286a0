"""Leaving a machine: every rule and file of the agent's is removed, and the pods are as open as before it came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agent import netns
from agent.failmode import FailMode
from agent.kubernetes.cni_install import CniInstallation
from agent.kubernetes.config import CniConfig
from agent.runtime import CNI_SOCKET, RuntimeDirectory
from agent.source import inode_of
from agent.wanted import OWN_NAMESPACE
from trireme_py.errors import ConfigError, KernelError, TriremeError


def leave(
    runtime: RuntimeDirectory, cni: CniConfig | None, say: Callable[[str], None], also: Iterable[str] = ()
) -> list[str]:
    """Remove everything; return what went wrong, a text each. The caller holds the runtime directory's lock.

    ``cni``: where the CNI chain is if not at its usual place; ``say`` is told of what was done; ``also``: namespaces
    to clean beside those in the record. The record stays where something went wrong: it says what is left.

    Raises ConfigError if the record cannot be read.
    """
    namespaces = {recorded.network_namespace for recorded in runtime.read()}.union(also)
    if (node := runtime.read_node()) is not None:
        namespaces.add(str(node))
    failed = []
    # First, so that no pod starts here that waits for an agent that is gone.
    try:
        cni_installation(runtime, cni).remove()
    except KernelError as error:
        failed.append(str(error))
    failed += [text for namespace in sorted(namespaces) if (text := _clean(Path(namespace), say))]
    if not failed:
        runtime.remove()
    return failed


@contextmanager
def saying_what_stays(runtime: RuntimeDirectory, folder: Path, fail_mode: FailMode) -> Iterator[None]:
    """Have an error that ends the agent say that pods stay under its rules, and how they are opened."""
    try:
        yield
    except TriremeError as error:
        if text := _what_stays(runtime, folder, fail_mode):
            raise TriremeError(f"{error}\n{text}") from error
        raise
    except Exception as error:
        if text := _what_stays(runtime, folder, fail_mode):
            error.add_note(text)
        raise


def _what_stays(runtime: RuntimeDirectory, folder: Path, fail_mode: FailMode) -> str:
    if not runtime.ours:
        return ""  # another agent runs
    try:
        recorded = runtime.read()
    except ConfigError:
        return ""  # which the start says itself, when it comes to it
    pods = sum(inode_of(Path(one.network_namespace)) == one.inode for one in recorded)
    if not pods:
        return ""
    what = "pass unjudged" if fail_mode is FailMode.OPEN else "wait for an agent"
    return (
        f"rules stay in place: new connections of {pods} pod{'s'[: pods != 1]} {what}; "
        f"to remove the rules, run: trireme cleanup --config {folder}"
    )


def cni_installation(runtime: RuntimeDirectory, cni: CniConfig | None) -> CniInstallation:
    """Return what installs the CNI plugin that asks the agent of this runtime directory, and removes it."""
    cni = cni or CniConfig()
    return CniInstallation(
        runtime.path / CNI_SOCKET, cni.timeout_s, configuration=cni.configuration, binaries=cni.binaries
    )


def _clean(namespace: Path, say: Callable[[str], None]) -> str:
    """Remove our rules from ``namespace``; return what went wrong, or nothing."""
    from agent.backends import removers  # noqa: PLC0415 - commands load in no time without it

    if not netns.exists(namespace):
        return ""  # the rules went with it
    try:
        for backend in removers():
            backend.remove(namespace)
    except TriremeError as error:
        if not netns.exists(namespace):
            return ""  # a pod that ended meanwhile
        return f"{namespace}: {error}; correct this and run trireme cleanup again"
    say("cleaned this node's own namespace" if namespace == OWN_NAMESPACE else f"cleaned {namespace}")
    return ""
