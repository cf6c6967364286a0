"""Standalone mode: bring the pods of the configuration folder under enforcement, and keep them there.

The folder says what should be; :class:`Standalone` compares it with what is and moves one step at a time. It is called
when the folder changed and once a second, and holds no clock, no thread and no socket of its own. What cannot be done
now (a namespace that is not there yet, a rule that could not be written) is a problem that is reported once and tried
again at the next tick.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from agent import netns
from agent.folder import Folder, FolderReader
from agent.issuing import Issued, Issuer
from agent.logs import fields
from agent.marks import LAST_EPOCH, free_epoch
from agent.runtime import Recorded, RuntimeDirectory
from policy.engine import PolicyEngine
from policy.files import Problem
from policy.objects import NETWORK_NAMESPACE_ANNOTATION, ClusterNetworkPolicy, NetworkPolicy, Pod
from policy.view import View
from trireme_py.errors import KernelError, TriremeError
from trireme_py.identities import LocalIdentity
from trireme_py.model import Address, PolicyView

__all__ = ["NETWORK_NAMESPACE_ANNOTATION", "VERIFY_TICKS", "Enforcement", "Standalone"]

log = logging.getLogger(__name__)

VERIFY_TICKS: Final = 60
"""How often the rules are read back: a pod with CAP_NET_ADMIN can flush them, and is held again a minute later."""
OWN_NAMESPACE: Final = Path("/proc/self/ns/net")
_ANNOTATION_FIELD: Final = f'metadata.annotations["{NETWORK_NAMESPACE_ANNOTATION}"]'


class Enforcement(Protocol):
    """What holds the pods to their policy. Every method raises KernelError."""

    def addresses(self, namespace: Path) -> tuple[Address, ...]:
        """Return the addresses that the namespace's own interfaces carry."""

    def serving(self, endpoint: int) -> bool:
        """Tell whether the pod's queue is open and its packets are judged."""

    def epoch_in_force(self, namespace: Path) -> int | None:
        """Return the epoch that the rules there name, None without rules of ours."""

    def epochs_in_use(self, namespace: Path) -> set[int]:
        """Return every epoch that some connection there carries."""

    def attach(
        self,
        endpoint: int,
        pod: str,
        namespace: Path,
        *,
        addresses: tuple[Address, ...],
        identity: LocalIdentity | None,
        policy: PolicyView,
        epoch: int,
    ) -> None:
        """Begin to enforce: queue first, then rules. Nothing of ours is open after a failure."""

    def set_identity(self, endpoint: int, identity: LocalIdentity) -> None:
        """Present ``identity`` from now on."""

    def set_policy(self, endpoint: int, policy: PolicyView, epoch: int) -> None:
        """Judge by ``policy`` from now on, and every live connection anew under ``epoch``."""

    def verify(self) -> None:
        """Lay rules again that somebody else changed."""

    def detach(self, endpoint: int) -> None:
        """Stop judging. The rules stay: without a listener they hold what is new, and what is accepted goes on."""

    def remove_rules(self, namespace: Path) -> None:
        """Remove every rule of ours; the namespace is open then."""


@dataclass(slots=True)
class _Bound:
    """A pod under enforcement."""

    endpoint: int
    path: Path
    inode: tuple[int, int]
    addresses: tuple[Address, ...]
    issued: Issued | None
    view: View
    epoch: int
    used: set[int] = field(default_factory=set)
    """Epochs that connections may carry: those found by the last sweep and those set since."""


