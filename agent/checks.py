"""What this node can and cannot do, and how its agent is: one finding for each question (docs/checks.md).

The kernel is asked by doing, in a scratch network namespace that is gone afterwards: what a configuration says is built
in and what iptables can use are not the same thing. The agent is asked over its status socket. Nothing is changed.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Final

from agent import netns, ruleset
from agent.conntrack import sweep
from agent.marks import Marks
from agent.noderules import every_kind
from agent.rules import families
from agent.rules_restore import Variant, attempt, takes
from agent.ruleset import Words
from agent.status import Status
from agent.words import count
from trireme_py.errors import KernelError

CAPABILITIES: Final = {"NET_ADMIN": 12, "NET_RAW": 13, "SYS_ADMIN": 21}  # include/uapi/linux/capability.h
FILES_PER_POD: Final = 4
PODS: Final = 250
"""More than a kubelet takes by default (110)."""
CERTIFICATE_SOON: Final = timedelta(hours=48)
"""A week's certificate is renewed 56 hours before its end: one this near to it was not."""
CERTIFICATE_NOW: Final = timedelta(hours=12)


class State(Enum):
    """How a check came out; the value is what stands before it."""

    PASSED = "√"
    WARNING = "‼"
    ERROR = "×"  # noqa: RUF001 - that sign is meant


@dataclass(frozen=True, slots=True)
class Check:
    """One question's answer."""

    group: str
    anchor: str
    """In docs/checks.md."""
    state: State
    text: str
    next: str = ""
    """What to do about it; empty for what passed."""


def _passed(group: str, anchor: str, text: str) -> Check:
    return Check(group, anchor, State.PASSED, text)


def _warning(group: str, anchor: str, text: str, next_step: str) -> Check:
    return Check(group, anchor, State.WARNING, text, next_step)


def _error(group: str, anchor: str, text: str, next_step: str) -> Check:
    return Check(group, anchor, State.ERROR, text, next_step)


# -- The kernel -------------------------------------------------------------------------------------------------------


def kernel() -> Iterator[Check]:
    """Ask the kernel of this machine."""
    lacking = missing_capabilities(Path("/proc/self/status").read_text(encoding="ascii"))
    if lacking:
        text = f"this process lacks {', '.join(lacking)}: the kernel cannot be asked"
        step = "run it as root; in a cluster: kubectl -n trireme-system exec daemonset/trireme-agent -- trireme check"
        yield _error("kernel", "k-caps", text, step)
        return
    yield _passed("kernel", "k-caps", f"capabilities {', '.join(CAPABILITIES)}")
    try:
        netns.run_inside_new(lambda: None)
    except KernelError as error:
        yield _error(
            "kernel", "k-netns", str(error), "let the container have SYS_ADMIN, and no seccomp profile of its own"
        )
        return
    yield _passed("kernel", "k-netns", "network namespaces can be made and entered")
    yield from _rules()
    yield _queues()
    yield _conntrack()
    both = len(families()) == 2
    yield (
        _passed("kernel", "k-ipv6", "IPv4 and IPv6")
        if both
        else _warning(
            "kernel", "k-ipv6", "IPv6 is not in this kernel, or disabled at boot", "none needed: IPv4 is enforced"
        )
    )
    yield _files()


def missing_capabilities(status: str) -> list[str]:
    """Return the capabilities that ``/proc/PID/status`` does not name as effective."""
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    effective = int(line.split()[1], 16)
    return [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]


def _rules() -> Iterator[Check]:
    """Write all our rules with each variant of iptables; the agent takes the first that works."""
    refusals: dict[Variant, str] = {}
    for variant in Variant:
        try:
            attempt(variant)
        except KernelError as error:
            refusals[variant] = str(error)
    taken = [variant for variant in Variant if variant not in refusals]
    for variant in Variant:
        anchor, name = f"k-rules-{variant.value}", f"iptables-{variant.value}"
        if variant in taken:
            use = "; the agent takes this one" if variant is taken[0] else ""
            yield _passed("kernel", anchor, f"{name} takes every rule{use}")
        elif taken:
            yield _passed("kernel", anchor, f"{name} cannot be used here, and is not needed")
        else:
            missing = lacking(variant)
            text = f"{name} does not take {', '.join(missing)}" if missing else refusals[variant]
            step = (
                "apt-get install iptables; or a kernel with what is listed in docs/checks.md#what-the-kernel-must-have"
            )
            yield _error("kernel", anchor, text, step)


