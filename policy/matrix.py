"""Who may talk to whom: every pair of workloads on every port that means something, as data, text lines and SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final
from xml.sax.saxutils import escape

from policy.evaluate import Endpoint, Evaluator
from policy.objects import Pod
from policy.ports import describe_flow
from trireme_py.model import Protocol

MAX_WORKLOADS: Final = 200
"""Pairs grow with the square, and nobody reads a picture of more."""
REPLICA_LABELS: Final = frozenset(
    {
        "pod-template-hash",
        "controller-revision-hash",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "batch.kubernetes.io/job-completion-index",
    }
)
"""Labels in which replicas of one workload differ."""
Flow = tuple[int, int | None]


class Cell(Enum):
    """A pair's answer over the ports looked at."""

    ALL = "all"
    SOME = "some"
    NONE = "none"
    SELF = "self"


@dataclass(frozen=True, slots=True)
class Workload:
    """Pods that no policy tells apart (in their labels), shown as one."""

    name: str
    pods: tuple[Pod, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    cell: Cell
    allowed: tuple[str, ...]
    denied: tuple[str, ...]
    """Flows such as ``TCP 80``; ``other`` stands for every port that neither policies nor pods mention."""


@dataclass(frozen=True, slots=True)
class Matrix:
    workloads: tuple[str, ...]
    rows: tuple[tuple[Pair, ...], ...]
    """One row a source, one cell a destination, both in the order of ``workloads``."""
    left_out: int
    """Workloads beyond ``MAX_WORKLOADS``."""

    def as_json(self) -> dict[str, Any]:
        connections = [
            {"from": source, "to": target, "cell": pair.cell.value, "allowed": pair.allowed, "denied": pair.denied}
            for source, row in zip(self.workloads, self.rows, strict=True)
            for target, pair in zip(self.workloads, row, strict=True)
            if pair.cell is not Cell.SELF
        ]
        return {"workloads": self.workloads, "connections": connections, "leftOut": self.left_out}


def group(pods: Iterable[Pod]) -> list[Workload]:
    """Put replicas together; completed and hostNetwork pods are left out."""
    groups: dict[tuple[Any, ...], list[Pod]] = {}
    for pod in sorted(pods, key=lambda each: (each.namespace, each.name)):
        if pod.completed or pod.host_network:
            continue
        labels = tuple(sorted((key, value) for key, value in pod.labels.items() if key not in REPLICA_LABELS))
        owner = labels or pod.name  # pods without any label are not replicas of each other
        groups.setdefault((pod.namespace, owner, pod.named_ports), []).append(pod)
    return [_workload(tuple(found)) for found in groups.values()]


def _workload(pods: tuple[Pod, ...]) -> Workload:
    first = pods[0]
    return Workload(f"{first.namespace}/{first.name}" + (f" ({len(pods)})" if len(pods) > 1 else ""), pods)


def flows(evaluator: Evaluator, destination: Pod) -> list[Flow]:
    """Return the flows worth asking about: ports that a rule or the destination names, and one that nobody does."""
    found: set[Flow] = {(port.protocol, port.number) for port in destination.named_ports}
    for policy in evaluator.snapshot.all_policies():
        for rules in policy.rules.values():
            for rule in rules:
                for protocol, first, last in rule.ports.ranges:
                    if (first, last) != (0, 65535):
                        found |= {(protocol, first), (protocol, last)}
    return [*sorted(found, key=lambda flow: (flow[0], flow[1] or 0)), (int(Protocol.TCP), _unused(found))]


def _unused(found: set[Flow]) -> int:
    """Return a TCP port that nothing mentions, from the top down: it stands for all of those."""
    taken = {port for protocol, port in found if protocol == Protocol.TCP}
    return next(port for port in range(65535, 0, -1) if port not in taken)


def make_matrix(evaluator: Evaluator) -> Matrix:
    """Judge every pair of workloads."""
    workloads = group(evaluator.snapshot.pods.values())
    shown = workloads[:MAX_WORKLOADS]
    asked = {each.name: flows(evaluator, each.pods[-1]) for each in shown}
    rows = tuple(tuple(_pair(evaluator, source, target, asked[target.name]) for target in shown) for source in shown)
    return Matrix(tuple(each.name for each in shown), rows, len(workloads) - len(shown))


def _pair(evaluator: Evaluator, source: Workload, target: Workload, asked: list[Flow]) -> Pair:
    if source is target and len(source.pods) == 1:
        return Pair(Cell.SELF, (), ())
    here, there = _endpoint(source.pods[0]), _endpoint(target.pods[-1])
    allowed: list[str] = []
    denied: list[str] = []
    for protocol, port in asked:
        text = "other" if (protocol, port) == asked[-1] else describe_flow(protocol, port)
        outcome = evaluator.judge(here, there, protocol, port)
        (allowed if outcome.allowed else denied).append(text)
    cell = Cell.SOME if allowed and denied else Cell.ALL if allowed else Cell.NONE
    return Pair(cell, tuple(allowed), tuple(denied))


def _endpoint(pod: Pod) -> Endpoint:
    return Endpoint(f"{pod.namespace}/{pod.name}", pod, pod.addresses)


_SIZE: Final = 24
"""Pixels of a cell: 30 workloads make a picture of about 1,000 by 1,000."""
_LETTER: Final = 7
_LEGEND: Final = 310
_COLOURS: Final = {Cell.ALL: "#2e7d32", Cell.SOME: "#f9a825", Cell.NONE: "#eceff1", Cell.SELF: "#ffffff"}
_MARKS: Final = {Cell.ALL: "●", Cell.SOME: "◐", Cell.NONE: "", Cell.SELF: "·"}
"""Told apart without colour too."""


def render_svg(matrix: Matrix) -> str:
    """Draw the matrix: sources at the left, destinations on top, details as tool tips."""
    count = len(matrix.workloads)
    margin = max([_LETTER * len(name) for name in matrix.workloads], default=0) + 20
    top = margin + 24
    width, height = margin + max(count * _SIZE, _LEGEND) + 20, top + count * _SIZE + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'role="img" font-family="sans-serif" font-size="12">',
        "<title>Who may open connections to whom</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{margin - 8}" y="{top - 8}" text-anchor="end" fill="#546e7a">from ↓  to →</text>',
    ]
    for index, name in enumerate(matrix.workloads):
        centre = _SIZE * index + _SIZE // 2 + 4
        parts.append(f'<text x="{margin - 8}" y="{top + centre}" text-anchor="end">{escape(name)}</text>')
        x, y = margin + centre, top - 8
        parts.append(f'<text x="{x}" y="{y}" transform="rotate(-90 {x} {y})">{escape(name)}</text>')
    for row, source in enumerate(matrix.workloads):
        for column, target in enumerate(matrix.workloads):
            parts.append(_draw(matrix.rows[row][column], source, target, margin + column * _SIZE, top + row * _SIZE))
    parts.append(_legend(margin, top + count * _SIZE + 32))
    parts.append("</svg>\n")
    return "\n".join(parts)


