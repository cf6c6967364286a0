"""The rules of one pod's network namespace, as values and as iptables-restore text. Pure: nothing here runs anything.

A packet of the pod passes, in PREROUTING when it arrives and in POSTROUTING when it leaves, never on ``lo``:

1. ``raw``: our mark bits are cleared. A pod can set marks itself (SO_MARK needs CAP_NET_RAW only).
2. ``TRM-NODE``: what arrives from a process of the pod's own node gets a mark as if the agent had accepted it.
3. ``TRM-IN`` / ``TRM-OUT``: a packet that comes back from the agent carries its answer in the packet mark. "Accepted"
   is saved to the connection; every answer leaves through ``TRM-DONE``, which clears our bits again.
4. Every SYN and SYN-ACK goes to the agent, whatever the connection's mark: a reused 5-tuple must not inherit a verdict.
   (Those of the node excepted, and the answer to its SYN, which has just set the mark.)
5. Neighbour discovery and multicast listener reports pass, when their hop limit proves that they stay on the link.
6. ``TRM-EPOCH``: packets of a connection that was accepted under the current epoch pass; all others, of whatever
   protocol, go to the agent. A match that returns, then the queue - never an inverted match, which a packet without
   conntrack would satisfy neither way. An ICMP error belongs to the connection it tells of, and shares its mark.

Saving looks at the accept bit alone: if it looked for the exact epoch, a packet would circle between rules and agent
for as long as the two differ.

How the node's packets are known, and what its own rules do for that: :mod:`agent.noderules`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final, Protocol

from agent.marks import Marks
from trireme_py.model import Address

Words = tuple[str, ...]
"""One rule without its chain, word by word, exactly as ``iptables -S`` prints it."""
Tables = Mapping[str, Mapping[str, Sequence[Words]]]
"""Table name to chain name to rules in order."""
Chains = dict[str, dict[str, tuple[Words, ...]]]
"""The same, of our own chains alone."""

DEFAULT_QUEUE: Final = 7
EPOCH_CHAIN: Final = "TRM-EPOCH"
UNFORWARDED: Final = 255
"""The hop limit that only a packet can have which nobody has forwarded (RFC 5082, section 2)."""
PREFIX: Final = "TRM-"
"""Chains of this prefix are ours, and so is a jump to one."""

Jumps = Mapping[str, Mapping[str, Words]]
"""Table name to built-in chain to the one rule of ours there."""
Network = IPv4Network | IPv6Network

JUMPS: Final[Jumps] = {
    "raw": {"PREROUTING": ("-j", "TRM-RAW"), "OUTPUT": ("-j", "TRM-RAW-OUT")},
    "mangle": {
        "PREROUTING": ("!", "-i", "lo", "-j", "TRM-IN"),
        "POSTROUTING": ("!", "-o", "lo", "-j", "TRM-OUT"),
    },
}
"""The one rule of ours in each built-in chain of a pod's namespace; always the first there."""

NEIGHBOUR_DISCOVERY: Final = range(133, 138)  # RFC 4861, section 4: hop limit 255, so it never crossed a router
_LISTENER_DISCOVERY: Final = (130, 131, 132, 143)  # RFC 2710 and 3810: hop limit 1, so it never will


class Family(Enum):
    """An address family; rules exist once for each. The value is the program's name."""

    IPV4 = "iptables"
    IPV6 = "ip6tables"

    @property
    def version(self) -> int:
        return 4 if self is Family.IPV4 else 6

    @property
    def hop_limit(self) -> tuple[str, str]:
        """What the field is called in matches: ``-m ttl --ttl-eq``, ``-m hl --hl-eq``; in upper case, the target."""
        return ("ttl", "--ttl") if self is Family.IPV4 else ("hl", "--hl")


class RuleSet(Protocol):
    """All rules of ours in one namespace. Hashable; two that are equal are the same rules."""

    @property
    def jumps(self) -> Jumps:
        """The rule in each built-in chain that leads to our chains; both families the same."""

    @property
    def shared(self) -> bool:
        """Whether others have rules there, perhaps very many: ours may stand behind theirs, and theirs are not read."""

    def chains(self, family: Family) -> Chains:
        """Return our own chains, by table, with their rules."""


