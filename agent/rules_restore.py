"""The default rule back end: ``iptables-restore``, in the nft or the legacy variant, whichever works here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from enum import Enum
from pathlib import Path
from typing import Final

from agent import netns, ruleset
from agent.marks import Marks, newer_epoch
from agent.noderules import every_kind
from agent.rules import families
from agent.ruleset import Family, PodRules, RuleSet
from trireme_py.errors import KernelError

_LOCK_WAIT_S: Final = 5
"""How long the legacy variant waits for the lock that all iptables programs of the machine share."""
_TIMEOUT_S: Final = 20
_MOST_READ_BACK: Final = 1024
"""Sets of rules differ from pod to pod by their epoch only, so this is never reached."""


class Variant(Enum):
    """Which kernel interface iptables writes to; the value is part of the program names."""

    NFT = "nft"
    LEGACY = "legacy"


class RestoreBackend:
    """Implements :class:`agent.rules.RuleBackend`."""

    __slots__ = ("_read_back", "variant")

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self._read_back: dict[tuple[Family, RuleSet], ruleset.Chains] = {}
        """How this version of iptables prints what was written last, where that is not as :mod:`agent.ruleset` says."""

    @property
    def name(self) -> str:
        return f"iptables-{self.variant.value}"

    def apply(self, namespace: Path, rules: RuleSet) -> bool:
        changed = netns.run_inside(namespace, lambda: self._apply_here(rules))
        if rules.shared and not changed:
            return False
        return self._other().remove_if_there(namespace) or changed

    def _other(self) -> RestoreBackend:
        return RestoreBackend(Variant.LEGACY if self.variant is Variant.NFT else Variant.NFT)

    def installed(self) -> bool:
        """Tell whether this machine has the variant's programs."""
        programs = (f"{family.value}-{self.variant.value}-save" for family in families())
        return all(shutil.which(program, path=_path()) is not None for program in programs)

    def remove_if_there(self, namespace: Path) -> bool:
        """Remove our rules if another back end's agent had laid them here; tell whether there were any.

        With rules in both kernel interfaces every packet would be asked about twice.
        """
        if not self.installed():
            return False
        return netns.run_inside(namespace, self._remove_here)

    def _apply_here(self, rules: RuleSet) -> bool:
        changed = False
        for family in families():
            present, wanted = self._read(family, rules), rules.chains(family)
            expected = self._read_back.get((family, rules), wanted)
            if ruleset.in_place(present, expected, rules.jumps, leading=not rules.shared):
                continue
            self._restore(family, ruleset.render_apply(present, rules, family))
            written = ruleset.own_chains(self._read(family, rules), rules.jumps)
            if written != wanted:
                if len(self._read_back) >= _MOST_READ_BACK:
                    self._read_back.clear()
                self._read_back[family, rules] = written
            changed = True
        return changed

    def set_epoch(self, namespace: Path, rules: PodRules) -> None:
        text = ruleset.render_epoch(rules)
        netns.run_inside(namespace, lambda: self._set_epoch_here(text))

    def _set_epoch_here(self, text: str) -> None:
        for family in families():
            self._restore(family, text)

    def read_state(self, namespace: Path, marks: Marks) -> int | None:
        epoch = netns.run_inside(namespace, lambda: self._read_state_here(marks))
        if epoch is None and self._other().installed():
            return netns.run_inside(namespace, lambda: self._other()._read_state_here(marks))
        return epoch

    def _read_state_here(self, marks: Marks) -> int | None:
        present = [self._read(family) for family in families()]
        epochs = [epoch for tables in present if (epoch := ruleset.epoch_in_force(tables, marks)) is not None]
        if len(epochs) != len(present):
            return None
        # An agent that died between the two families left the first one ahead.
        return epochs[0] if len(epochs) == 1 else newer_epoch(epochs[0], epochs[1])

    def remove(self, namespace: Path) -> None:
        netns.run_inside(namespace, self._remove_here)

    def _remove_here(self) -> bool:
        removed = False
        for family in families():
            present = self._read(family)
            text = ruleset.render_remove(present)
            if text:
                removed = True
                self._restore(family, text)
                if self.variant is Variant.NFT:
                    _delete_idle_chains(family, self._save(family), present)
        return removed

    def _read(self, family: Family, rules: RuleSet | None = None) -> dict[str, dict[str, list[ruleset.Words]]]:
        if rules is None or not rules.shared:
            return ruleset.parse_save(self._save(family))
        return ruleset.parse_save("".join(self._save(family, "-t", table) for table in rules.jumps))

    def _save(self, family: Family, *options: str) -> str:
        return _run([f"{family.value}-{self.variant.value}-save", *options])

    def _restore(self, family: Family, text: str) -> None:
        program = f"{family.value}-{self.variant.value}-restore"
        _run([program, "--noflush", "--wait", str(_LOCK_WAIT_S)], text)


