"""Bars as SVG: enough to see a comparison, and no library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, LABEL, VALUE, BAR, GAP, TOP = 760, 210, 90, 20, 8, 40
COLOURS = ("#4878a8", "#c06030", "#6a9a4a", "#8a6aa8")


def bars(title: str, rows: Sequence[tuple[str, Sequence[float]]], series: Sequence[str], unit: str) -> str:
    """Return a chart: one group of bars a row, one bar a series, drawn to one scale."""
    most = max((value for _, values in rows for value in values), default=0) or 1
    group = len(series) * BAR + GAP
    height = TOP + len(rows) * group + (30 if len(series) > 1 else 10)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="13"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="24" font-size="16">{escape(title)}, {escape(unit)}</text>',
    ]
    for row, (label, values) in enumerate(rows):
        top = TOP + row * group
        parts.append(
            f'<text x="{LABEL - 8}" y="{top + BAR * len(series) / 2 + 5}" text-anchor="end">{escape(label)}</text>'
        )
        for number, value in enumerate(values):
            length = (WIDTH - LABEL - VALUE) * value / most
            y = top + number * BAR
            parts.append(
                f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR - 3}" fill="{COLOURS[number % 4]}"/>'
            )
            parts.append(f'<text x="{LABEL + length + 5:.1f}" y="{y + 13}">{value:,.0f}</text>')
    if len(series) > 1:
        for number, name in enumerate(series):
            x = LABEL + number * 130
            parts.append(f'<rect x="{x}" y="{height - 22}" width="12" height="12" fill="{COLOURS[number % 4]}"/>')
            parts.append(f'<text x="{x + 17}" y="{height - 11}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