def _draw(pair: Pair, source: str, target: str, x: int, y: int) -> str:
    lines = [f"{source} → {target}"]
    lines += [f"allowed: {', '.join(pair.allowed)}"] if pair.allowed else []
    lines += [f"denied: {', '.join(pair.denied)}"] if pair.denied else []
    colour = "#ffffff" if pair.cell is Cell.ALL else "#263238"
    return (
        f"<g><title>{escape(chr(10).join(lines))}</title>"
        f'<rect x="{x}" y="{y}" width="{_SIZE}" height="{_SIZE}" fill="{_COLOURS[pair.cell]}" stroke="#cfd8dc"/>'
        f'<text x="{x + _SIZE // 2}" y="{y + _SIZE // 2 + 4}" text-anchor="middle" fill="{colour}">'
        f"{_MARKS[pair.cell]}</text></g>"
    )


def _legend(x: int, y: int) -> str:
    texts = {Cell.ALL: "every port", Cell.SOME: "some ports", Cell.NONE: "nothing"}
    parts: list[str] = []
    for cell, text in texts.items():
        parts.append(f'<rect x="{x}" y="{y - 12}" width="14" height="14" fill="{_COLOURS[cell]}" stroke="#cfd8dc"/>')
        parts.append(f'<text x="{x + 20}" y="{y}">{_MARKS[cell]} {text}</text>')
        x += 110
    return "\n".join(parts)


def render_lines(matrix: Matrix) -> list[str]:
    """Write what is allowed, one line a pair, for terminals and pipes."""
    lines: list[str] = []
    for source, row in zip(matrix.workloads, matrix.rows, strict=True):
        for target, pair in zip(matrix.workloads, row, strict=True):
            if pair.cell is Cell.ALL:
                lines.append(f"{source} -> {target}: every port")
            elif pair.cell is Cell.SOME:
                lines.append(f"{source} -> {target}: {_short(pair.allowed)}")
    return lines


def _short(allowed: Sequence[str]) -> str:
    return ", ".join(text if text != "other" else "all other ports" for text in allowed)
