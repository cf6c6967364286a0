"""The rules of a pod's namespace, written by each back end and read back by something else."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from agent import netns
from agent.marks import Marks
from agent.noderules import HostRules
from agent.rules import RuleBackend
from agent.rules_iptc import IptcBackend
from agent.rules_restore import RestoreBackend, Variant, probe
from agent.ruleset import Family, OwnNode, PodRules
from trireme_py.errors import KernelError

pytestmark = pytest.mark.kernel

BACKENDS: dict[str, tuple[RuleBackend, str]] = {
    "nft": (RestoreBackend(Variant.NFT), "nft"),
    "legacy": (RestoreBackend(Variant.LEGACY), "legacy"),
    "python-iptables": (IptcBackend(), "legacy"),
}
NODE = OwnNode(
    (ip_address("10.77.1.1").packed, ip_address("fd77:1::1").packed),
    (ip_network("10.77.0.0/16"), ip_network("fd77::/16")),
)
NODE_OF = {Family.IPV4: ("10.77.1.1/32", "10.77.0.0/16"), Family.IPV6: ("fd77:1::1/128", "fd77::/16")}
RULES = PodRules(Marks(), epoch=5, node=NODE)
HOST_RULES = HostRules(NODE.pods)
FOREIGN = (
    "-t mangle -A PREROUTING -p udp -m comment --comment {quoted} -j ACCEPT",
    "-t mangle -A FORWARD -j MARK --set-xmark 0x1/0x1",
    "-t raw -A OUTPUT -p tcp -j ACCEPT",
    "-t mangle -N SOMEBODY",
)


@pytest.fixture
def namespace() -> Iterator[Path]:
    path = netns.create(f"trm-rules-{os.getpid()}-a")
    yield path
    netns.remove(path)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> RuleBackend:
    return BACKENDS[request.param][0]


@pytest.fixture
def variant(request: pytest.FixtureRequest, backend: RuleBackend) -> str:
    return next(variant for one, variant in BACKENDS.values() if one is backend)


def run(namespace: Path, command: str, stdin: str = "") -> str:
    done = netns.run_inside(
        namespace,
        lambda: subprocess.run(command, shell=True, input=stdin, capture_output=True, text=True, check=False),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def saved(namespace: Path, variant: str, *, counters: bool = False) -> str:
    """Both families' rules as the tool prints them, without the comment lines (they hold the time)."""
    texts = [run(namespace, f"{family.value}-{variant}-save {'-c' if counters else ''}") for family in Family]
    return re.sub(r"^#.*\n", "", "".join(texts), flags=re.MULTILINE)


def touch_tables(namespace: Path, variant: str) -> None:
    """The kernel creates a legacy table when it is first looked at, and keeps it; that is no trace of ours."""
    if variant == "legacy":
        for family in Family:
            for table in ("raw", "mangle"):
                run(namespace, f"{family.value}-{variant} -t {table} -S")


def add_foreign(namespace: Path, variant: str) -> None:
    for family in Family:
        for rule in FOREIGN:
            run(namespace, f"{family.value}-{variant} {rule.format(quoted=repr('not ours'))}")


def send_to_myself() -> None:
    for family, myself in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            one.bind((myself, 0))
            one.sendto(b"counted", one.getsockname())


def test_applying_twice_changes_nothing(namespace: Path, backend: RuleBackend, variant: str) -> None:
    run(namespace, "ip link set lo up")
    add_foreign(namespace, variant)
    assert backend.apply(namespace, RULES) is True
    netns.run_inside(namespace, send_to_myself)
    before = saved(namespace, variant, counters=True)
    assert "[0:0] -A OUTPUT -j TRM-RAW-OUT" not in before  # something is counted, so that a reset would show
    assert backend.apply(namespace, RULES) is False
    assert saved(namespace, variant, counters=True) == before


def test_removing_leaves_no_trace(namespace: Path, backend: RuleBackend, variant: str) -> None:
    touch_tables(namespace, variant)
    before = saved(namespace, variant)
    backend.apply(namespace, RULES)
    assert "TRM-EPOCH" in saved(namespace, variant)
    backend.remove(namespace)
    assert saved(namespace, variant) == before
    backend.remove(namespace)
    assert saved(namespace, variant) == before
    assert variant == "legacy" or run(namespace, "nft list ruleset") == ""


