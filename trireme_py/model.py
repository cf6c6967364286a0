"""The vocabulary every other module shares.

Values only: no I/O, no clock, no randomness, and no import beyond the standard library. An address is its packed
network-order form (4 or 16 bytes) everywhere below the command line, so that comparing one costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Protocol as Interface

Address = bytes
"""A packed IPv4 (4 bytes) or IPv6 (16 bytes) address in network byte order."""


class Direction(Enum):
    """Which side of a connection a decision was made for, as NetworkPolicy names the sides."""

    INGRESS = "ingress"
    EGRESS = "egress"


class Hook(Enum):
    """Where in the pod's network namespace a packet was caught."""

    NETWORK = "network"
    """mangle PREROUTING: the packet arrives at the pod."""
    APPLICATION = "application"
    """mangle POSTROUTING: the packet leaves the pod."""


class Protocol(IntEnum):
    """IP protocol numbers (IANA) that the project names; any other protocol is a plain ``int``."""

    ICMP = 1
    TCP = 6
    UDP = 17
    ICMPV6 = 58
    SCTP = 132


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment, read once by the shell and passed in; the core never reads a clock."""

    mono_ns: int
    """Monotonic nanoseconds, for deadlines and rates."""
    wall_s: float
    """Seconds since the Unix epoch, for the validity of assertions only."""


class Labels(Interface):
    """What a selector may ask of a pod's labels, whether they are in clear or hashed (docs/protocol.md)."""

    def has_key(self, key: str) -> bool:
        """Tell whether a label named ``key`` is there, whatever its value."""

    def has_value(self, key: str, value: str) -> bool:
        """Tell whether the label ``key`` is there with exactly ``value``."""

    def describe(self) -> Mapping[str, str]:
        """Return the labels for people to read; hashed labels come back as an empty mapping."""


@dataclass(frozen=True, slots=True)
class PlainLabels:
    """Labels in clear."""

    items: Mapping[str, str] = field(default_factory=dict)

    def has_key(self, key: str) -> bool:
        return key in self.items

    def has_value(self, key: str, value: str) -> bool:
        return self.items.get(key) == value

    def describe(self) -> Mapping[str, str]:
        return self.items


@dataclass(frozen=True, slots=True)
class NamedPort:
    """A container port that policies may name (`ports[].name` of a container)."""

    name: str
    protocol: int
    number: int


