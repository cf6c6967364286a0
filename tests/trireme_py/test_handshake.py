"""The table of states: complete, closed, and the same in the document."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from trireme_py.errors import BadPacket
from trireme_py.handshake import (
    AWAITING_ACK,
    AWAITING_SYN_ACK,
    OPENED,
    TRANSITIONS,
    State,
    Step,
    advance,
    diagram,
)
from trireme_py.model import DropReason

ROOT = Path(__file__).parents[2]
ENDS = {State.ACK_CREATED, State.BARE_ACK_SENT, State.ACK_CONSUMED, State.BARE_ACK_ADMITTED}
CLIENT_STEPS = {
    Step.CREATE_SYN, Step.SEND_BARE_SYN, Step.CONSUME_SYN_ACK, Step.ADMIT_BARE_SYN_ACK, Step.CREATE_ACK,
    Step.SEND_BARE_ACK,
}  # fmt: skip


@pytest.mark.parametrize(("state", "step"), list(product(State, Step)))
def test_step_is_in_the_table_or_raises(state: State, step: Step) -> None:
    if (state, step) in TRANSITIONS:
        assert advance(state, step) is TRANSITIONS[state, step]
        return
    with pytest.raises(BadPacket) as refusal:
        advance(state, step)
    assert refusal.value.reason is DropReason.UNEXPECTED


def reachable(start: State) -> set[State]:
    found = {start}
    while more := {new for (old, _), new in TRANSITIONS.items() if old in found} - found:
        found |= more
    return found


def test_every_state_is_reached_and_leads_to_an_end() -> None:
    assert reachable(State.CLOSED) == set(State)
    for state in State:
        assert reachable(state) & ENDS


def test_every_step_is_taken_somewhere() -> None:
    assert {step for _, step in TRANSITIONS} == set(Step)


def test_nothing_leads_back_to_closed() -> None:
    assert State.CLOSED not in TRANSITIONS.values()


def test_ends_of_the_two_roles_do_not_meet() -> None:
    client = {new for (old, step), new in TRANSITIONS.items() if step in CLIENT_STEPS}
    server = {new for (old, step), new in TRANSITIONS.items() if step not in CLIENT_STEPS}
    assert not client & server
    for (old, step), _ in TRANSITIONS.items():
        assert old is State.CLOSED or (old in client) == (step in CLIENT_STEPS)


def test_only_the_proof_leads_from_an_identified_syn_to_delivered_data() -> None:
    assert reachable(State.SYN_CONSUMED) == {State.SYN_CONSUMED, State.SYN_ACK_CREATED, State.ACK_CONSUMED}
    assert [key for key, new in TRANSITIONS.items() if new is State.ACK_CONSUMED] == [
        (State.SYN_ACK_CREATED, Step.CONSUME_ACK)
    ]


def test_identified_answer_is_taken_once() -> None:
    """A second SYN-ACK could be the answer to a copy of our SYN: no state that has one may consume another."""
    for state in reachable(State.SYN_ACK_CONSUMED):
        assert (state, Step.CONSUME_SYN_ACK) not in TRANSITIONS


def test_groups_of_states_are_the_client_s_and_apart() -> None:
    groups = (AWAITING_SYN_ACK, AWAITING_ACK, OPENED)
    client = {new for (_, step), new in TRANSITIONS.items() if step in CLIENT_STEPS}
    assert frozenset.union(*groups) == client
    assert sum(map(len, groups)) == len(client)


def test_document_shows_this_table() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    drawn = text.partition("```mermaid\n")[2].partition("\n```")[0]
    assert drawn == diagram()