def lacking(variant: Variant) -> list[str]:
    """Return the matches and targets of our rules that this kernel or this iptables does not take, such as ``-m bpf``.

    What iptables says of a whole table names none, so each is tried by itself.
    """
    found: dict[str, bool] = {}
    for family in families():
        for table, chains in (item for rules in every_kind() for item in rules.chains(family).items()):
            for rule in (rule for rules in chains.values() for rule in rules):
                for name, alone in extensions(rule):
                    key = f"{table} {family.value} {name}"
                    if key not in found:
                        found[key] = takes(variant, family, table, alone)
    return sorted({key.split(" ", 2)[2] for key, taken in found.items() if not taken})


def extensions(rule: Words) -> Iterator[tuple[str, Words]]:
    """Yield each match and target of a rule: its name, and a rule that has nothing else but the protocol it needs."""
    starts = [index for index, word in enumerate(rule) if word in ("-p", "-m", "-j", "-g")]
    protocol: Words = ()
    for begin, end in zip(starts, [*starts[1:], len(rule)], strict=True):
        part = rule[begin:end]
        if part[0] == "-p":
            protocol = part
        elif part[0] == "-m":
            yield " ".join(part[:2]), (*protocol, *part)
        elif part[0] == "-j" and part[1] != "RETURN" and not part[1].startswith(ruleset.PREFIX):
            yield " ".join(part[:2]), part


def _queues() -> Check:
    path = Path("/proc/net/netfilter/nfnetlink_queue")
    if netns.run_inside_new(path.exists):
        return _passed("kernel", "k-nfqueue", "queues can be read (nfnetlink_queue)")
    text = "the kernel cannot hand packets to a program (nfnetlink_queue is missing)"
    return _error("kernel", "k-nfqueue", text, "modprobe nfnetlink_queue; or another kernel")


def _conntrack() -> Check:
    try:
        netns.run_inside_new(lambda: sweep(Path(f"/proc/self/task/{threading.get_native_id()}/ns/net"), Marks()))
    except KernelError as error:
        return _error("kernel", "k-conntrack", str(error), "modprobe nf_conntrack_netlink; or another kernel")
    return _passed("kernel", "k-conntrack", "connections and their marks can be read (nf_conntrack_netlink)")


def _files() -> Check:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = PODS * FILES_PER_POD
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        return _passed("kernel", "k-files", f"open files: {hard} allowed")
    text = f"open files: {hard} allowed, which is enough for {hard // FILES_PER_POD} pods"
    return _warning(
        "kernel", "k-files", text, f"raise the hard limit (ulimit -Hn) to {wanted} where the agent is started"
    )


# -- The agent --------------------------------------------------------------------------------------------------------


def agent(status: Status, version: str, now: datetime) -> Iterator[Check]:
    """Say how the agent is. ``version``: that of the command that asks."""
    yield _passed("agent", "a-runs", f"runs: version {status.version}, {status.kind}, backend {status.backend}")
    if status.version != version:
        text = f"its version is {status.version}, this command's is {version}"
        yield _warning(
            "agent",
            "a-version",
            text,
            "restart the agent; in a cluster: kubectl -n trireme-system rollout status daemonset/trireme-agent",
        )
    for text in status.silent:
        yield _error("agent", "a-threads", text, "see its log; if it stays so, restart it: its rules stay in place")
    waiting = [text for text in status.missing if text not in status.silent]
    for text in waiting:
        yield _error("agent", "a-ready", f"not ready: {text}", "see its log")
    if not status.missing:
        yield _passed("agent", "a-ready", "ready, and its threads move")
    yield from _enforcement(status)
    yield from _losses(status)
    others = [text for text in status.problems if text != status.key_problem]
    for text in others:
        yield _error("agent", "a-problems", text, "correct it; the agent's log says when it is solved")
    if not others:
        yield _passed("agent", "a-problems", "no problem with pods or policies")
    yield from _identity(status, now)


