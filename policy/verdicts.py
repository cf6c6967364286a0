"""JSON lines in, JSON lines out: hold any outside oracle against the engine.

A line: ``{"policies": [...], "namespaces": [...], "pods": [...], "queries": [{"from": "ns/pod" or "IP", "to": ...,
"protocol": "TCP", "port": 80}]}``, with ``nodes`` too where ClusterNetworkPolicies name them. The answer:
``{"verdicts": [{"ingress": ..., "egress": ..., "verdict": ..., "by": ...}]}`` in the order asked, each ``allowed`` or
``denied``; a peer outside the cluster has no side of its own, so that side is ``allowed``. What is wrong with a line is
its answer, ``{"error": ...}``, and the other lines are answered all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from policy.decode import decode
from policy.evaluate import Evaluator, Outcome, UnknownEndpoint
from policy.objects import Object
from policy.ports import describe_flow
from policy.validate import PROTOCOLS
from trireme_py.model import Direction, Protocol

_KINDS: Final = {
    "policies": ("NetworkPolicy", "networking.k8s.io/v1"),
    "namespaces": ("Namespace", "v1"),
    "pods": ("Pod", "v1"),
    "nodes": ("Node", "v1"),
}
PROTOCOL_NUMBERS: Final = {**PROTOCOLS, "ICMP": Protocol.ICMP, "ICMPV6": Protocol.ICMPV6}
PORTS: Final = range(1, 65536)


class InputError(ValueError):
    """A line that cannot be answered; the text says what is wrong with it."""


def answer_lines(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Yield for each line its answer and whether it could be answered; empty lines are passed over."""
    for line in lines:
        if line.strip():
            try:
                yield json.dumps({"verdicts": answer(_parse(line))}, separators=(",", ":")), True
            except InputError as error:
                yield json.dumps({"error": str(error)}), False


def answer(question: dict[str, Any]) -> list[dict[str, str]]:
    """Answer one parsed line. Raises :class:`InputError`."""
    objects: list[Object] = []
    for field, (kind, version) in _KINDS.items():
        for index, document in enumerate(_list(question, field)):
            objects.append(_object(document, kind, version, f"{field}[{index}]"))
    evaluator = Evaluator.of(objects)
    return [_verdict(evaluator, query, f"queries[{index}]") for index, query in enumerate(_list(question, "queries"))]


def by(outcome: Outcome) -> str:
    """Say which policy and rule decided, as short text."""
    decision = outcome.deciding
    direction = Direction.EGRESS if decision is outcome.egress else Direction.INGRESS
    if not decision.policy:
        return str(decision.reason.value)
    if decision.rule is None:
        return decision.nearest  # begins with the policy
    return f"{decision.policy} {direction.value}[{decision.rule}]"


def _verdict(evaluator: Evaluator, query: Any, where: str) -> dict[str, str]:
    if not isinstance(query, dict):
        raise InputError(f"{where}: must be an object")
    protocol, port = parse_flow(query.get("protocol", "TCP"), query.get("port"), where)
    ends = query.get("from"), query.get("to")
    if not all(isinstance(end, str) for end in ends):
        raise InputError(f"{where}: from and to must be text, namespace/pod or an IP address")
    try:
        outcome = evaluator.verdict(str(ends[0]), str(ends[1]), protocol, port)
    except UnknownEndpoint as error:
        raise InputError(f"{where}: {error}") from error
    return {
        "ingress": _word(outcome.ingress.allowed),
        "egress": _word(outcome.egress.allowed),
        "verdict": _word(outcome.allowed),
        "by": by(outcome),
    }


def parse_flow(protocol: Any, port: Any, where: str) -> tuple[int, int | None]:
    """Read a protocol's name and a port number. Raises :class:`InputError`."""
    number = PROTOCOL_NUMBERS.get(protocol.upper()) if isinstance(protocol, str) else None
    if number is None:
        raise InputError(f"{where}.protocol: {protocol!r} is not one of {', '.join(PROTOCOL_NUMBERS)}")
    if protocol.upper() not in PROTOCOLS:
        return int(number), None
    if not isinstance(port, int) or isinstance(port, bool) or port not in PORTS:
        what = "is missing" if port is None else f"{port!r} is not a port number from {PORTS[0]} to {PORTS[-1]}"
        raise InputError(f"{where}.port: {what}, and {describe_flow(number, None)} needs one")
    return int(number), port


def _word(allowed: bool) -> str:
    return "allowed" if allowed else "denied"


def _parse(line: str) -> dict[str, Any]:
    try:
        question = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from error
    if not isinstance(question, dict):
        raise InputError("the line must be an object with policies, namespaces, pods and queries")
    unknown = set(question) - {*_KINDS, "queries"}
    if unknown:
        raise InputError(f"unknown field {sorted(unknown)[0]!r}")
    return question


def _list(question: dict[str, Any], field: str) -> list[Any]:
    value = question.get(field)
    if value is not None and not isinstance(value, list):
        raise InputError(f"{field}: must be a list")
    return value or []


def _object(document: Any, kind: str, version: str, where: str) -> Object:
    """Read one object; kind and apiVersion may be left out where the list says them."""
    if not isinstance(document, dict):
        raise InputError(f"{where}: must be an object")
    item, problems = decode({"kind": kind, "apiVersion": version} | document)
    if item is None:
        problem = problems[0]
        raise InputError(f"{where}.{problem.field}: {problem.message}; {problem.hint}")
    return item
