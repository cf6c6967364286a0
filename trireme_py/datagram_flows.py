"""What is remembered of UDP flows. Every table here is bounded; see docs/protocol.md for the numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Final

from trireme_py.datagram_messages import End
from trireme_py.flows import BoundedTable, Held, Tuple5
from trireme_py.identities import LocalIdentity, Peer
from trireme_py.model import Address
from trireme_py.packet import Packet
from trireme_py.replay import Counting, PlainCounter, ReplayWindow, Window

_MS: Final = 1_000_000

HELLO_INTERVAL_NS: Final = 80 * _MS
"""Between two HELLOs of a flow that waits for an answer."""
HELLOS: Final = 4
"""So a silent peer costs 320 ms, once: it is remembered."""
SILENT_NS: Final = 30_000 * _MS
"""How long a destination that answered no HELLO counts as unidentified without being asked."""
WARM_NS: Final = 10_000 * _MS
"""How long a proof serves for further flows of the same two pods, after the last of them. The client gives it up two
seconds earlier than the server."""
FLOW_NS: Final = 10_000 * _MS
"""How long a flow whose exchange is under way is remembered after its last datagram."""
MAX_FLOWS: Final = 4096
"""Per pod and role."""
MAX_RESUMES: Final = 32
"""Datagrams of one flow that may prove themselves before one of them is confirmed; a longer burst says HELLO."""
MAX_TICKETS: Final = 4096
RENEWAL_NS: Final = 1_000 * _MS
"""Between two times that an accepted flow is begun anew, or that the client of an unknown one is asked to: anybody can
ask."""


class Stage(Enum):
    """Where one end of one flow stands."""

    HELLO_SENT = "HELLO sent"
    RESUMED = "RESUME sent"
    HELLO_CONSUMED = "HELLO consumed"
    RESUME_CONSUMED = "RESUME consumed"
    PROVEN = "proven"


@dataclass(slots=True, eq=False)
class Warm:
    """A server that a client has identified a moment ago."""

    peer: Peer
    local: LocalIdentity
    key: bytes
    ticket: bytes
    server: End
    """The server's own end, as it authenticated it."""
    client: Address
    """Our address as that server saw it."""
    counter: Counting = field(default_factory=PlainCounter)


@dataclass(slots=True, eq=False)
class Ticket:
    """A client that a server has identified a moment ago; named by the nonce of the server's answer."""

    peer: Peer
    local: LocalIdentity
    key: bytes
    server: End
    client: Address
    window: Window = field(default_factory=ReplayWindow)


@dataclass(slots=True, eq=False)
class ClientDatagrams:
    """A flow that the local pod began."""

    key: Tuple5
    local: LocalIdentity
    hello: bytes
    first: Packet
    """The flow's first datagram, whose headers our own datagrams borrow."""
    waits: bool
    """Whether nothing may leave before the server is known."""
    stage: Stage
    began_ns: int
    hellos: int = 0
    """HELLOs sent."""
    asked_ns: int = 0
    """When the last HELLO was sent with a datagram, or ahead of one."""
    anew: bool = False
    """Whether the flow was accepted before, and answers of whoever stands there now wait for the ANSWER."""
    follows: bool = False
    """Whether what is held waits only until our HELLO has left ahead of it."""
    warm: Warm | None = None
    resumes: dict[int, bytes] = field(default_factory=dict)
    """The RESUMEs sent, by counter: the first 52 octets of each."""
    peer: Peer | None = None
    actual: End | None = None
    pair_key: bytes = b""
    answer_fixed: bytes = b""
    """The first 96 octets of the ANSWER that the proof is for; nothing if it is for a CONFIRM."""
    proof: bytes = b""
    confirmed: int = 0
    held: Held = field(default_factory=Held)
    """Datagrams that would leave."""
    replies: Held = field(default_factory=Held)
    """Datagrams that arrived and wait for their confirmation."""

    @property
    def settled(self) -> bool:
        """Whether all was said that a server could want to hear again."""
        return self.stage is Stage.PROVEN and (bool(self.answer_fixed) or self.hellos >= HELLOS)


@dataclass(slots=True, eq=False)
class ServerDatagrams:
    """A flow that somebody began with the local pod."""

    key: Tuple5
    stage: Stage
    hello_fixed: bytes
    peer: Peer
    local: LocalIdentity
    pair_key: bytes
    waits: bool
    """Whether nothing may arrive before the client has proved itself."""
    request: int
    """Octets heard, less those said: nothing that is said is larger."""
    answer: bytes = b""
    nonce: bytes = b""
    confirm: bytes = b""
    said_ns: int = 0
    """When something was said last."""
    held: Held = field(default_factory=Held)


@dataclass(slots=True, eq=False)
class DatagramTables:
    """One pod's UDP flows under way."""

    RENEWED: ClassVar = -1

    clients: BoundedTable[Tuple5, ClientDatagrams] = field(default_factory=lambda: BoundedTable(MAX_FLOWS, FLOW_NS))
    servers: BoundedTable[Tuple5, ServerDatagrams] = field(default_factory=lambda: BoundedTable(MAX_FLOWS, FLOW_NS))
    asking: BoundedTable[Tuple5, ClientDatagrams] = field(
        default_factory=lambda: BoundedTable(MAX_FLOWS, HELLO_INTERVAL_NS)
    )
    """Flows whose HELLO is to be sent again."""
    warm: BoundedTable[tuple[Address, int], Warm] = field(
        default_factory=lambda: BoundedTable(MAX_TICKETS, WARM_NS - 2_000 * _MS)
    )
    tickets: BoundedTable[bytes, Ticket] = field(default_factory=lambda: BoundedTable(MAX_TICKETS, WARM_NS))
    silent: BoundedTable[tuple[Address, int], bool] = field(default_factory=lambda: BoundedTable(MAX_FLOWS, SILENT_NS))
    renewed: BoundedTable[Tuple5, int] = field(default_factory=lambda: BoundedTable(MAX_FLOWS, RENEWAL_NS))
    """Flows that were begun anew, or whose client was asked to, a moment ago: RENEWED, or the octets heard so far of a
    client that is still to be asked."""
    own: BoundedTable[bytes, int] = field(default_factory=lambda: BoundedTable(MAX_FLOWS, 1_000 * _MS))
    """Datagrams that we sent ourselves and that are yet to pass the pod's rules, by their octets: how many."""

    def timed(self) -> tuple[BoundedTable[Any, Any], ...]:
        """Every table, for its deadline."""
        return (
            self.asking, self.clients, self.servers, self.warm, self.tickets, self.silent, self.renewed, self.own
        )  # fmt: skip