def _enforcement(status: Status) -> Iterator[Check]:
    if status.audit:
        text = "audit: verdicts are reported and nothing is refused by policy"
        yield _warning("agent", "a-audit", text, "set spec.audit to false when the reports are as you want them")
    if status.fail_mode == "open":
        text = "failMode is open: packets pass unjudged while no agent runs"
        yield _warning("agent", "a-fail-open", text, "set spec.failMode to closed, or leave it and know it")
    if status.installation == "lasts":
        nodes = f" (nodes without identities: {status.waited_for})" if status.waited_for else ""
        text = f"the installation lasts: a pod without an identity counts as not yet identified{nodes}"
        step = "let every node have its agent; or end it now: trireme install finish"
        yield _warning("agent", "a-installation", text, step)
    elif status.installation:
        yield _passed("agent", "a-installation", "the installation is finished: every node announced identities")
    for text in status.unprotected:
        step = "take the capability or the runtime class away; or set spec.kubernetes.unprotected to refuse"
        yield _warning("agent", "a-unprotected", f"rules cannot hold {text}", step)
    policies = count(status.policies, "policy", "policies")
    yield _passed("agent", "a-pods", f"{count(status.pods, 'pod')} under enforcement, {policies} in force")
    if status.kind == "kubernetes" and status.not_enforced:
        text = f"{count(status.not_enforced, 'pod')} of this node not under enforcement"
        yield _warning(
            "agent", "a-pods", text, "the agent's log names them; those that start or end are no cause for worry"
        )


def _losses(status: Status) -> Iterator[Check]:
    if status.queues.dropped:
        packets = count(status.queues.dropped, "packet")
        text = f"the kernel dropped {packets} since the agent's start: queue or socket full"
        yield _warning("agent", "a-queue-drops", text, "more CPU for the agent; see trireme_nfqueue_dropped_total")
    if status.crashes:
        text = f"{count(status.crashes, 'unexpected exception')} of the data path since the agent's start"
        yield _warning("agent", "a-crashes", text, "each is in its log: please report it")
    if not status.queues.dropped and not status.crashes:
        yield _passed("agent", "a-queue-drops", f"{count(status.queues.packets, 'packet')} judged, none lost")


def _identity(status: Status, now: datetime) -> Iterator[Check]:
    until = status.identities_until
    if until is not None and until <= now:
        yield _error("identity", "i-identities", f"identities of pods ended at {until:%Y-%m-%d %H:%M} UTC", _LOG)
    elif until is not None:
        yield _passed("identity", "i-identities", f"identities of pods hold until {until:%Y-%m-%d %H:%M} UTC")
    end = status.certificate_until
    if end is None:
        if status.key_problem:
            text, _, step = status.key_problem.partition("; ")
            yield _error("identity", "i-key", text, step)
        elif status.mode == "psk":
            yield _passed("identity", "i-key", f"pre-shared key of {status.trust_domain}")
        return
    text = f"this node's certificate ends {end:%Y-%m-%d %H:%M} UTC"
    if end - now <= CERTIFICATE_NOW:
        yield _error("identity", "i-certificate", text, _RENEW)
    elif end - now <= CERTIFICATE_SOON:
        yield _warning("identity", "i-certificate", text, _RENEW)
    else:
        yield _passed("identity", "i-certificate", text)


_LOG: Final = "see the agent's log: identities are renewed at half of their life, and why that failed is there"
_RENEW: Final = "trireme node request DIR; in a cluster: kubectl -n trireme-system logs deployment/trireme-signer"
