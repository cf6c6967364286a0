"""The whole state machine of the exchange, for both roles, as one table.

States say what has happened, and come in pairs with the message that made them happen. "Bare" steps are those of a
peer that takes no part: it stays unidentified and is judged by its address. Everything that changes a state goes
through :func:`advance`; docs/protocol.md draws this table, and a test compares the two.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from trireme_py.errors import BadPacket
from trireme_py.model import DropReason


class State(Enum):
    """Where one end of one connection stands."""

    CLOSED = "closed"
    # the client's end
    SYN_CREATED = "SYN created"
    BARE_SYN_SENT = "bare SYN sent"
    SYN_ACK_CONSUMED = "SYN-ACK consumed"
    BARE_SYN_ACK_ADMITTED = "bare SYN-ACK admitted"
    ACK_CREATED = "ACK created"
    BARE_ACK_SENT = "bare ACK sent"
    # the server's end
    SYN_CONSUMED = "SYN consumed"
    BARE_SYN_ADMITTED = "bare SYN admitted"
    SYN_ACK_CREATED = "SYN-ACK created"
    BARE_SYN_ACK_SENT = "bare SYN-ACK sent"
    ACK_CONSUMED = "ACK consumed"
    BARE_ACK_ADMITTED = "bare ACK admitted"


class Step(Enum):
    """What one packet did, once it was verified and judged."""

    CREATE_SYN = "create SYN"
    SEND_BARE_SYN = "send bare SYN"
    CONSUME_SYN_ACK = "consume SYN-ACK"
    ADMIT_BARE_SYN_ACK = "admit bare SYN-ACK"
    CREATE_ACK = "create ACK"
    SEND_BARE_ACK = "send bare ACK"
    CONSUME_SYN = "consume SYN"
    ADMIT_BARE_SYN = "admit bare SYN"
    CREATE_SYN_ACK = "create SYN-ACK"
    SEND_BARE_SYN_ACK = "send bare SYN-ACK"
    CONSUME_ACK = "consume ACK"
    ADMIT_BARE_ACK = "admit bare ACK"


TRANSITIONS: Final[dict[tuple[State, Step], State]] = {
    # Client. A retransmitted SYN keeps its nonce; every other one goes bare, in case something on the path minds data
    # in a SYN, and the answer to either is good.
    (State.CLOSED, Step.CREATE_SYN): State.SYN_CREATED,
    (State.CLOSED, Step.SEND_BARE_SYN): State.BARE_SYN_SENT,
    (State.SYN_CREATED, Step.CREATE_SYN): State.SYN_CREATED,
    (State.SYN_CREATED, Step.SEND_BARE_SYN): State.SYN_CREATED,
    (State.BARE_SYN_SENT, Step.SEND_BARE_SYN): State.BARE_SYN_SENT,
    (State.SYN_CREATED, Step.CONSUME_SYN_ACK): State.SYN_ACK_CONSUMED,
    (State.SYN_CREATED, Step.ADMIT_BARE_SYN_ACK): State.BARE_SYN_ACK_ADMITTED,
    (State.BARE_SYN_SENT, Step.ADMIT_BARE_SYN_ACK): State.BARE_SYN_ACK_ADMITTED,
    (State.BARE_SYN_ACK_ADMITTED, Step.ADMIT_BARE_SYN_ACK): State.BARE_SYN_ACK_ADMITTED,
    # One SYN-ACK is consumed and proven for, repeatedly if need be, and no other: a second one could be the answer to a
    # copy of our SYN, and its proof would give somebody on the path a connection in our name.
    (State.SYN_ACK_CONSUMED, Step.CREATE_ACK): State.ACK_CREATED,
    (State.ACK_CREATED, Step.CREATE_ACK): State.ACK_CREATED,
    (State.BARE_SYN_ACK_ADMITTED, Step.SEND_BARE_ACK): State.BARE_ACK_SENT,
    (State.BARE_ACK_SENT, Step.SEND_BARE_ACK): State.BARE_ACK_SENT,
    (State.BARE_ACK_SENT, Step.ADMIT_BARE_SYN_ACK): State.BARE_ACK_SENT,
    # Server. Nothing but the proof leads from an identified SYN to delivered data.
    (State.CLOSED, Step.CONSUME_SYN): State.SYN_CONSUMED,
    (State.CLOSED, Step.ADMIT_BARE_SYN): State.BARE_SYN_ADMITTED,
    (State.SYN_CONSUMED, Step.CREATE_SYN_ACK): State.SYN_ACK_CREATED,
    (State.SYN_ACK_CREATED, Step.CREATE_SYN_ACK): State.SYN_ACK_CREATED,
    (State.BARE_SYN_ADMITTED, Step.SEND_BARE_SYN_ACK): State.BARE_SYN_ACK_SENT,
    (State.BARE_SYN_ACK_SENT, Step.SEND_BARE_SYN_ACK): State.BARE_SYN_ACK_SENT,
    (State.SYN_ACK_CREATED, Step.CONSUME_ACK): State.ACK_CONSUMED,
    (State.BARE_SYN_ACK_SENT, Step.ADMIT_BARE_ACK): State.BARE_ACK_ADMITTED,
}

AWAITING_SYN_ACK: Final = frozenset({State.SYN_CREATED, State.BARE_SYN_SENT})
"""The client's SYN is out and nothing has been admitted yet."""
AWAITING_ACK: Final = frozenset({State.SYN_ACK_CONSUMED, State.BARE_SYN_ACK_ADMITTED})
"""The client has judged its server; its own kernel has yet to answer."""
OPENED: Final = frozenset({State.ACK_CREATED, State.BARE_ACK_SENT})
"""The client's ACK is out: the connection is among the live ones."""


def advance(state: State, step: Step) -> State:
    """Return the state after ``step``. Raises BadPacket(UNEXPECTED) where the table has no such step."""
    following = TRANSITIONS.get((state, step))
    if following is None:
        raise BadPacket(DropReason.UNEXPECTED, f"{step.value} when {state.value}")
    return following


def diagram() -> str:
    """Return the table as a Mermaid state diagram, for docs/protocol.md."""

    def name(state: State) -> str:
        return "[*]" if state is State.CLOSED else state.name

    lines = [f"    {name(old)} --> {name(new)}: {step.value}" for (old, step), new in TRANSITIONS.items()]
    return "\n".join(["stateDiagram-v2", *lines])
