"""Bring pods under enforcement and keep them there: what is compared with what should be, one step at a time.

What should be comes from a :class:`~agent.source.Source`: the folder of standalone mode, or the API server.
:class:`Reconciler` is called when the source has news and once a second, and holds no clock, no thread and no socket of
its own. What cannot be done now (a namespace that is not there yet, a rule that could not be written) is a problem that
is reported once and tried again at the next tick.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from agent.enforcing import Enforcement
from agent.issuing import Issued, Issuer
from agent.logs import fields
from agent.marks import FIRST_EPOCH, LAST_EPOCH, free_epoch
from agent.problems import ProblemLog
from agent.runtime import Recorded, RuntimeDirectory
from agent.source import Source, inode_of
from agent.wanted import Wanted, find_wanted
from policy.engine import PolicyEngine
from policy.files import Problem
from policy.view import View
from trireme_py.errors import KernelError, TriremeError
from trireme_py.model import Address

log = logging.getLogger(__name__)

VERIFY_TICKS: Final = 60
"""How often each pod's rules are read back: one with CAP_NET_ADMIN can flush them, and is held again a minute later."""


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
    confirmed: bool = True
    """Whether its rules were seen in place; those that an earlier agent left are looked at once all pods are judged."""


class Reconciler:
    """Use it from one thread."""

    def __init__(
        self,
        source: Source,
        engine: PolicyEngine,
        issuer: Issuer,
        enforcement: Enforcement,
        runtime: RuntimeDirectory,
    ) -> None:
        self._source = source
        self._engine = engine
        self._issuer = issuer
        self._enforcement = enforcement
        self._runtime = runtime
        self._installing = engine.snapshot.settings.installing
        self._wanted: dict[str, Wanted] = {}
        self._bound: dict[str, _Bound] = {}
        self._recorded: dict[str, Recorded] = {}
        """By path: what may hold rules of ours."""
        self._written: dict[str, Recorded] = {}
        self._left: dict[str, Recorded] = {}
        """What an earlier agent left, while this one takes it over."""
        self._endpoints = 0
        self._ticks = 0
        self._found: tuple[Problem, ...] = ()
        """The problems of the last complete pass; the source's own come on top."""
        self._unlaid: dict[str, str] = {}
        """Pods whose policy is in force for what is new, and whose rules do not name its epoch yet, oldest first; each
        with what was said when that failed."""
        self._problem_log = ProblemLog()
        self.on_bound: Callable[[], None] = lambda: None
        """Called each time a pod has come under enforcement, while the pass goes on with others."""
        self.failed: dict[str, str] = {}
        """Pods that a step has failed for in the last pass, each with what was said."""
        self.problems: tuple[Problem, ...] = ()
        self.rule_errors = 0
        self.revision = 0
        """Of the policy that is in force: it counts the changes."""

    @property
    def ticks(self) -> int:
        """How often :meth:`tick` was called: the sign that this thread moves. May be read from any thread."""
        return self._ticks

    @property
    def bound(self) -> Mapping[str, int]:
        """The pods under enforcement, by ``namespace/name``, with their endpoint numbers."""
        return {name: bound.endpoint for name, bound in tuple(self._bound.items())}

    def held_at(self, pod: str) -> Path | None:
        """Return the file that pins the namespace in which ``pod`` is under enforcement, None if it is not."""
        bound = self._bound.get(pod)
        return bound.path if bound else None

    def summary(self) -> dict[str, int]:
        """Return what a log line should say: pods enforced, pods that are not (here, or not yet), problems."""
        return {
            "pods": len(self._bound),
            "not_enforced": self._source.pods - len(self._bound),
            "problems": len(self.problems),
        }

    @property
    def policies(self) -> int:
        snapshot = self._engine.snapshot
        return len(snapshot.cluster_policies) + sum(map(len, snapshot.policies.values()))

    @property
    def assertion_not_after(self) -> float:
        """Earliest end of validity of an identity in use, seconds since the Unix epoch; 0 without pods.

        May be asked from any thread, as :attr:`bound` may.
        """
        issued = [bound.issued for bound in tuple(self._bound.values())]
        return min((one.identity.not_after for one in issued if one is not None), default=0.0)

    def set_installing(self, installing: bool) -> None:
        """Say whether agents are still being installed on other nodes; in force within a second, also on what is live.

        May be called from any thread.
        """
        self._installing = installing

    def start(self) -> None:
        """Take over what an earlier agent left, and bring what the source says into force.

        Raises ConfigError if the source or the record of the earlier agent cannot be used.
        """
        self._recorded = {recorded.network_namespace: recorded for recorded in self._runtime.read()}
        self._left = self._written = dict(self._recorded)
        self._source.first()
        self._bring(everything=True)
        self._left = {}

    def changed(self) -> None:
        """The source has news: bring it into force for every pod. What is live: :meth:`lay_epochs`."""
        self._bring()

    def lay_epochs(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """Have live connections judged anew where policy has changed, pod by pod, until that is done.

        To be called after :meth:`changed` and :meth:`tick`. Writing rules takes milliseconds for each pod: after each,
        ``hurry`` tells whether something else has become more urgent, and the rest is left for the next call.
        """
        for name in tuple(self._unlaid):
            bound = self._bound.get(name)
            try:
                if bound is not None:
                    self._enforcement.lay_epoch(bound.endpoint)
                    log.info("policy in force", extra=fields(pod=name, epoch=bound.epoch))
                del self._unlaid[name]
            except KernelError as error:
                self.rule_errors += 1
                self._unlaid[name] = str(error)
            if hurry():
                break
        self._report()

    def tick(self) -> None:
        """Renew what is due, notice namespaces that came or went, and try again what failed."""
        self._ticks += 1
        self._settle()
        if self._source.stale():
            self._bring(everything=True)
        else:
            self._reconcile()
        try:
            self._enforcement.follow_node()
            self._enforcement.verify(self._ticks % VERIFY_TICKS, VERIFY_TICKS)
        except KernelError as error:
            self.rule_errors += 1
            log.error("rules could not be verified", extra=fields(error=error))

    def stop(self) -> None:
        """Let every pod go, with its rules in place."""
        for bound in self._bound.values():
            self._enforcement.detach(bound.endpoint)
        self._bound.clear()

    def _settle(self) -> None:
        settings = self._engine.snapshot.settings
        if settings.installing is not self._installing:
            self._engine.set_settings(replace(settings, installing=self._installing))

    def _bring(self, *, everything: bool = False) -> None:
        self._settle()
        if self._source.feed(self._engine) or everything:
            self._reconcile()
        else:
            self._follow_policy()
        self.revision = self._engine.snapshot.revision

    # -- From what is to what should be -------------------------------------------------------------------------------

    def _reconcile(self) -> None:
        problems: list[Problem] = []
        wanted = self._wanted = find_wanted(self._source, self._recorded, problems)
        self.failed = {}
        for name, bound in list(self._bound.items()):
            if not self._holds(bound, wanted.get(name)):
                del self._bound[name]
                self._enforcement.detach(bound.endpoint)
                log.info("pod let go", extra=fields(pod=name, namespace=bound.path))
        self._clean_up(problems)

        def take(step: Callable[[str, Wanted], None], name: str) -> None:
            try:
                step(name, wanted[name])
            except TriremeError as error:
                self.rule_errors += isinstance(error, KernelError)
                self.failed[name] = str(error)
                problems.append(self._source.problem(wanted[name].pod, str(error)))

        # First those whose new connections wait, as rules send them to nobody; that takes a millisecond for each.
        steps: tuple[Callable[[str, Wanted], None], ...] = (self._adopt, self._bind)
        for step in steps:
            for name in [name for name in wanted if name not in self._bound and name not in self.failed]:
                take(step, name)
        for name in [name for name in wanted if name in self._bound]:
            # Each step by itself: a policy comes into force also where an identity cannot be issued.
            for step in (self._confirm, self._update, self._renew):
                take(step, name)
        self._record(problems)
        self._found = tuple(problems)
        self._report()

    def _follow_policy(self) -> None:
        """Bring changed policy into force for the pods that are held; nothing else has changed."""
        for name in self._bound.keys() & self._wanted.keys():
            try:
                self._update(name, self._wanted[name])
            except TriremeError as error:  # tried again, and reported, by the next tick
                self.rule_errors += isinstance(error, KernelError)
                log.warning("policy is not in force yet", extra=fields(pod=name, error=error))
        self._record([])  # what is said of that, the next tick reports
        self._report()

    def _holds(self, bound: _Bound, wanted: Wanted | None) -> bool:
        """Tell whether a pod is bound as it should be; one that is not is let go, and bound anew if it is wanted."""
        if wanted is None or wanted.inode != bound.inode or inode_of(bound.path) != bound.inode:
            return False
        if not self._enforcement.serving(bound.endpoint):
            return False
        # A namespace is often there before its interfaces are.
        if bound.addresses and (self._ticks - bound.endpoint) % VERIFY_TICKS:
            return True
        try:
            return set(self._addresses(wanted)) == set(bound.addresses)
        except KernelError:
            return True  # it is going away in this moment; the next tick sees it gone

    def _addresses(self, wanted: Wanted) -> tuple[Address, ...]:
        return wanted.addresses or self._enforcement.addresses(wanted.path)

    def _clean_up(self, problems: list[Problem]) -> None:
        """Forget namespaces that are gone, and open those that are no longer asked for, if that is the source's way."""
        kept = {wanted.inode for wanted in self._wanted.values()}
        for path, recorded in list(self._recorded.items()):
            there = inode_of(Path(path)) == recorded.inode
            if there and recorded.inode in kept:
                continue
            if there and not self._source.opens:
                continue
            if there:
                try:
                    self._enforcement.remove_rules(Path(path))
                except KernelError as error:
                    self.rule_errors += 1
                    problems.append(Problem(path, 0, "", f"{recorded.pod}: {error}", "run: trireme cleanup"))
                    continue
            del self._recorded[path]

    def _adopt(self, name: str, wanted: Wanted) -> None:
        """Go on where the agent before left off, if the policy is still the one that it wrote down."""
        view, left = self._view(wanted), self._left.get(str(wanted.path))
        if left is not None and not wanted.starting and wanted.is_under(view, left):
            self._attach(name, wanted, view, left.epoch, {left.epoch}, confirmed=False)

    def _confirm(self, name: str, _: Wanted) -> None:
        """See whether the rules of an adopted pod are what was written down, and lay them where they are not."""
        bound = self._bound[name]
        if bound.confirmed:
            return
        in_force = self._enforcement.epoch_in_force(bound.path)
        bound.used |= self._enforcement.epochs_in_use(bound.path)
        if in_force != bound.epoch:  # connections may carry it that another policy has let in
            self._set_policy(name, bound.view, free_epoch(in_force or LAST_EPOCH, bound.used))
            self._write_record()
        self._enforcement.lay(bound.endpoint)
        bound.confirmed = True

    def _bind(self, name: str, wanted: Wanted) -> None:
        view = self._view(wanted)
        # A start waits for this, and in a namespace in which nothing has run yet there is nothing to be found.
        new = wanted.starting and all(one.inode != wanted.inode for one in self._recorded.values())
        used = set() if new else self._enforcement.epochs_in_use(wanted.path)
        epoch = FIRST_EPOCH if new else self._first_epoch(wanted, view, used)
        self._attach(name, wanted, view, epoch, used | {epoch}, confirmed=True)

    def _first_epoch(self, wanted: Wanted, view: View, used: set[int]) -> int:
        """Continue with the epoch in force if its policy is the one in force still, else begin a new one."""
        in_force = self._enforcement.epoch_in_force(wanted.path)
        before = self._recorded.get(str(wanted.path))
        if in_force is not None and before and before.epoch == in_force and wanted.is_under(view, before):
            return in_force
        return free_epoch(in_force or LAST_EPOCH, used)

    def _view(self, wanted: Wanted) -> View:
        return self._engine.snapshot.view(wanted.pod.namespace, wanted.pod.name)

    def _attach(self, name: str, wanted: Wanted, view: View, epoch: int, used: set[int], *, confirmed: bool) -> None:
        path = wanted.path
        try:
            issued = self._issuer.issue(wanted.pod)
        except TriremeError:
            issued = None  # enforced all the same, unidentified; renewing tries again and says why
        addresses = self._addresses(wanted)
        # Recorded before the rules go in: whatever happens to us then, cleanup finds them.
        self._recorded[str(path)] = Recorded(name, str(path), wanted.inode, epoch, view.fingerprint.hex())
        self._write_record()
        self._endpoints += 1
        self._enforcement.attach(
            self._endpoints,
            name,
            path,
            addresses=addresses,
            identity=issued.identity if issued else None,
            policy=view,
            epoch=epoch,
            lay=confirmed,
        )
        self._bound[name] = _Bound(self._endpoints, path, wanted.inode, addresses, issued, view, epoch, used, confirmed)
        log.info("pod enforced", extra=fields(pod=name, namespace=path, epoch=epoch))
        self.on_bound()

    def _renew(self, name: str, wanted: Wanted) -> None:
        bound = self._bound[name]
        if self._issuer.due(bound.issued, wanted.pod):
            bound.issued = self._issuer.issue(wanted.pod)
            self._enforcement.set_identity(bound.endpoint, bound.issued.identity)
            log.info("identity issued", extra=fields(pod=name, id=bound.issued.identity.id.hex()))

    def _update(self, name: str, wanted: Wanted) -> None:
        bound, view = self._bound[name], self._view(wanted)
        if view.fingerprint != bound.view.fingerprint:
            self._set_policy(name, view, self._next_epoch(bound))
            self._unlaid.setdefault(name, "")

    def _set_policy(self, name: str, view: View, epoch: int) -> None:
        bound = self._bound[name]
        bound.used.add(epoch)
        self._enforcement.set_policy(bound.endpoint, view, epoch)
        bound.view, bound.epoch = view, epoch
        path = str(bound.path)
        self._recorded[path] = Recorded(name, path, bound.inode, epoch, view.fingerprint.hex())

    def _next_epoch(self, bound: _Bound) -> int:
        """Return an epoch no connection carries, looking at the connections only where that is not known."""
        if len(bound.used) >= LAST_EPOCH or not bound.confirmed:
            bound.used = self._enforcement.epochs_in_use(bound.path) | {bound.epoch}
        return free_epoch(bound.epoch, bound.used)

    def _record(self, problems: list[Problem]) -> None:
        try:
            self._write_record()
        except KernelError as error:
            problems.append(Problem(str(self._runtime.path), 0, "", str(error)))

    def _write_record(self) -> None:
        if self._recorded != self._written:
            self._runtime.write(self._recorded.values())
            self._written = dict(self._recorded)

    def _report(self) -> None:
        unlaid = (
            self._source.problem(self._wanted[name].pod, text)
            for name, text in self._unlaid.items()
            if text and name in self._wanted
        )
        self.problems = (*self._source.problems, *self._found, *unlaid)
        self._problem_log.take(self.problems)
