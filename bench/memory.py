"""What the agent's memory grows by with its pods."""

from __future__ import annotations

from pathlib import Path


def report(_: Path) -> str:
    return ""