_SURPLUS: Final = {
    # ldx 4*([0]&0xf); A = [2:2] - X; M[0] = A; A = [x+4:2]; X = A; A = M[0]; return A > X
    Family.IPV4: "10,177 0 0 0,40 0 0 2,28 0 0 0,2 0 0 0,72 0 0 4,7 0 0 0,96 0 0 0,45 0 1 0,6 0 0 65535,6 0 0 0",
    # A = [4:2]; M[0] = A; A = [44:2]; X = A; A = M[0]; return A > X. Extension headers make it look elsewhere; no
    # message of ours is behind one.
    Family.IPV6: "8,40 0 0 4,2 0 0 0,40 0 0 44,7 0 0 0,96 0 0 0,45 0 1 0,6 0 0 65535,6 0 0 0",
}
"""Classic BPF (linux/filter.h) that compares the length of the IP payload with the one in the UDP header."""


@dataclass(frozen=True, slots=True)
class OwnNode:
    """How a pod knows its own node; without addresses it knows none, and every packet is judged."""

    addresses: tuple[Address, ...] = ()
    pods: tuple[Network, ...] = ()
    """Where the pods are for which the node marks its packets."""


@dataclass(frozen=True, slots=True)
class PodRules:
    """Everything that may differ from pod to pod. Implements :class:`RuleSet`."""

    marks: Marks
    epoch: int
    queue: int = DEFAULT_QUEUE
    bypass: bool = False
    """Whether packets pass unjudged while nobody listens on the queue: the fail-open choice."""
    node: OwnNode = OwnNode()

    @property
    def jumps(self) -> Jumps:
        return JUMPS

    @property
    def shared(self) -> bool:
        return False

    def chains(self, family: Family) -> Chains:
        return wanted(self, family)


def wanted(rules: PodRules, family: Family) -> Chains:
    """Return the chains of a pod's namespace, by table, with their rules."""
    marks = rules.marks
    mask = f"{marks.mask:#x}"
    accept = ("-m", "mark", "--mark", f"{marks.accept_bit:#x}/{marks.accept_bit:#x}")
    clear_packet = ("-j", "MARK", "--set-xmark", f"0x0/{mask}")
    clear_connection = ("-j", "CONNMARK", "--set-xmark", f"0x0/{mask}")
    of_node = ("-m", "connmark", "--mark", f"{marks.node:#x}/{mask}")
    done = ("-g", "TRM-DONE")
    answered: tuple[Words, ...] = (
        (*accept, "-j", "CONNMARK", "--save-mark", "--nfmask", mask, "--ctmask", mask),
        (*accept, *done),
    )
    begun_anew = ("-m", "mark", "--mark", f"{marks.pass_clear:#x}/{mask}", *clear_connection)
    judged = ("-m", "mark", "!", "--mark", f"0x0/{mask}")
    # What follows would say the same of these, many rules later: nearly all packets are of them.
    unanswered = ("-m", "mark", "--mark", f"0x0/{mask}")
    accepted = ("-m", "connmark", "--mark", f"{marks.accept_bit:#x}/{marks.node:#x}")
    goes_on = (*_NO_SYN, *unanswered, *accepted, "-g", EPOCH_CHAIN)
    judge: tuple[Words, ...] = (
        (*_ANY_SYN, *_queue(rules)),
        (*_has_surplus(family), *_queue(rules)),
        *(on_link() if family is Family.IPV6 else ()),
    )
    from_node, own_node = _own_node(rules, family)
    return {
        "raw": {
            "TRM-RAW": (clear_packet,),
            "TRM-RAW-OUT": (clear_packet, (*_has_surplus(family), "-j", "CT", "--notrack")),
        },
        "mangle": {
            "TRM-DONE": (clear_packet,),
            EPOCH_CHAIN: epoch_chain(rules),
            **own_node,
            "TRM-IN": (
                *from_node,
                goes_on,
                *answered,
                begun_anew,
                (*_SYN, *judged, *of_node, *clear_connection),
                (*judged, *done),
                *judge,
                ("-p", "tcp", *of_node, "-j", "RETURN"),
                ("-j", EPOCH_CHAIN),
            ),
            "TRM-OUT": (
                goes_on,
                *answered,
                begun_anew,
                (*judged, *done),
                (*_SYN_ACK, *of_node, "-j", "RETURN"),
                *judge,
                (*of_node, "-j", "RETURN"),
                ("-j", EPOCH_CHAIN),
            ),
        },
    }


