"""The mark bits: validated masks, foreign bits, epochs in a circle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.marks import FIRST_EPOCH, LAST_EPOCH, Marks, free_epoch, newer_epoch, next_epoch
from trireme_py.errors import ConfigError, KernelError
from trireme_py.model import Verdict

MASKS = st.integers(0, 24).map(lambda shift: 0xFF << shift)
EPOCHS = st.integers(FIRST_EPOCH, LAST_EPOCH)
THROUGH = st.sampled_from([Verdict.ACCEPT, Verdict.PASS, Verdict.PASS_CLEAR])


@pytest.mark.parametrize("mask", [0, -0xFF, 0x7F, 0x1FF, 0xF0F00, 0xFE0000, 0x7F000000, 0xFF << 25, 0xFFFFFFFF])
def test_a_mask_is_eight_adjacent_bits(mask: int) -> None:
    with pytest.raises(ConfigError, match="mark mask"):
        Marks(mask)


@given(MASKS, THROUGH, EPOCHS, st.integers(0, 0xFFFFFFFF))
def test_an_answer_leaves_foreign_bits_alone(mask: int, verdict: Verdict, epoch: int, mark: int) -> None:
    marks = Marks(mask)
    answer = marks.answer(verdict, mark, epoch)
    assert answer & ~mask == mark & ~mask
    assert answer & mask
    assert bool(answer & marks.accept_bit) == (verdict is Verdict.ACCEPT)
    assert marks.epoch(answer) == (epoch if verdict is Verdict.ACCEPT else None)
    assert (answer & mask == marks.pass_clear) == (verdict is Verdict.PASS_CLEAR)


def test_the_values_are_those_of_the_documentation() -> None:
    marks = Marks()
    assert marks.accepted(1) == 0x810000
    assert marks.answer(Verdict.PASS, 0, 1) == 0x400000
    assert marks.pass_clear == 0x410000
    assert marks.node == 0xC00000


@given(MASKS)
def test_the_node_s_mark_is_saved_like_an_answer_and_is_no_epoch(mask: int) -> None:
    marks = Marks(mask)
    assert marks.node & marks.accept_bit
    assert marks.epoch(marks.node) is None
    assert marks.node not in {marks.accepted(epoch) for epoch in range(FIRST_EPOCH, LAST_EPOCH + 1)}


@pytest.mark.parametrize("verdict", [Verdict.DROP, Verdict.HOLD])
def test_what_lets_nothing_through_has_no_mark(verdict: Verdict) -> None:
    with pytest.raises(ValueError, match="lets nothing through"):
        Marks().answer(verdict, 0, 1)


@pytest.mark.parametrize("epoch", [0, 64, -1])
def test_there_is_no_mark_for_what_is_not_an_epoch(epoch: int) -> None:
    with pytest.raises(ValueError, match="epoch"):
        Marks().accepted(epoch)


def test_epochs_go_in_a_circle() -> None:
    seen = [FIRST_EPOCH]
    while (after := next_epoch(seen[-1])) != FIRST_EPOCH:
        seen.append(after)
    assert seen == list(range(FIRST_EPOCH, LAST_EPOCH + 1))


@given(EPOCHS, st.integers(0, 31))
def test_the_later_of_two_near_epochs(epoch: int, steps: int) -> None:
    later = epoch
    for _ in range(steps):
        later = next_epoch(later)
    assert newer_epoch(epoch, later) == newer_epoch(later, epoch) == later


def test_an_epoch_in_use_is_skipped() -> None:
    assert free_epoch(LAST_EPOCH, {1, 2}) == 3
    with pytest.raises(KernelError, match="all 63 policy epochs"):
        free_epoch(5, set(range(FIRST_EPOCH, LAST_EPOCH + 1)))
