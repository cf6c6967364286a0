"""docs/protocol.md says what the code does: offsets, limits, state diagram and byte budget are compared with it."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path
from struct import Struct

import pytest

from tests.harness.page import NANOSECONDS, Page, fields
from trireme_py import endpoint, handshake, server, wire

PAGE = Page("protocol.md")


@pytest.mark.parametrize(
    ("title", "layout", "with_assertion"),
    [
        ("Header", wire.HEADER, False),
        ("SYN", wire.SYN, True),
        ("SYN-ACK", wire.SYN_ACK, True),
        ("ACK", wire.ACK, False),
    ],
)
def test_the_offsets_are_those_of_the_structs(title: str, layout: Struct, with_assertion: bool) -> None:
    table = PAGE.rows(title)
    if with_assertion:
        offset, size, _ = table.pop()
        assert (int(offset), size) == (layout.size, "")
    assert [(int(offset), int(size)) for offset, size, _ in table] == fields(layout)


def test_what_the_macs_cover_is_named_by_its_size() -> None:
    text = PAGE.section("Keys and MACs")
    syn, before, whole = wire.SYN.size, wire.SYN_ACK_MAC_OFFSET, wire.SYN_ACK.size
    header = wire.HEADER.size
    assert f'"{wire.PERSON_SYN_ACK.decode()}", SYN[0:{syn}] | SYN-ACK[0:{before}])' in text
    assert f'"{wire.PERSON_ACK.decode()}", SYN[0:{syn}] | SYN-ACK[0:{whole}] | ACK[0:{header}])' in text
    assert f'personalisation "{wire.PERSON_ID.decode()}"' in text


def test_the_state_diagram_is_the_table() -> None:
    begin, end = "<!-- begin: trireme_py.handshake.diagram() -->", "<!-- end: trireme_py.handshake.diagram() -->"
    drawn = PAGE.text.partition(begin)[2].partition(end)[0].strip()
    assert drawn == f"```mermaid\n{handshake.diagram()}\n```", "paste the output of trireme_py.handshake.diagram()"


def value_in_code_units(name: str, text: str) -> int:
    number, _, unit = text.replace(",", "").partition(" ")
    if name.endswith("_NS"):
        return int(number) * NANOSECONDS[unit]
    assert unit == ("s" if name.endswith("_S") else ""), f"{name}: {text}"
    return int(number)


def test_the_limits_are_the_constants() -> None:
    for constant, value, _ in PAGE.rows("Timers and limits"):
        module, _, name = constant.strip("`").partition(".")
        actual = getattr(importlib.import_module(f"trireme_py.{module}"), name)
        assert value_in_code_units(name, value) == actual, constant


def test_no_limit_is_left_out() -> None:
    documented = {row[0].strip("`") for row in PAGE.rows("Timers and limits")}
    for module in (endpoint, server):
        assert module.__file__ is not None
        for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.isupper():
                name = node.target.id
                if not name.startswith("_") and isinstance(getattr(module, name), int):
                    assert f"{module.__name__.rpartition('.')[2]}.{name}" in documented


def test_the_byte_budget_is_what_its_commands_print() -> None:
    failed, tried = doctest.testfile(str(PAGE.path), module_relative=False)
    assert (failed, tried > 0) == (0, True)
