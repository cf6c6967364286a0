"""The second rule back end: ``python-iptables``, for machines whose rules live in the legacy tables.

The library crashes when two threads use it or after an error it raised, remembers tables across namespaces, never
takes the lock of iptables and borrows file descriptor 1. So each operation runs in a fresh process with one thread,
which enters the namespace first, takes the lock, and imports the library last.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import msgspec

from agent import netns, ruleset
from agent.marks import FIRST_EPOCH, Marks, newer_epoch
from agent.rules import families
from agent.rules_restore import RestoreBackend, Variant
from agent.ruleset import Chains, Family, Jumps, PodRules, RuleSet, Words
from trireme_py.errors import KernelError

_LOCK: Final = Path("/run/xtables.lock")
_TIMEOUT_S: Final = 20
_TABLES: Final = ("raw", "mangle")
_THEIR_NAME: Final = {"ipv6-icmp": "icmpv6"}
"""Protocols the library calls by another name than iptables does."""
_OUR_NAME: Final = {theirs: ours for ours, theirs in _THEIR_NAME.items()}
_ANYWHERE: Final = ("0.0.0.0/0.0.0.0", "::/0.0.0.0", "::/0")


class IptcBackend:
    """Implements :class:`agent.rules.RuleBackend`."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return "python-iptables"

    def apply(self, namespace: Path, rules: RuleSet) -> bool:
        changed = bool(_in_worker("apply", namespace, rules))
        if rules.shared and not changed:
            return False
        return RestoreBackend(Variant.NFT).remove_if_there(namespace) or changed

    def set_epoch(self, namespace: Path, rules: PodRules) -> None:
        _in_worker("set_epoch", namespace, rules)

    def read_state(self, namespace: Path, marks: Marks) -> int | None:
        epoch = _in_worker("read_state", namespace, PodRules(marks, FIRST_EPOCH))
        if epoch is None and RestoreBackend(Variant.NFT).installed():
            return RestoreBackend(Variant.NFT).read_state(namespace, marks)
        return epoch

    def remove(self, namespace: Path) -> None:
        _in_worker("remove", namespace, PodRules(Marks(), FIRST_EPOCH))


@dataclass(frozen=True, slots=True)
class _Order:
    """What a worker is told: the rules as they are to be, word by word."""

    operation: str
    namespace: str
    mask: int
    jumps: Jumps
    leading: bool
    chains: Mapping[Family, Chains]

    @classmethod
    def of(cls, operation: str, namespace: Path, rules: RuleSet) -> _Order:
        mask = rules.marks.mask if isinstance(rules, PodRules) else 0
        chains = {family: rules.chains(family) for family in families()}
        path = os.fspath(netns.namespace_path(namespace))
        return cls(operation, path, mask, rules.jumps, not rules.shared, chains)


def _in_worker(operation: str, namespace: Path, rules: RuleSet) -> int | None:
    what = f"python-iptables: {operation} in {namespace}"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", "from agent.rules_iptc import work; work()"],
            input=msgspec.json.encode(_Order.of(operation, namespace, rules)).decode(),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{what}: no answer within {_TIMEOUT_S} s; who holds {_LOCK}?") from error
    except OSError as error:  # no process, no memory or no descriptor is left
        raise KernelError(f"{what}: no worker can be started: {error.strerror}") from error
    if done.returncode != 0:
        last_line = done.stderr.strip().rpartition("\n")[2]
        raise KernelError(f"{what}: the worker ended with status {done.returncode}: {last_line}")
    answer: int | None = json.loads(done.stdout)
    return answer