def test_foreign_rules_stay_as_they_are(namespace: Path, backend: RuleBackend, variant: str) -> None:
    touch_tables(namespace, variant)
    add_foreign(namespace, variant)
    before = saved(namespace, variant)
    backend.apply(namespace, RULES)
    backend.set_epoch(namespace, replace(RULES, epoch=6))
    assert set(before.splitlines()) <= set(saved(namespace, variant).splitlines())
    backend.remove(namespace)
    assert saved(namespace, variant) == before


def test_our_jumps_come_first_and_once(namespace: Path, backend: RuleBackend, variant: str) -> None:
    backend.apply(namespace, RULES)
    for family in Family:
        run(namespace, f"{family.value}-{variant} -t mangle -I PREROUTING 1 -j ACCEPT")
        run(namespace, f"{family.value}-{variant} -t mangle -A POSTROUTING ! -o lo -j TRM-OUT")
    assert backend.apply(namespace, RULES) is True
    for family in Family:
        for table, chain, jump in (
            ("raw", "PREROUTING", "-j TRM-RAW"),
            ("raw", "OUTPUT", "-j TRM-RAW-OUT"),
            ("mangle", "PREROUTING", "! -i lo -j TRM-IN"),
            ("mangle", "POSTROUTING", "! -o lo -j TRM-OUT"),
        ):
            rules = run(namespace, f"{family.value}-{variant} -t {table} -S {chain}").splitlines()
            assert rules[1] == f"-A {chain} {jump}"
            assert sum("TRM-" in rule for rule in rules) == 1


def test_what_somebody_flushed_is_laid_again(namespace: Path, backend: RuleBackend, variant: str) -> None:
    backend.apply(namespace, RULES)
    whole = saved(namespace, variant)
    for damage in ("-t mangle -F TRM-IN", "-t raw -F", "-t mangle -D TRM-OUT 1", "-t mangle -F"):
        for family in Family:
            run(namespace, f"{family.value}-{variant} {damage}")
        assert backend.apply(namespace, RULES) is True
        assert saved(namespace, variant) == whole


def test_the_epoch_changes_alone_and_is_read_back(namespace: Path, backend: RuleBackend, variant: str) -> None:
    assert backend.read_state(namespace, RULES.marks) is None
    backend.apply(namespace, RULES)
    assert backend.read_state(namespace, RULES.marks) == 5
    before = saved(namespace, variant).splitlines()
    backend.set_epoch(namespace, replace(RULES, epoch=63))
    after = saved(namespace, variant).splitlines()
    changed = {line for line in [*before, *after] if before.count(line) != after.count(line)}
    assert changed == {
        "-A TRM-EPOCH -m connmark --mark 0x850000/0xff0000 -j RETURN",
        "-A TRM-EPOCH -m connmark --mark 0xbf0000/0xff0000 -j RETURN",
    }
    assert backend.read_state(namespace, RULES.marks) == 63
    assert backend.read_state(namespace, Marks(0xFF)) is None
    assert backend.apply(namespace, replace(RULES, epoch=63)) is False


def test_an_agent_that_died_between_the_families_goes_on_with_the_later_epoch(
    namespace: Path, backend: RuleBackend, variant: str
) -> None:
    backend.apply(namespace, PodRules(RULES.marks, 63))
    refill = "*mangle\n:TRM-EPOCH - [0:0]\n-A TRM-EPOCH -m connmark --mark {} -j RETURN\nCOMMIT\n"
    run(namespace, f"iptables-{variant}-restore -n", refill.format("0x810000/0xff0000"))
    assert backend.read_state(namespace, RULES.marks) == 1
    run(namespace, f"ip6tables-{variant}-restore -n", refill.format("0x820000/0xff0000"))
    assert backend.read_state(namespace, RULES.marks) == 2


