"""A page of the documentation, read by the tests that compare it with the code."""

from __future__ import annotations

import re
from pathlib import Path
from struct import Struct

NANOSECONDS = {"s": 1_000_000_000, "ms": 1_000_000}


class Page:
    """One file of ``docs/``."""

    def __init__(self, name: str) -> None:
        self.path = Path(__file__).parents[2] / "docs" / name
        self.text = self.path.read_text(encoding="utf-8")

    def section(self, title: str) -> str:
        """Return the text between one heading and the next of any level."""
        found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", self.text, re.MULTILINE | re.DOTALL)
        assert found, f"{self.path} has no section {title!r}"
        return found[1]

    def rows(self, title: str) -> list[list[str]]:
        """Return the cells of the first table of a section, without its head."""
        lines = re.findall(r"^\| (.*) \|$", self.section(title), re.MULTILINE)
        return [[cell.strip() for cell in line.split("|")] for line in lines if not line.startswith("---")][1:]


def fields(layout: Struct) -> list[tuple[int, int]]:
    """Return offset and size of each field of a layout."""
    sizes = [Struct("!" + code).size for code in re.findall(r"\d*[a-zA-Z]", layout.format)]
    return [(sum(sizes[:index]), size) for index, size in enumerate(sizes)]
