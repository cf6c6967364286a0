"""Annotated hexadecimal vectors: whatever follows ``#`` is for people."""

from __future__ import annotations

from pathlib import Path


def read_hex(path: Path) -> bytes:
    lines = path.read_text(encoding="utf-8").splitlines()
    return bytes.fromhex("".join(line.partition("#")[0] for line in lines))