@pytest.mark.parametrize(
    "other", [PodRules(Marks(0xFF), 5), PodRules(Marks(), 5, queue=65535), PodRules(Marks(), 5, bypass=True)]
)
def test_other_parameters_replace_the_rules(
    namespace: Path, backend: RuleBackend, variant: str, other: PodRules
) -> None:
    backend.apply(namespace, RULES)
    assert backend.apply(namespace, other) is True
    text = saved(namespace, variant)
    assert f"--queue-num {other.queue}" in text
    assert ("--queue-bypass" in text) == other.bypass
    assert (f"/{RULES.marks.mask:#x}" in text) == (other.marks == RULES.marks)
    assert backend.apply(namespace, other) is False


def test_chains_of_another_version_go(namespace: Path, backend: RuleBackend, variant: str) -> None:
    for family in Family:
        run(namespace, f"{family.value}-{variant} -t mangle -N TRM-OLD")
        run(namespace, f"{family.value}-{variant} -t mangle -A TRM-OLD -j NFQUEUE --queue-num 1")
        run(namespace, f"{family.value}-{variant} -t mangle -A POSTROUTING -p tcp -j TRM-OLD")
    backend.apply(namespace, RULES)
    assert "TRM-OLD" not in saved(namespace, variant)


@pytest.mark.parametrize("before", BACKENDS)
@pytest.mark.parametrize("after", BACKENDS)
def test_another_back_end_goes_on_where_the_last_one_was(namespace: Path, before: str, after: str) -> None:
    """Rules in both kernel interfaces would ask about every packet twice."""
    BACKENDS[before][0].apply(namespace, RULES)
    backend, variant = BACKENDS[after]
    assert backend.read_state(namespace, RULES.marks) == RULES.epoch
    assert backend.apply(namespace, RULES) == (variant != BACKENDS[before][1])
    assert backend.apply(namespace, RULES) is False
    other = "nft" if variant == "legacy" else "legacy"
    assert "TRM-" in saved(namespace, variant)
    assert "TRM-" not in saved(namespace, other)


