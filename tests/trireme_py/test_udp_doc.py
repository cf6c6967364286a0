"""docs/udp.md says what the code does: offsets, MACs, limits, sizes and known gaps are compared with it."""

from __future__ import annotations

import ast
import doctest
import re
from pathlib import Path
from struct import Struct

import pytest

from tests.harness.page import NANOSECONDS, Page, fields
from trireme_py import datagram_flows, replay, surplus, wire
from trireme_py.wire import MessageType

ROOT = Path(__file__).parent.parent.parent
PAGE = Page("udp.md")
MODULES = (datagram_flows, replay)


def milliseconds(nanoseconds: int) -> int:
    return nanoseconds // NANOSECONDS["ms"]


@pytest.mark.parametrize(
    ("kind", "layout", "goes_on"),
    [
        (MessageType.HELLO, wire.SYN, True),
        (MessageType.ANSWER, wire.SYN_ACK, True),
        (MessageType.PROOF, wire.ACK, False),
        (MessageType.RESUME, wire.RESUME, True),
        (MessageType.CONFIRM, wire.CONFIRM, False),
    ],
)
def test_the_offsets_are_those_of_the_structs(kind: MessageType, layout: Struct, goes_on: bool) -> None:
    table = PAGE.rows(kind.name)
    if goes_on:
        offset, size, _ = table.pop()
        assert (int(offset), size) == (layout.size, "")
    assert [(int(offset), int(size)) for offset, size, _ in table] == fields(layout)
    assert f"Type {kind.value}," in PAGE.section(kind.name) or f"Type {kind.value}." in PAGE.section(kind.name)


def test_the_surplus_is_the_option_of_the_code() -> None:
    sizes = [size for _, size, _ in PAGE.rows("The surplus area, open and sealed")]
    assert sizes == ["0 or 1", "2", *(str(size) for _, size in fields(wire.UDP_OPTION)), "", ""]
    text = PAGE.section("The surplus area, open and sealed")
    assert f"kind {wire.UDP_OPTION_EXPERIMENT}," in text
    assert f"| {wire.UDP_OPTION_LONG}: the length follows" in text
    assert f"`{wire.EXPERIMENT_ID:04x}`" in text
    assert f"{surplus._SEAL:04x}" in text


def test_what_the_macs_cover_is_named_by_its_size() -> None:
    text = re.sub(" +", " ", PAGE.section("Keys and MACs"))
    hello, answer, header = wire.SYN.size, wire.SYN_ACK.size, wire.HEADER.size
    resume = wire.RESUME.size
    assert f'"{wire.PERSON_SYN_ACK.decode()}", HELLO[0:{hello}] | ANSWER[0:{wire.SYN_ACK_MAC_OFFSET}])' in text
    ends = f"CONFIRM[0:{wire.CONFIRM_COUNTER_OFFSET}] | CONFIRM[{wire.CONFIRM_ENDS_OFFSET}:{wire.CONFIRM_MAC_OFFSET}]"
    for answered in (f"ANSWER[0:{answer}]", ends):
        assert f'"{wire.PERSON_ACK.decode()}", HELLO[0:{hello}] | {answered} | PROOF[0:{header}])' in text
    assert f'"{wire.PERSON_RESUME.decode()}", RESUME[0:{wire.RESUME_MAC_OFFSET}] | HELLO[0:{hello}] | server' in text
    covered = f"RESUME[0:{resume}] | HELLO[0:{hello}] | CONFIRM[0:{wire.CONFIRM_MAC_OFFSET}])"
    assert f'"{wire.PERSON_CONFIRM.decode()}", {covered}' in text


def test_the_limits_are_the_constants_and_none_is_left_out() -> None:
    documented = {constant.strip("`"): value for constant, value, _ in PAGE.rows("Timers and limits")}
    constants = {}
    for module in MODULES:
        assert module.__file__ is not None
        for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.isupper():
                name = node.target.id
                if not name.startswith("_"):
                    constants[f"{module.__name__.rpartition('.')[2]}.{name}"] = getattr(module, name)
    assert documented.keys() == constants.keys()
    for constant, value in documented.items():
        number, _, unit = value.replace(",", "").partition(" ")
        assert bool(unit) == constant.endswith("_NS"), constant
        assert int(number) * NANOSECONDS.get(unit, 1) == constants[constant], constant


def test_the_prose_says_the_same_times() -> None:
    tables = datagram_flows.DatagramTables()
    asking = milliseconds(datagram_flows.HELLO_INTERVAL_NS) * datagram_flows.HELLOS
    assert PAGE.text.count(f"{asking} ms") >= 3
    held = PAGE.rows("Who holds what, and for how long")
    seconds = {what.partition(":")[0].split(",")[0]: for_how_long for what, _, for_how_long in held}
    assert seconds["a server that was identified"].startswith(f"{milliseconds(tables.warm.ttl_ns) // 1000} s after")
    assert seconds["a ticket"].startswith(f"{milliseconds(tables.tickets.ttl_ns) // 1000} s after")
    assert tables.tickets.ttl_ns - tables.warm.ttl_ns == 2 * NANOSECONDS["s"]
    assert "two seconds before the ticket does" in PAGE.text


def test_the_sizes_are_what_its_commands_print() -> None:
    failed, tried = doctest.testfile(str(PAGE.path), module_relative=False)
    assert (failed, tried > 0) == (0, True)


def test_rule_48_is_quoted_as_it_stands() -> None:
    rule = "ICMP and other protocols without ports match only a rule without `ports`."
    assert rule in PAGE.text
    assert rule in (ROOT / "policy" / "README.md").read_text(encoding="utf-8")
