"""Bounded tables: the limit, the order, and time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.segments import ACK, packed, tcp
from trireme_py.flows import BoundedTable, Held
from trireme_py.packet import parse_packet_untrusted


@pytest.fixture
def table() -> BoundedTable[str, int]:
    return BoundedTable(limit=3, ttl_ns=10)


def test_oldest_makes_room(table: BoundedTable[str, int]) -> None:
    assert [table.put(key, number, 0) for number, key in enumerate("abcde")] == [None, None, None, 0, 1]
    assert list(table) == ["c", "d", "e"]
    assert ("a" in table, "c" in table) == (False, True)


def test_touching_makes_young(table: BoundedTable[str, int]) -> None:
    for key in "abc":
        table.put(key, 1, 0)
    table.put("a", 2, 1)
    assert table.put("d", 3, 2) == 1
    assert list(table) == ["c", "a", "d"]
    assert table.get("a") == 2


def test_replacing_turns_nobody_out(table: BoundedTable[str, int]) -> None:
    for key in "abc":
        table.put(key, 1, 0)
    assert table.put("b", 9, 0) is None
    assert len(table) == 3


def test_time_takes_what_is_due_and_not_more(table: BoundedTable[str, int]) -> None:
    assert table.next_deadline() is None
    table.put("a", 1, 100)
    table.put("b", 2, 105)
    assert table.next_deadline() == 110
    assert table.expire(109) == []
    assert table.expire(110) == [1]
    assert table.next_deadline() == 115
    assert table.expire(1_000) == [2]
    assert len(table) == 0


def test_taking_out(table: BoundedTable[str, int]) -> None:
    table.put("a", 0, 0)
    table.put("b", 1, 0)
    assert table.pop("a") == 0
    assert table.pop("a") is None
    assert table.get("a") is None
    assert table.clear() == [1]
    assert list(table) == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20))))
def test_table_never_exceeds_its_limit_and_expires_what_is_due(puts: list[tuple[int, int]]) -> None:
    table: BoundedTable[int, int] = BoundedTable(limit=4, ttl_ns=7)
    model: list[tuple[int, int]] = []  # (deadline, key), oldest first
    now = 0
    for key, step in puts:
        now += step
        due = [key for deadline, key in model if deadline <= now]
        assert table.expire(now) == due
        model = [entry for entry in model if entry[0] > now and entry[1] != key] + [(now + 7, key)]
        evicted = table.put(key, key, now)
        assert evicted == (model.pop(0)[1] if len(model) > 4 else None)
        assert list(table) == [key for _, key in model]


def test_held_packets_come_back_in_order_and_are_counted_in_octets() -> None:
    held = Held()
    packets = [
        parse_packet_untrusted(tcp((packed("10.0.0.1"), 1), (packed("10.0.0.2"), 2), n, 0, ACK, b"x" * n))
        for n in range(3)
    ]
    for ticket, packet in enumerate(packets):
        held.add(ticket, packet)
    assert held.octets == 40 + 41 + 42
    assert held.take() == list(enumerate(packets))
    assert (held.octets, held.packets) == (0, [])