def test_an_iptables_that_prints_otherwise_is_no_reason_to_write_again(
    namespace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions differ in how they print a rule; what was printed after writing is what is expected from then on."""
    for family in Family:
        program = f"{family.value}-nft-save"
        script = f"#!/bin/sh\n{shutil.which(program)} \"$@\" | sed 's/SYN SYN/0x02 0x02/'\n"
        (tmp_path / program).write_text(script)
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    backend = RestoreBackend(Variant.NFT)
    assert backend.apply(namespace, RULES) is True
    assert "--tcp-flags 0x02 0x02 -j" in saved(namespace, "nft")
    assert backend.apply(namespace, RULES) is False
    run(namespace, "iptables-nft -t mangle -D TRM-IN 1")
    assert backend.apply(namespace, RULES) is True
    assert backend.apply(namespace, RULES) is False


READ_BACK = """
import json, iptc
print(json.dumps({
    family: {table: iptc.easy.dump_table(table, ipv6=family == "ip6tables") for table in ("raw", "mangle")}
    for family in ("iptables", "ip6tables")
}))
"""


@pytest.mark.parametrize("writer", ["legacy", "python-iptables"])
def test_an_independent_reader_finds_the_same_rules(namespace: Path, writer: str) -> None:
    """The library decodes the kernel's structures by itself; iptables prints what it wrote."""
    BACKENDS[writer][0].apply(namespace, RULES)
    found = json.loads(run(namespace, f"{sys.executable} -", READ_BACK))
    for family in Family:
        raw, mangle = found[family.value]["raw"], found[family.value]["mangle"]
        clear = {"target": {"MARK": {"set-xmark": "0x0/0xff0000"}}}
        queue = {"target": {"NFQUEUE": {"queue-num": "7"}}}
        saves = {"save-mark": "", "nfmask": "0xff0000", "ctmask": "0xff0000"}
        accepted = {"mark": [{"mark": "0x800000/0x800000"}]}
        answered = [
            {**accepted, "target": {"CONNMARK": saves}},
            {**accepted, "target": {"goto": "TRM-DONE"}},
        ]
        unmark = {"mark": [{"mark": "0x410000/0xff0000"}], "target": {"CONNMARK": {"set-xmark": "0x0/0xff0000"}}}
        passed = {"mark": [{"mark": ["!", "0x0/0xff0000"]}], "target": {"goto": "TRM-DONE"}}
        syn = {"protocol": "tcp", "tcp": [{"tcp-flags": ["SYN", "SYN"]}], **queue}
        on_link = [
            {
                "protocol": "icmpv6",
                "icmp6": [{"icmpv6-type": str(kind)}],
                "hl": [{"hl-eq": str(limit)}],
                "target": "RETURN",
            }
            for kind, limit in [*((kind, 255) for kind in range(133, 138)), *((k, 1) for k in (130, 131, 132, 143))]
        ]
        hop_limit = "ttl" if family is Family.IPV4 else "hl"
        address, pods = (str(one) for one in (*NODE_OF[family],))
        mark_node = {"target": {"MARK": {"set-xmark": "0xc00000/0xff0000"}}}
        of_node = {"connmark": [{"mark": "0xc00000/0xff0000"}]}
        from_node = {"dst": pods, hop_limit: [{f"{hop_limit}-eq": "255"}], "target": "TRM-NODE"}
        flags = "FIN,SYN,RST,ACK"
        first = {"protocol": "tcp", "tcp": [{"tcp-flags": [flags, "SYN"]}]}
        answer = {"protocol": "tcp", "tcp": [{"tcp-flags": [flags, "SYN,ACK"]}], **of_node, "target": "RETURN"}
        stranger = {
            **first,
            "mark": [{"mark": ["!", "0x0/0xff0000"]}],
            **of_node,
            "target": {"CONNMARK": {"set-xmark": "0x0/0xff0000"}},
        }
        goes_on = {
            "protocol": "tcp",
            "tcp": [{"tcp-flags": ["SYN", "NONE"]}],
            "mark": [{"mark": "0x0/0xff0000"}],
            "connmark": [{"mark": "0x800000/0xc00000"}],
            "target": {"goto": "TRM-EPOCH"},
        }
        (surplus,) = [rule for rule in map(simplified, mangle["TRM-IN"]) if "bpf" in rule]
        assert surplus == {"protocol": "udp", "bpf": surplus["bpf"], **queue}
        untracked = {"protocol": "udp", "bpf": surplus["bpf"], "target": {"CT": {"notrack": ""}}}
        judge = [syn, surplus, *(on_link if family is Family.IPV6 else [])]
        epoch = {"target": "TRM-EPOCH"}
        expected = {
            "TRM-RAW": [clear],
            "TRM-RAW-OUT": [clear, untracked],
            "TRM-DONE": [clear],
            "TRM-EPOCH": [{"connmark": [{"mark": "0x850000/0xff0000"}], "target": "RETURN"}, queue],
            "TRM-NODE": [{"src": address, "target": {"goto": "TRM-NODE-OWN"}}],
            "TRM-NODE-OWN": [
                {"protocol": "tcp", "tcp": [{"tcp-flags": ["SYN", "SYN"]}], **mark_node},
                {"conntrack": [{"ctstate": "NEW"}], **mark_node},
                {**of_node, **mark_node},
            ],
            "TRM-IN": [
                *(from_node, goes_on, *answered, unmark, stranger, passed, *judge),
                {"protocol": "tcp", **of_node, "target": "RETURN"},
                epoch,
            ],
            "TRM-OUT": [goes_on, *answered, unmark, passed, answer, *judge, {**of_node, "target": "RETURN"}, epoch],
        }
        actual = {chain: rules for table in (raw, mangle) for chain, rules in table.items() if chain.startswith("TRM")}
        assert {chain: [simplified(rule) for rule in rules] for chain, rules in actual.items()} == expected
        assert simplified(mangle["PREROUTING"][0]) == {"in-interface": "!lo", "target": "TRM-IN"}
        assert simplified(mangle["POSTROUTING"][0]) == {"out-interface": "!lo", "target": "TRM-OUT"}


def simplified(rule: dict[str, object]) -> dict[str, object]:
    """Without counters, and with the list the library makes of a match always a list."""
    return {
        key: [value] if isinstance(value, dict) and key not in ("target", "counters") else value
        for key, value in rule.items()
        if key != "counters"
    }


def test_the_node_s_rules_are_laid_beside_others_and_go_without_a_trace(
    namespace: Path, backend: RuleBackend, variant: str
) -> None:
    touch_tables(namespace, variant)
    for family in Family:
        run(namespace, f"{family.value}-{variant} -t mangle -A POSTROUTING -p udp -j ACCEPT")
    before = saved(namespace, variant)
    assert backend.apply(namespace, HOST_RULES) is True
    assert set(before.splitlines()) <= set(saved(namespace, variant).splitlines())
    for family in Family:
        # Somebody else may go first; a fight about the place would never end.
        run(namespace, f"{family.value}-{variant} -t mangle -I POSTROUTING 1 -p tcp -j ACCEPT")
    assert backend.apply(namespace, HOST_RULES) is False
    for damage in ("-t mangle -F TRM-HOST-POD", "-t mangle -D POSTROUTING ! -o lo -j TRM-HOST"):
        for family in Family:
            run(namespace, f"{family.value}-{variant} {damage}")
        assert backend.apply(namespace, HOST_RULES) is True
    for family in Family:
        run(namespace, f"{family.value}-{variant} -t mangle -D POSTROUTING -p tcp -j ACCEPT")
    backend.remove(namespace)
    assert saved(namespace, variant) == before


@pytest.mark.parametrize("node", [OwnNode(), OwnNode(NODE.addresses[:1], NODE.pods), OwnNode((), NODE.pods)])
def test_another_node_address_replaces_the_rules(
    namespace: Path, backend: RuleBackend, variant: str, node: OwnNode
) -> None:
    backend.apply(namespace, RULES)
    assert backend.apply(namespace, replace(RULES, node=node)) is True
    text = saved(namespace, variant)
    for family in Family:
        address, _ = NODE_OF[family]
        assert (f"-s {address} " in text) == any(len(one) * 8 == int(address.split("/")[1]) for one in node.addresses)
    assert backend.apply(namespace, replace(RULES, node=node)) is False
    assert backend.read_state(namespace, RULES.marks) == RULES.epoch


def test_each_back_end_takes_over_from_the_other(namespace: Path) -> None:
    """iptables finds a rule to delete by comparing the kernel's structures, interface masks included.

    python-iptables itself writes a mask under which an interface ``net1`` counts as ``lo``, for IPv6.
    """
    restore, library = BACKENDS["legacy"][0], BACKENDS["python-iptables"][0]
    touch_tables(namespace, "legacy")
    before = saved(namespace, "legacy")
    for one, other in ((restore, library), (library, restore)):
        one.apply(namespace, RULES)
        assert other.apply(namespace, RULES) is False
        assert other.apply(namespace, replace(RULES, epoch=6, queue=8)) is True
        assert one.read_state(namespace, RULES.marks) == 6
        one.remove(namespace)
        assert saved(namespace, "legacy") == before


def test_the_library_s_own_interface_mask_is_found_and_mended(namespace: Path) -> None:
    library = BACKENDS["python-iptables"][0]
    library.apply(namespace, RULES)
    library_s_own = """
import iptc
chain = iptc.Chain(iptc.Table6("mangle"), "PREROUTING")
chain.delete_rule(chain.rules[0])
rule = iptc.Rule6()
rule.in_interface = "!lo"
rule.create_target("TRM-IN")
chain.insert_rule(rule)
"""
    run(namespace, f"{sys.executable} -", library_s_own)
    assert library.apply(namespace, RULES) is True
    run(namespace, "ip6tables-legacy -t mangle -C PREROUTING ! -i lo -j TRM-IN")


def test_an_error_names_the_command_and_what_it_said(namespace: Path, backend: RuleBackend) -> None:
    with pytest.raises(KernelError, match=r"(?s)(restore|python-iptables).*(70000|queue)"):
        backend.apply(namespace, PodRules(Marks(), 1, queue=70000))
    with pytest.raises(KernelError, match="trm-nowhere"):
        backend.apply(Path("/run/netns/trm-nowhere"), RULES)


def test_probing_finds_a_variant_and_leaves_no_namespace() -> None:
    names = set(netns.RUN_DIR.glob("*"))
    assert probe().name in ("iptables-nft", "iptables-legacy")
    assert set(netns.RUN_DIR.glob("*")) <= names