def _delete_idle_chains(family: Family, saved: str, before: ruleset.Tables) -> None:
    """Delete the nft chains, and tables, that our rules alone had called into being: those that led to ours ``before``.

    A chain that decides nothing may go, whoever made it. nft refuses to delete one that somebody has filled in
    between, and with it the whole transaction.
    """
    nft = shutil.which("nft", path=_path())
    if nft is None:
        return  # empty chains stay; they are no rules
    address_family = "ip" if family is Family.IPV4 else "ip6"
    listed = [
        entry["chain"] for entry in json.loads(_run([nft, "-j", "list", "chains"]))["nftables"] if "chain" in entry
    ]
    for table in ruleset.JUMPS:
        there = {chain["name"] for chain in listed if (chain["family"], chain["table"]) == (address_family, table)}
        led_to_ours = {chain for chain, held in before.get(table, {}).items() if any(map(ruleset.is_ours, held))}
        idle = there & led_to_ours & set(ruleset.idle_chains(saved, table))
        lines = [f"delete chain {address_family} {table} {chain}\n" for chain in sorted(idle)]
        if lines and idle == there:
            lines.append(f"delete table {address_family} {table}\n")
        if lines:
            _run([nft, "-f", "-"], "".join(lines))


def _path() -> str:
    """An ordinary user's PATH has no administration programs."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def _run(argv: list[str], stdin: str = "") -> str:
    program = shutil.which(argv[0], path=_path())
    if program is None:
        raise KernelError(f"{argv[0]} is not installed: run 'apt-get install iptables'")
    command = " ".join(argv)
    try:
        done = subprocess.run(  # noqa: S603
            [program, *argv[1:]], input=stdin, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{command}: no answer within {_TIMEOUT_S} s") from error
    except OSError as error:  # no process, no memory or no descriptor is left
        raise KernelError(f"{command}: cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        raise KernelError(f"{command}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def attempt(variant: Variant) -> RestoreBackend:
    """Return the back end of ``variant`` after writing all our rules into scratch namespaces with it.

    Raises KernelError with what it answered.
    """
    backend = RestoreBackend(variant)
    for rules in every_kind():
        netns.run_inside_new(lambda rules=rules: backend._apply_here(rules))  # type: ignore[misc]
    return backend


def takes(variant: Variant, family: Family, table: str, rule: ruleset.Words) -> bool:
    """Tell whether ``rule`` can be written with ``variant``, in OUTPUT of a scratch namespace."""
    backend = RestoreBackend(variant)
    text = f"*{table}\n{ruleset.line('-A', 'OUTPUT', rule)}\nCOMMIT\n"
    try:
        netns.run_inside_new(lambda: backend._restore(family, text))
    except KernelError:
        return False
    return True


def probe() -> RestoreBackend:
    """Return a back end that works on this machine, found by writing all our rules into a scratch namespace.

    Raises :class:`KernelError` with the answer of each variant if none does.
    """
    refusals = []
    for variant in Variant:
        try:
            return attempt(variant)
        except KernelError as error:
            refusals.append(str(error))
    raise KernelError("no iptables variant can queue packets here:\n  " + "\n  ".join(refusals))
