"""docs/datapath.md says what the code does: rules, verdicts and the names of functions are compared with it."""

from __future__ import annotations

import importlib
import re
from ipaddress import ip_address, ip_network
from itertools import product
from operator import attrgetter
from pathlib import Path

import pytest

from agent.marks import FIRST_EPOCH, Marks
from agent.noderules import HostRules
from agent.ruleset import Family, OwnNode, PodRules, RuleSet
from trireme_py.model import Verdict

TEXT = (Path(__file__).parent.parent.parent / "docs" / "datapath.md").read_text(encoding="utf-8")
PODS = (ip_network("10.244.0.0/16"), ip_network("fd10:244::/32"))
NODE = OwnNode((ip_address("10.244.1.1").packed, ip_address("fd10:244:1::1").packed), PODS)
LAID: dict[str, RuleSet] = {
    "The rules": PodRules(Marks(), FIRST_EPOCH, node=NODE),
    "The node as an endpoint": HostRules(PODS),
}


def tables(title: str) -> list[list[list[str]]]:
    """The tables of a section as rows of cells, without their heads."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/datapath.md has no section {title!r}"
    blocks = re.findall(r"(?:^\|.*\|\n)+", found[1], re.MULTILINE)
    return [[[c.strip() for c in line.strip("|").split("|")] for line in b.splitlines()][2:] for b in blocks]


def spelled_out(rule: str) -> list[str]:
    """Every rule that one with ``{a,b}`` stands for."""
    parts = re.split(r"\{([^}]*)\}", rule)
    choices = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(choice) for choice in product(*choices)]


@pytest.mark.parametrize("section", LAID)
def test_the_jumps_are_those_that_are_written(section: str) -> None:
    documented = {(table, chain): rule.strip("`") for table, chain, rule, _ in tables(section)[0]}
    jumps = LAID[section].jumps
    written = {(table, chain): " ".join(rule) for table, chains in jumps.items() for chain, rule in chains.items()}
    assert documented == written


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("section", LAID)
def test_the_rules_are_those_that_are_written(section: str, family: Family) -> None:
    documented: dict[str, list[str]] = {}
    for chains, rule, _ in tables(section)[1]:
        names, _, only = chains.partition(" (")
        if only and only != f"{'IPv6' if family is Family.IPV6 else 'IPv4'})":
            continue
        for chain in names.split(", "):
            documented.setdefault(chain, []).extend(spelled_out(rule.strip("`")))
    written = {
        chain: [" ".join(rule) for rule in rules]
        for chains_of_table in LAID[section].chains(family).values()
        for chain, rules in chains_of_table.items()
    }
    assert documented == written


def test_a_verdict_s_mark_is_the_one_that_is_sent() -> None:
    (rows,) = tables("Marks")
    assert {Verdict[name] for name, *_ in rows} == set(Verdict)
    for name, kernel, mark, _ in rows:
        if kernel == "NF_REPEAT":
            assert int(mark.strip("`"), 16) == Marks().answer(Verdict[name], 0, FIRST_EPOCH)
        else:
            assert mark == "none"
            with pytest.raises(ValueError, match="lets nothing through"):
                Marks().answer(Verdict[name], 0, FIRST_EPOCH)


def test_the_walk_names_functions_that_exist_in_at_most_nine_files() -> None:
    (rows,) = tables("A packet's walk through the code")
    named = re.findall(r"`(\w+/\w+)\.py` `([\w.]+)`", "\n".join(handled for _, _, handled, _ in rows))
    for module, function in named:
        assert callable(attrgetter(function)(importlib.import_module(module.replace("/", "."))))
    assert 1 < len({module for module, _ in named}) <= 9


def test_every_file_it_names_exists() -> None:
    root = Path(__file__).parent.parent.parent
    for name in re.findall(r"`((?:agent|trireme_py|policy|tests)/[\w/]+\.py)`", TEXT):
        assert (root / name).is_file(), name