_ANY_SYN: Final = ("-p", "tcp", "-m", "tcp", "--tcp-flags", "SYN", "SYN")
_NO_SYN: Final = ("-p", "tcp", "-m", "tcp", "--tcp-flags", "SYN", "NONE")
_SYN: Final = ("-p", "tcp", "-m", "tcp", "--tcp-flags", "FIN,SYN,RST,ACK", "SYN")
_SYN_ACK: Final = ("-p", "tcp", "-m", "tcp", "--tcp-flags", "FIN,SYN,RST,ACK", "SYN,ACK")


def _own_node(rules: PodRules, family: Family) -> tuple[tuple[Words, ...], dict[str, tuple[Words, ...]]]:
    """Return the rules that lead to what is done about the own node's packets, and the chains that do it."""
    marks = rules.marks
    of_node = ("-m", "connmark", "--mark", f"{marks.node:#x}/{marks.mask:#x}")
    mark = ("-j", "MARK", "--set-xmark", f"{marks.node:#x}/{marks.mask:#x}")
    sources = [
        f"{one}/{one.max_prefixlen}" for one in map(ip_address, rules.node.addresses) if one.version == family.version
    ]
    match, option = family.hop_limit
    fresh = ("-m", match, f"{option}-eq", str(UNFORWARDED))
    pods = [pods for pods in rules.node.pods if pods.version == family.version]
    return tuple(("-d", str(network), *fresh, "-j", "TRM-NODE") for network in pods if sources), {
        "TRM-NODE": tuple(("-s", source, "-g", "TRM-NODE-OWN") for source in sources),
        # Never an ICMP error: it is part of the connection it tells of, which may be anybody's.
        "TRM-NODE-OWN": (
            (*_ANY_SYN, *mark),
            ("-m", "conntrack", "--ctstate", "NEW", *mark),
            (*of_node, *mark),
        ),
    }


def epoch_chain(rules: PodRules) -> tuple[Words, Words]:
    """Return the two rules that name the epoch."""
    return (*_accepted_now(rules.marks, rules.epoch), "-j", "RETURN"), _queue(rules)


def _accepted_now(marks: Marks, epoch: int) -> Words:
    return "-m", "connmark", "--mark", f"{marks.accepted(epoch):#x}/{marks.mask:#x}"


def _queue(rules: PodRules) -> Words:
    words = ("-j", "NFQUEUE", "--queue-num", str(rules.queue))
    return (*words, "--queue-bypass") if rules.bypass else words


def _has_surplus(family: Family) -> Words:
    """Match UDP datagrams that are shorter than their IP packet (RFC 9868): the surplus may hold a message of ours."""
    return "-p", "udp", "-m", "bpf", "--bytecode", _SURPLUS[family]


def on_link() -> tuple[Words, ...]:
    """Let pass what IPv6 needs on every link, and what never leaves it."""

    def rule(kind: int, hop_limit: int) -> Words:
        match = ("-p", "ipv6-icmp", "-m", "icmp6", "--icmpv6-type", str(kind))
        return (*match, "-m", "hl", "--hl-eq", str(hop_limit), "-j", "RETURN")

    return *(rule(kind, 255) for kind in NEIGHBOUR_DISCOVERY), *(rule(kind, 1) for kind in _LISTENER_DISCOVERY)


def parse_save(text: str) -> dict[str, dict[str, list[Words]]]:
    """Read the output of ``iptables-save`` or ``iptables -S`` of whole tables. Chains without rules are there too."""
    tables: dict[str, dict[str, list[Words]]] = {}
    chains: dict[str, list[Words]] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            chains = tables.setdefault(line[1:].strip(), {})
        elif line.startswith(":"):
            chains.setdefault(line[1:].split(maxsplit=1)[0], [])
        elif line.startswith("-A "):
            _, chain, *words = shlex.split(line)
            chains.setdefault(chain, []).append(tuple(words))
    return tables


def idle_chains(text: str, table: str) -> list[str]:
    """Return those built-in chains of ``table`` where our jumps go that decide nothing: no rule, policy ACCEPT."""
    chains = parse_save(text).get(table, {})
    refusing = {line[1:].split()[0] for line in text.splitlines() if line.startswith(":") and " ACCEPT " not in line}
    return [chain for chain in JUMPS[table] if chain in chains and not chains[chain] and chain not in refusing]