def work() -> None:
    """Carry out one order from standard input, in a process of its own, and print the answer."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=_Order)
    netns.enter(order.namespace)
    operation: Callable[[_Order], int | None] = _OPERATIONS[order.operation]
    with _LOCK.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answer = operation(order)
    json.dump(answer, sys.stdout)


def _apply(order: _Order) -> int:
    changed = False
    for family, wanted in order.chains.items():
        tables = {name: _table(family, name) for name in order.jumps}
        present = {name: _read(table) for name, table in tables.items()}
        if ruleset.in_place(present, wanted, order.jumps, leading=order.leading):
            continue
        changed = True
        for name, chains in wanted.items():
            with _transaction(tables[name]) as table:
                _delete_ours(table, keep=frozenset(chains))
                for chain in chains:
                    if not table.is_chain(chain):
                        table.create_chain(chain)
                for chain, held in chains.items():
                    _fill(family, table, chain, held)
                for chain, jump in order.jumps[name].items():
                    _chain(table, chain).insert_rule(_rule(family, jump))
    return int(changed)


def _set_epoch(order: _Order) -> None:
    for family, chains in order.chains.items():
        with _transaction(_table(family, "mangle")) as table:
            _fill(family, table, ruleset.EPOCH_CHAIN, chains["mangle"][ruleset.EPOCH_CHAIN])


def _read_state(order: _Order) -> int | None:
    marks = Marks(order.mask)
    epochs = [ruleset.epoch_in_force({"mangle": _read(_table(family, "mangle"))}, marks) for family in order.chains]
    there = [epoch for epoch in epochs if epoch is not None]
    if len(there) != len(epochs):
        return None
    return there[0] if len(there) == 1 else newer_epoch(there[0], there[1])


def _remove(order: _Order) -> None:
    for family in order.chains:
        for name in ("mangle", "raw"):
            table = _table(family, name)
            if any(chain.startswith(ruleset.PREFIX) for chain in _read(table)):
                with _transaction(table):
                    _delete_ours(table, keep=frozenset())


_OPERATIONS: Final[dict[str, Callable[[_Order], Any]]] = {
    "apply": _apply,
    "set_epoch": _set_epoch,
    "read_state": _read_state,
    "remove": _remove,
}


def _library() -> Any:
    try:
        import iptc  # noqa: PLC0415 - it must be loaded inside the namespace, and it is an optional dependency
    except ImportError as error:
        raise KernelError(
            f"python-iptables cannot be used ({error}): run pip install 'trireme-py[iptables]'"
        ) from error
    # It looks for a target's name in every table it knows of, and looking makes the kernel create a table; a nat table
    # that nobody asked for would cost every connection of the pod.
    iptc.Table.ALL = iptc.Table6.ALL = list(_TABLES)
    return iptc


def _table(family: Family, name: str) -> Any:
    iptc = _library()
    return (iptc.Table if family is Family.IPV4 else iptc.Table6)(name)


def _chain(table: Any, name: str) -> Any:
    return _library().Chain(table, name)


@contextlib.contextmanager
def _transaction(table: Any) -> Iterator[Any]:
    table.autocommit = False
    yield table
    table.commit()


def _fill(family: Family, table: Any, name: str, rules: Sequence[Words]) -> None:
    chain = _chain(table, name)
    chain.flush()
    for words in rules:
        chain.append_rule(_rule(family, words))


def _delete_ours(table: Any, keep: frozenset[str]) -> None:
    """Delete our jumps, and those of our chains that are not to be kept."""
    chains = [_chain(table, chain.name) for chain in table.chains]
    for chain in chains:
        if not chain.name.startswith(ruleset.PREFIX):
            for rule in [rule for rule in chain.rules if rule.target.name.startswith(ruleset.PREFIX)]:
                chain.delete_rule(rule)
    doomed = [chain for chain in chains if chain.name.startswith(ruleset.PREFIX) and chain.name not in keep]
    for chain in doomed:
        chain.flush()
    for chain in doomed:
        chain.delete()


def _read(table: Any) -> dict[str, list[Words]]:
    chains = {chain.name: _chain(table, chain.name).rules for chain in table.chains}
    return {name: [_words(rule) for rule in rules] for name, rules in chains.items()}


def _words(rule: Any) -> Words:
    """Return a rule as ``iptables -S`` would print it, if it is one of ours; of others only where they go."""
    words: list[str] = []
    for option, addresses in (("-s", rule.src), ("-d", rule.dst)):
        if addresses not in _ANYWHERE:
            words += [option, _network(addresses)]
    header = _header(rule)
    for option, interface, mask in (
        ("-i", rule.in_interface, header.iniface_mask),
        ("-o", rule.out_interface, header.outiface_mask),
    ):
        if interface:
            name = interface.removeprefix("!")
            exact = mask == _interface_mask(name).rstrip(b"\0")
            words += [*(["!"] if interface.startswith("!") else []), option, name if exact else f"{name} inexact"]
    if rule.protocol != "ip":
        words += ["-p", _OUR_NAME.get(rule.protocol, rule.protocol)]
    for match in rule.matches:
        words += ["-m", match.name, *_parameters(match)]
    target = rule.target
    return (*words, "-g" if target.goto else "-j", target.name, *_parameters(target))


def _network(addresses: str) -> str:
    """Return ``address/mask`` as iptables prints it, with the mask as a number of bits."""
    negated, text = ("! " if addresses.startswith("!") else ""), addresses.removeprefix("!")
    address, _, mask = text.partition("/")
    bits = mask if mask.isdecimal() else str(int(ip_address(mask)).bit_count())
    return f"{negated}{address}/{bits}"


def _header(rule: Any) -> Any:
    return rule.entry.ipv6 if hasattr(rule.entry, "ipv6") else rule.entry.ip


def _interface_mask(name: str) -> bytes:
    """Return the mask that makes the kernel compare the whole of an interface's name (IFNAMSIZ octets).

    For IPv6 the library writes 01 for each octet where ff belongs. The kernel then compares the lowest bit of each
    character, and ``net1`` counts as ``lo``: a second interface of that name would have been exempt from policy.
    """
    return (b"\xff" * (len(name) + 1)).ljust(16, b"\0")


def _parameters(module: Any) -> list[str]:
    words: list[str] = []
    for name, values in module.get_all_parameters().items():
        inverted = values[:1] == ["!"]
        words += [*(["!"] if inverted else []), f"--{name}", *(values[1:] if inverted else values)]
    return words


def _rule(family: Family, words: Words) -> Any:
    """Make a rule of the library from the words of one of ours."""
    iptc = _library()
    rule = iptc.Rule() if family is Family.IPV4 else iptc.Rule6()
    module: Any = None
    invert = ""
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "!":
            invert = "!"
            continue
        values = list(takewhile(lambda value: value != "!" and not value.startswith("-"), left))
        del left[: len(values)]
        match word:
            case "-s":
                rule.src = invert + values[0]
            case "-d":
                rule.dst = invert + values[0]
            case "-i":
                rule.in_interface = invert + values[0]
                _header(rule).iniface_mask = _interface_mask(values[0])
            case "-o":
                rule.out_interface = invert + values[0]
                _header(rule).outiface_mask = _interface_mask(values[0])
            case "-p":
                rule.protocol = _THEIR_NAME.get(values[0], values[0])
            case "-m":
                module = rule.create_match(values[0])
            case "-j" | "-g":
                module = rule.create_target(values[0], goto=word == "-g")
            case _:
                value: list[str] | str = values if len(values) > 1 else "".join(values)
                module.set_parameter(word.removeprefix("--"), invert + value if isinstance(value, str) else value)
        invert = ""
    return rule
