"""The rules as text: what is written for what is there."""

from __future__ import annotations

import pytest

from agent.marks import Marks
from agent.ruleset import (
    Family,
    PodRules,
    epoch_in_force,
    idle_chains,
    in_place,
    parse_save,
    render_apply,
    render_epoch,
    render_remove,
    wanted,
)

RULES = PodRules(Marks(), epoch=1)


def applied(text: str) -> dict[str, dict[str, list[tuple[str, ...]]]]:
    """What is there after ``iptables-restore`` of our text into empty tables."""
    tables = parse_save(text)
    for line in text.splitlines():
        if line.startswith("*"):
            chains = tables[line[1:]]
        elif line.startswith("-I "):
            _, chain, _, *words = line.split()
            chains.setdefault(chain, []).insert(0, tuple(words))
    return tables


@pytest.mark.parametrize("family", Family)
def test_what_is_written_into_nothing_is_in_place(family: Family) -> None:
    tables = applied(render_apply({}, RULES, family))
    assert in_place(tables, wanted(RULES, family))
    assert not in_place(tables, wanted(PodRules(Marks(), epoch=2), family))
    assert epoch_in_force(tables, Marks()) == 1
    assert epoch_in_force(tables, Marks(0xFF)) is None


@pytest.mark.parametrize("family", Family)
def test_anything_less_or_more_is_not_in_place(family: Family) -> None:
    whole = applied(render_apply({}, RULES, family))
    for table, chains in whole.items():
        for chain, rules in chains.items():
            for index in range(len(rules)):
                less = {**whole, table: {**chains, chain: rules[:index] + rules[index + 1 :]}}
                assert not in_place(less, wanted(RULES, family))
            if rules:
                twice = {**whole, table: {**chains, chain: [*rules, rules[0]]}}
                assert not in_place(twice, wanted(RULES, family))


def test_only_the_epoch_chain_is_touched_by_a_new_epoch() -> None:
    lines = render_epoch(PodRules(Marks(), epoch=9)).splitlines()
    assert lines == [
        "*mangle",
        ":TRM-EPOCH - [0:0]",
        "-A TRM-EPOCH -m connmark --mark 0x890000/0xff0000 -j RETURN",
        "-A TRM-EPOCH -j NFQUEUE --queue-num 7",
        "COMMIT",
    ]


def test_a_jump_somebody_dressed_up_is_removed_word_for_word() -> None:
    saved = r"""*mangle
:PREROUTING ACCEPT [0:0]
:TRM-IN - [0:0]
-A PREROUTING -m comment --comment "two words and a \"quote\"" -j TRM-IN
-A PREROUTING -m comment --comment "-j TRM-IN" -j ACCEPT
COMMIT
"""
    assert render_remove(parse_save(saved)).splitlines() == [
        "*mangle",
        r'-D PREROUTING -m comment --comment "two words and a \"quote\"" -j TRM-IN',
        "-F TRM-IN",
        "-X TRM-IN",
        "COMMIT",
    ]


def test_nothing_to_remove_is_nothing_to_run() -> None:
    assert render_remove(parse_save("*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j ACCEPT\nCOMMIT\n")) == ""


def test_a_chain_with_a_policy_or_a_rule_is_not_idle() -> None:
    saved = "*mangle\n:PREROUTING DROP [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n"
    assert idle_chains(saved, "mangle") == ["POSTROUTING"]
    assert idle_chains(saved.replace("COMMIT", "-A POSTROUTING -j ACCEPT\nCOMMIT"), "mangle") == []
    assert idle_chains(saved, "raw") == []