class Standalone:
    """Use it from one thread."""

    def __init__(
        self,
        reader: FolderReader,
        engine: PolicyEngine,
        issuer: Issuer,
        enforcement: Enforcement,
        runtime: RuntimeDirectory,
    ) -> None:
        self._reader = reader
        self._engine = engine
        self._issuer = issuer
        self._enforcement = enforcement
        self._runtime = runtime
        self._folder = Folder()
        self._bound: dict[str, _Bound] = {}
        self._recorded: dict[str, Recorded] = {}
        self._written: dict[str, Recorded] = {}
        self._endpoints = 0
        self._ticks = 0
        self._reported: frozenset[Problem] = frozenset()
        self.revision = 0
        """Of the policy that is in force: it counts the changes."""
        self.problems: tuple[Problem, ...] = ()
        self.rule_errors = 0

    @property
    def bound(self) -> Mapping[str, int]:
        """The pods under enforcement, by ``namespace/name``, with their endpoint numbers."""
        return {name: bound.endpoint for name, bound in tuple(self._bound.items())}

    def summary(self) -> dict[str, int]:
        """Return what a log line should say: pods enforced, pods that are not (here, or not yet), problems."""
        return {
            "pods": len(self._bound),
            "not_enforced": len(self._folder.pods) - len(self._bound),
            "problems": len(self.problems),
        }

    @property
    def policies(self) -> int:
        return sum(isinstance(item, NetworkPolicy | ClusterNetworkPolicy) for item in self._folder.objects)

    @property
    def assertion_not_after(self) -> float:
        """Earliest end of validity of an identity in use, seconds since the Unix epoch; 0 without pods.

        May be asked from any thread, as :attr:`bound` may.
        """
        issued = [bound.issued for bound in tuple(self._bound.values())]
        return min((one.identity.not_after for one in issued if one is not None), default=0.0)

    def start(self) -> None:
        """Take over what an earlier agent left, and bring the folder into force.

        Raises ConfigError if the folder or the record of the earlier agent cannot be used.
        """
        self._recorded = {recorded.pod: recorded for recorded in self._runtime.read()}
        self._written = dict(self._recorded)
        self._take(self._reader.first())

    def changed(self) -> None:
        """The folder changed: bring it into force."""
        self._take(self._reader.read())

    def tick(self) -> None:
        """Renew what is due, notice namespaces that came or went, and try again what failed."""
        self._ticks += 1
        if self._reader.stale():
            # inotify starts after the first reading, can overflow, and is silent on network file systems.
            self.changed()
        else:
            self._reconcile()
        if self._ticks % VERIFY_TICKS == 0:
            try:
                self._enforcement.verify()
            except KernelError as error:
                self.rule_errors += 1
                log.error("rules could not be verified", extra=fields(error=error))

    def stop(self) -> None:
        """Let every pod go. Rules and connection marks stay: what is established goes on, what is new waits."""
        for bound in self._bound.values():
            self._enforcement.detach(bound.endpoint)
        self._bound.clear()

    # -- What should be -----------------------------------------------------------------------------------------------

    def _take(self, folder: Folder) -> None:
        self._engine.replace(folder.objects)
        self._folder = folder
        self._reconcile()
        self.revision = self._engine.snapshot.revision

    def _wanted(self, problems: list[Problem]) -> dict[str, tuple[Pod, Path]]:
        """Return the pods to enforce, by name, each with its namespace."""
        wanted: dict[str, tuple[Pod, Path]] = {}
        taken: dict[tuple[int, int], str] = {}
        # Who has a namespace keeps it: a slip in another pod's annotation must not take it away.
        for pod in sorted(self._folder.pods, key=lambda pod: not self._has_its_namespace(pod)):
            namespace = pod.annotations.get(NETWORK_NAMESPACE_ANNOTATION)
            if namespace is None or pod.completed:
                continue
            name = f"{pod.namespace}/{pod.name}"
            if pod.host_network:
                text = "a pod of the host network has no namespace of its own, and is not enforced"
                problems.append(self._folder.problem(pod, "spec.hostNetwork", text, "remove the annotation"))
                continue
            path = netns.namespace_path(namespace)
            inode = _inode(path)
            if inode is None:
                text = f"network namespace {path} is not there; the pod is enforced as soon as it is"
                problems.append(self._folder.problem(pod, _ANNOTATION_FIELD, text, "see: ip netns list"))
                continue
            if inode == _inode(OWN_NAMESPACE):
                text = f"network namespace {path} is this machine's own, not a pod's, and is not enforced"
                problems.append(self._folder.problem(pod, _ANNOTATION_FIELD, text, "name the pod's"))
                continue
            if inode in taken:
                text = f"network namespace {path} is already that of pod {taken[inode]}"
                problems.append(self._folder.problem(pod, _ANNOTATION_FIELD, text, "give each pod its own"))
                continue
            taken[inode] = name
            wanted[name] = pod, path
        return wanted

    def _has_its_namespace(self, pod: Pod) -> bool:
        """Tell whether the namespace that ``pod`` asks for is recorded as its own, by this agent or the one before."""
        recorded = self._recorded.get(f"{pod.namespace}/{pod.name}")
        asked = pod.annotations.get(NETWORK_NAMESPACE_ANNOTATION, "")
        return recorded is not None and recorded.network_namespace == str(netns.namespace_path(asked))

    # -- From what is to what should be -------------------------------------------------------------------------------

    def _reconcile(self) -> None:
        problems: list[Problem] = []
        wanted = self._wanted(problems)
        for name, bound in list(self._bound.items()):
            if not self._holds(bound, wanted.get(name)):
                del self._bound[name]
                self._enforcement.detach(bound.endpoint)
                log.info("pod let go", extra=fields(pod=name, namespace=bound.path))
        self._clean_up(wanted, problems)
        for name, (pod, path) in wanted.items():
            # Each step by itself: a policy comes into force also where an identity cannot be issued.
            for step in (self._update, self._renew) if name in self._bound else (self._bind,):
                try:
                    step(name, pod, path)
                except TriremeError as error:
                    self.rule_errors += isinstance(error, KernelError)
                    problems.append(self._folder.problem(pod, _ANNOTATION_FIELD, str(error)))
        try:
            self._record()
        except KernelError as error:
            problems.append(Problem(str(self._runtime.path), 0, "", str(error)))
        self._report((*self._folder.problems, *problems))

    def _holds(self, bound: _Bound, wanted: tuple[Pod, Path] | None) -> bool:
        """Tell whether a pod is bound as it should be; one that is not is let go, and bound anew if it is wanted."""
        if wanted is None or wanted[1] != bound.path or _inode(bound.path) != bound.inode:
            return False
        if not self._enforcement.serving(bound.endpoint):
            return False
        # A namespace is often there before its interfaces are.
        if bound.addresses and self._ticks % VERIFY_TICKS:
            return True
        try:
            return self._addresses(*wanted) == bound.addresses
        except KernelError:
            return True  # it is going away in this moment; the next tick sees it gone

    def _addresses(self, pod: Pod, path: Path) -> tuple[Address, ...]:
        return pod.addresses or self._enforcement.addresses(path)

    def _clean_up(self, wanted: Mapping[str, tuple[Pod, Path]], problems: list[Problem]) -> None:
        """Remove the rules of pods that are no longer asked for, also those an earlier agent bound."""
        kept = {_inode(path) for _, path in wanted.values()}
        for name, recorded in list(self._recorded.items()):
            path = Path(recorded.network_namespace)
            if name in wanted and wanted[name][1] == path:
                continue
            if _inode(path) == recorded.inode and recorded.inode not in kept:
                try:
                    self._enforcement.remove_rules(path)
                except KernelError as error:
                    self.rule_errors += 1
                    problems.append(Problem(str(path), 0, "", f"{name}: {error}", "run: trireme cleanup"))
                    continue
            del self._recorded[name]

    def _bind(self, name: str, pod: Pod, path: Path) -> None:
        inode = _inode(path)
        assert inode is not None, "wanted only with a namespace that is there"
        view = self._engine.snapshot.view(pod.namespace, pod.name)
        try:
            issued = self._issuer.issue(pod)
        except TriremeError:
            issued = None  # enforced all the same, unidentified; renewing tries again and says why
        used = self._enforcement.epochs_in_use(path)
        epoch = self._first_epoch(name, inode, view, path, used)
        used.add(epoch)
        addresses = self._addresses(pod, path)
        # Recorded before the rules go in: whatever happens to us then, cleanup finds them.
        self._recorded[name] = Recorded(name, str(path), inode, epoch, view.fingerprint.hex())
        self._record()
        self._endpoints += 1
        self._enforcement.attach(
            self._endpoints,
            name,
            path,
            addresses=addresses,
            identity=issued.identity if issued else None,
            policy=view,
            epoch=epoch,
        )
        self._bound[name] = _Bound(self._endpoints, path, inode, addresses, issued, view, epoch, used)
        log.info("pod enforced", extra=fields(pod=name, namespace=path, epoch=epoch))

    def _first_epoch(self, name: str, inode: tuple[int, int], view: View, path: Path, used: set[int]) -> int:
        """Continue with the epoch in force if its policy is the one in force still, else begin a new one."""
        in_force = self._enforcement.epoch_in_force(path)
        before = self._recorded.get(name)
        if (
            in_force is not None
            and before is not None
            and (before.epoch, before.inode, before.fingerprint) == (in_force, inode, view.fingerprint.hex())
        ):
            return in_force
        return free_epoch(in_force or LAST_EPOCH, used)

    def _renew(self, name: str, pod: Pod, _path: Path) -> None:
        bound = self._bound[name]
        if self._issuer.due(bound.issued, pod):
            bound.issued = self._issuer.issue(pod)
            self._enforcement.set_identity(bound.endpoint, bound.issued.identity)
            log.info("identity issued", extra=fields(pod=name, id=bound.issued.identity.id.hex()))

    def _update(self, name: str, pod: Pod, path: Path) -> None:
        bound = self._bound[name]
        view = self._engine.snapshot.view(pod.namespace, pod.name)
        if view.fingerprint == bound.view.fingerprint:
            return
        epoch = self._next_epoch(bound)
        bound.used.add(epoch)
        self._enforcement.set_policy(bound.endpoint, view, epoch)
        bound.view, bound.epoch = view, epoch
        self._recorded[name] = Recorded(name, str(path), bound.inode, epoch, view.fingerprint.hex())
        log.info("policy in force", extra=fields(pod=name, epoch=epoch))

    def _next_epoch(self, bound: _Bound) -> int:
        """Return an epoch no connection carries, looking at the connections only once the circle is closed."""
        if len(bound.used) >= LAST_EPOCH:
            bound.used = self._enforcement.epochs_in_use(bound.path) | {bound.epoch}
        return free_epoch(bound.epoch, bound.used)

    def _record(self) -> None:
        if self._recorded != self._written:
            self._runtime.write(self._recorded.values())
            self._written = dict(self._recorded)

    def _report(self, problems: tuple[Problem, ...]) -> None:
        """Log each problem when it appears and when it is gone, not at every tick."""
        now = frozenset(problems)
        for problem in sorted(now - self._reported):
            place = f"{problem.file}:{problem.line}"
            text = f"{problem.message}; {problem.hint}" if problem.hint else problem.message
            log.error("config problem", extra=fields(at=place, field=problem.field, problem=text))
        for problem in sorted(self._reported - now):
            log.info("config problem solved", extra=fields(at=f"{problem.file}:{problem.line}", field=problem.field))
        self._reported = now
        self.problems = problems


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # an octet of zero in the name is a ValueError
        return None
    return found.st_dev, found.st_ino
