"""Unit tests for policies: what must be allowed and what must not, in YAML beside the policies.

::

    tests:
    - {from: shop/web,  to: shop/db:5432, expect: allow}
    - {from: shop/cart, to: shop/db:5432, expect: deny, by: NetworkPolicy/shop/db}
    - {from: 192.0.2.1, to: "shop/web:80", protocol: UDP, expect: deny}
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from policy.evaluate import Evaluator, Outcome, UnknownEndpoint
from policy.files import Document, Loaded, Problem
from policy.ports import describe_flow
from policy.validate import PROTOCOLS
from policy.verdicts import PORTS, InputError, parse_flow

_TARGET = re.compile(r"(\[(?P<v6>[^\]]+)\]|(?P<name>[^:]+|[^:]*:[^:]*:.*))(:(?P<port>[a-z0-9-]+))?")
_FIELDS: Final = ("from", "to", "expect", "protocol", "port", "by", "name")


@dataclass(frozen=True, slots=True)
class Expectation:
    """One line of ``tests:``."""

    file: str
    line: int
    source: str
    destination: str
    protocol: int
    port: int | str | None
    """A number, or the name of a container port of the destination."""
    allow: bool
    by: str
    """The policy that must be the one to decide; empty: any."""
    name: str


@dataclass(frozen=True, slots=True)
class Checked:
    """An expectation and what came of it."""

    expectation: Expectation
    passed: bool
    actual: str
    """``allow`` or ``deny``, or why it cannot be told."""
    outcome: Outcome | None


def read_expectations(loaded: Loaded) -> tuple[list[Expectation], list[Problem]]:
    """Collect the tests among the documents of a folder."""
    found: list[Expectation] = []
    problems: list[Problem] = []
    for document in loaded.others:
        if document.kind != "":
            continue
        tests = document.data.get("tests")
        if not isinstance(tests, list):
            problems.append(_problem(document, "tests", "must be a list", "begin each test with '- '"))
            continue
        for index, item in enumerate(tests):
            result = _read(document, item, f"tests[{index}]")
            if isinstance(result, Problem):
                problems.append(result)
            else:
                found.append(result)
    return found, problems


def run(evaluator: Evaluator, expectations: list[Expectation]) -> Iterator[Checked]:
    """Judge each expectation."""
    for each in expectations:
        try:
            outcome = ask(evaluator, each.source, each.destination, each.protocol, each.port)
        except UnknownEndpoint as error:
            yield Checked(each, False, str(error), None)
            continue
        actual = "allow" if outcome.allowed else "deny"
        right_policy = not each.by or outcome.deciding.policy == each.by
        text = actual if right_policy else f"{actual} by {outcome.deciding.policy or 'no policy'}"
        yield Checked(each, outcome.allowed == each.allow and right_policy, text, outcome)


def ask(evaluator: Evaluator, source: str, destination: str, protocol: int, port: int | str | None) -> Outcome:
    """Judge a connection whose port may be a name. Raises ``UnknownEndpoint``."""
    ends = evaluator.endpoint(source), evaluator.endpoint(destination)
    if isinstance(port, str):
        ports = ends[1].pod.named_ports if ends[1].pod is not None else ()
        number = next((each.number for each in ports if each.name == port and each.protocol == protocol), None)
        if number is None:
            known = ", ".join(f"{each.name} ({describe_flow(each.protocol, each.number)})" for each in ports)
            has = f"its ports are {known}" if known else "it names no port; write the number"
            raise UnknownEndpoint(
                f"{destination} has no container port named {port!r} for {describe_flow(protocol, None)}; {has}"
            )
        port = number
    return evaluator.judge(ends[0], ends[1], protocol, port)


def split_target(text: str) -> tuple[str, int | str | None]:
    """Split ``shop/db:5432``, ``shop/db:http``, ``192.0.2.1:80`` or ``[2001:db8::1]:80``. Raises InputError."""
    match = _TARGET.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r} is not namespace/pod:port or address:port")
    port = match["port"]
    name = match["v6"] or match["name"]
    return name, int(port) if port is not None and port.isdigit() else port


def _read(document: Document, item: Any, path: str) -> Expectation | Problem:
    if not isinstance(item, dict):
        return _problem(document, path, "must be a mapping", "write {from: ns/pod, to: ns/pod:80, expect: allow}")
    for key in item:
        if key not in _FIELDS:
            close = difflib.get_close_matches(str(key), _FIELDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"fields are {', '.join(_FIELDS)}"
            return _problem(document, f"{path}.{key}", "unknown field", hint)
    for key in ("from", "to"):
        if not isinstance(item.get(key), str):
            return _problem(document, f"{path}.{key}", "must be text", "write namespace/pod or an IP address")
    if item.get("expect") not in ("allow", "deny"):
        return _problem(document, f"{path}.expect", f"{item.get('expect')!r} is unknown", "write allow or deny")
    protocol = str(item.get("protocol", "TCP"))
    try:
        destination, port = split_target(item["to"]) if "port" not in item else (item["to"], item["port"])
        named = isinstance(port, str) and protocol.upper() in PROTOCOLS
        number, checked = parse_flow(protocol, PORTS[0] if named else port, path)
    except InputError as error:
        field, _, message = str(error).rpartition(": ")
        return _problem(document, field or path, message, "write to: namespace/pod:80, or port: 80")
    line = document.line_of(path)
    by, name = str(item.get("by", "")), str(item.get("name", ""))
    port = port if named else checked
    return Expectation(
        document.file, line, item["from"], destination, number, port, item["expect"] == "allow", by, name
    )


def _problem(document: Document, field: str, message: str, hint: str) -> Problem:
    return Problem(document.file, document.line_of(field), field, message, hint)