def is_ours(rule: Words) -> bool:
    """Tell whether a rule of a built-in chain is one of our jumps, of this or any earlier version."""
    return len(rule) >= 2 and rule[-2] in ("-j", "-g") and rule[-1].startswith(PREFIX)


def own_chains(present: Tables, jumps: Jumps = JUMPS) -> Chains:
    """Return the chains of ours among those read back, of the tables that ``jumps`` names."""
    return {
        table: {chain: tuple(rules) for chain, rules in present.get(table, {}).items() if chain.startswith(PREFIX)}
        for table in jumps
    }


def in_place(present: Tables, expected: Chains, jumps: Jumps = JUMPS, *, leading: bool = True) -> bool:
    """Tell whether exactly the chains ``expected`` are there, each jump once and, if ``leading``, at the head."""
    if own_chains(present, jumps) != expected:
        return False
    for table, by_chain in jumps.items():
        for chain, jump in by_chain.items():
            held = present.get(table, {}).get(chain, ())
            if sum(map(is_ours, held)) != 1 or jump not in (held[:1] if leading else held):
                return False
    return True


def render_apply(present: Tables, rules: RuleSet, family: Family) -> str:
    """Return the text for ``iptables-restore -n`` that brings ``present`` to ``rules``, one transaction a table.

    Chains are refilled, never deleted and made again: the kernel drops packets that wait in a queue when their chain
    goes. ``raw`` comes first, so that no mark of a pod's own making ever meets our other rules.
    """
    lines = []
    for table, chains in rules.chains(family).items():
        there = present.get(table, {})
        lines.append(f"*{table}")
        lines += (f":{chain} - [0:0]" for chain in chains)
        lines += (line("-A", chain, rule) for chain, held in chains.items() for rule in held)
        lines += _delete_jumps(there)
        lines += (f"-I {chain} 1 {_join(jump)}" for chain, jump in rules.jumps[table].items())
        lines += _delete_chains([chain for chain in there if chain.startswith(PREFIX) and chain not in chains])
        lines.append("COMMIT")
    return "\n".join(lines) + "\n"


def render_epoch(rules: PodRules) -> str:
    """Return the text for ``iptables-restore -n`` that changes the epoch alone; the same for both families."""
    refill = (line("-A", EPOCH_CHAIN, rule) for rule in epoch_chain(rules))
    return "\n".join(("*mangle", f":{EPOCH_CHAIN} - [0:0]", *refill, "COMMIT")) + "\n"


def render_remove(present: Tables) -> str:
    """Return the text for ``iptables-restore -n`` that removes everything of ours; empty if nothing is there."""
    lines = []
    # mangle goes first: without raw, a mark of a pod's own making would meet our other rules.
    for table in ("mangle", "raw"):
        there = present.get(table, {})
        body = [*_delete_jumps(there), *_delete_chains([chain for chain in there if chain.startswith(PREFIX)])]
        if body:
            lines += [f"*{table}", *body, "COMMIT"]
    return "\n".join(lines) + "\n" if lines else ""


def _delete_jumps(chains: Mapping[str, Sequence[Words]]) -> list[str]:
    foreign = ((chain, held) for chain, held in chains.items() if not chain.startswith(PREFIX))
    return [line("-D", chain, rule) for chain, held in foreign for rule in held if is_ours(rule)]


def _delete_chains(chains: list[str]) -> list[str]:
    # All are emptied before the first is deleted: they jump to each other.
    return [f"-F {chain}" for chain in chains] + [f"-X {chain}" for chain in chains]


def line(command: str, chain: str, rule: Words) -> str:
    """Return one line for ``iptables-restore``."""
    return f"{command} {chain} {_join(rule)}"


def _join(rule: Words) -> str:
    # iptables-restore knows double quotes only; shlex would write single ones, and quote the "!" of a negation too.
    escaped = (word.replace("\\", "\\\\").replace('"', '\\"') for word in rule)
    return " ".join(f'"{word}"' if any(map(str.isspace, word)) else word for word in escaped)


def epoch_in_force(present: Tables, marks: Marks) -> int | None:
    """Return the epoch that the rules read back name, None if there is none of this mask."""
    rules = present.get("mangle", {}).get(EPOCH_CHAIN, ())
    mark = f"/{marks.mask:#x}"
    if not rules or rules[0][:3] != ("-m", "connmark", "--mark") or not rules[0][3].endswith(mark):
        return None
    return marks.epoch(int(rules[0][3].removesuffix(mark), 16))