@dataclass(frozen=True, slots=True, eq=False)
class Identity:
    """Who a pod is: the authenticated claims of one assertion.

    Equality and hash are those of the 16-byte id alone, because the id is a hash of the signed assertion; decisions
    can be cached by it.
    """

    id: bytes
    """16 bytes; docs/protocol.md, "Identity id". Offline tools may use any unique 16 bytes."""
    trust_domain: str
    namespace: str
    service_account: str
    pod: str
    labels: Labels
    named_ports: tuple[NamedPort, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def name(self) -> str:
        """``namespace/pod``, as people write it; the pod is ``*`` where its assertion had no room for the name."""
        return f"{self.namespace}/{self.pod or '*'}"

    @property
    def spiffe_id(self) -> str:
        """The workload's SPIFFE id (SPIFFE-ID standard, section 2)."""
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


class Reason(Enum):
    """Why a flow was allowed or denied by policy. The value is the log field and the metric label."""

    NO_ISOLATION = "no_isolation"
    """Allowed: no policy selects the pod in this direction."""
    POLICY = "policy"
    """Allowed or denied by a rule that names an identity (a pod, a namespace, or anybody)."""
    IPBLOCK = "ipblock"
    """Allowed by an ipBlock (or network) peer, whoever the peer is."""
    NO_MATCH = "no_match"
    """Denied: the pod is isolated and no rule matched the identified peer."""
    UNIDENTIFIED = "unidentified"
    """Denied: no rule matched, and the peer brought no identity."""
    DENY_RULE = "deny_rule"
    """Denied by a ClusterNetworkPolicy Deny rule."""
    AUDIT = "audit"
    """Allowed only because the policy that denies it is in audit mode."""
    NOT_YET_IDENTIFIED = "not_yet_identified"
    """Allowed only because agents are still being installed: the peer's node may have none yet."""
    FAIL_OPEN = "fail_open"
    """Allowed although it could not be judged, because the installation chose fail-open."""


class DropReason(Enum):
    """Why a packet was dropped: the exception's field, the metric label, the log field, and what tests assert."""

    # the packet itself
    MALFORMED_PACKET = "malformed_packet"
    BAD_CHECKSUM = "bad_checksum"
    FRAGMENT = "fragment"
    # our message
    MALFORMED_MESSAGE = "malformed_message"
    VERSION = "version"
    # the assertion
    MALFORMED_ASSERTION = "malformed_assertion"
    BAD_SIGNATURE = "bad_signature"
    TRUST_DOMAIN = "trust_domain"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    UNKNOWN_SIGNER = "unknown_signer"
    RATE_LIMITED = "rate_limited"
    # the exchange
    BAD_MAC = "bad_mac"
    RELAYED = "relayed"
    NO_STATE = "no_state"
    UNPROVEN = "unproven"
    REPEATED = "repeated"
    """A repeated packet whose first copy was dealt with: normal under loss, never delivered twice."""
    UNEXPECTED = "unexpected"
    PAYLOAD_ACKNOWLEDGED = "payload_acknowledged"
    UNEXPLAINED_TRANSLATION = "unexplained_translation"
    """A server that may be behind a load balancer or may be a relay: it is asked again, as somebody unidentified."""
    SIMULTANEOUS_OPEN = "simultaneous_open"
    REPLAYED = "replayed"
    """A datagram whose counter was used before, or is too old to tell."""
    CONSUMED = "consumed"
    """A datagram of the exchange alone, with nothing in it for the pod: normal."""
    # the judgement
    POLICY = "policy"
    CUT = "cut"
    """A packet of a live connection that policy no longer allows."""
    # ourselves
    HOLD_LIMIT = "hold_limit"
    HOLD_TIMEOUT = "hold_timeout"
    TABLE_FULL = "table_full"
    INTERNAL_ERROR = "internal_error"
    NOT_READY = "not_ready"


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one flow in one direction, explained: the policy engine's answer, or a failed exchange."""

    allowed: bool
    reason: Reason | DropReason
    """A DropReason: the exchange itself failed, and policy was not asked."""
    policy: str = ""
    """The object that decided, as ``Kind/namespace/name`` (``NetworkPolicy/shop/allow-web``), or empty."""
    rule: int | None = None
    """Zero-based index of the rule that matched within that object's direction."""
    peer: int | None = None
    """Zero-based index of the peer within that rule; None for a rule without peers."""
    nearest: str = ""
    """For a denial, in one sentence: the rule that came closest and what it lacked, or how the exchange failed."""


class PolicyView(Interface):
    """What the data path sees of policy: the compiled policy of one local pod. Immutable; swapped as a whole."""

    @property
    def installing(self) -> bool:
        """Whether agents are still being installed: a pod without an identity may be on a node that has none yet."""

    def isolated(self, direction: Direction) -> bool:
        """Tell whether any policy selects the pod for ``direction``."""

    def may_open(self, protocol: int) -> bool:
        """Tell whether some destination could be allowed on egress, before the destination is known."""

    def decide(
        self, direction: Direction, identity: Identity | None, address: Address, protocol: int, port: int | None
    ) -> Decision:
        """Judge one flow.

        ``identity`` and ``address`` are the peer's (None: it brought no identity). ``port`` is the destination's own
        port in host byte order, after any translation; None for protocols without ports.
        """

    def could_allow(self, direction: Direction, address: Address, protocol: int, port: int | None) -> bool:
        """Tell whether a peer at ``address`` could be allowed if it had an identity, whatever that were."""


class Verdict(Enum):
    """The one answer every packet gets. How a verdict is carried to the kernel: docs/datapath.md."""

    PASS = "pass"
    """Let this packet through; the connection stays unmarked."""
    PASS_CLEAR = "pass_clear"
    """Let this packet through and clear the connection's mark (outgoing SYN and SYN-ACK)."""
    ACCEPT = "accept"
    """Let it through and mark the connection accepted under the pod's current epoch."""
    DROP = "drop"
    HOLD = "hold"
    """Keep the packet in the queue; a later result releases it, at the latest at its deadline."""


@dataclass(frozen=True, slots=True)
class Release:
    """The verdict of a packet that was held earlier; ``ticket`` is the number the shell gave it."""

    ticket: int
    verdict: Verdict
    reason: DropReason | None = None
    packet: bytes | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """Exactly one verdict for one packet, and what else is to be done, in this order: verdict, send, release."""

    verdict: Verdict
    reason: DropReason | None = None
    """Set if, and only if, the verdict is DROP."""
    packet: bytes | None = None
    """The packet to let through in place of the one received; None: as it is."""
    send: tuple[bytes, ...] = ()
    """Whole IP packets of our own, to be sent from the pod's namespace."""
    release: tuple[Release, ...] = ()


@dataclass(frozen=True, slots=True)
class FlowEvent:
    """One connection or flow was judged. The agent logs and counts it; the data path only reports it."""

    wall_s: float
    pod: str
    """The local pod, ``namespace/name``."""
    direction: Direction
    decision: Decision
    protocol: int
    source: Address
    source_port: int | None
    destination: Address
    """As the local pod sees it: on egress this may be a Service address."""
    destination_port: int | None
    peer: Identity | None
    peer_proven: bool
    """Whether the peer proved that it holds the identity (a denied SYN's identity is only claimed)."""
    destination_actual: tuple[Address, int] | None = None
    """On egress: the authenticated address and port behind a translated destination."""
