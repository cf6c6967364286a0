"""Imports point one way: trireme_py <- policy <- agent. CONTRIBUTING.md says why; this test holds it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

IMPURE = frozenset(
    """asyncio ctypes fcntl logging multiprocessing os random sched secrets select selectors shutil signal socket
    socketserver ssl subprocess tempfile threading time""".split()  # noqa: SIM905 - a list of this many quotes is unreadable
)
"""What reads a clock, draws randomness, logs or does I/O: arguments of the core, never its imports."""

THIRD_PARTY = {"trireme_py": {"cbor2", "cryptography"}, "policy": {"msgspec", "yaml"}}
OURS = {
    "trireme_py": ("trireme_py",),
    "policy": ("policy", "trireme_py.model", "trireme_py.errors"),
    "agent": ("agent", "policy", "trireme_py"),
}
KERNEL_LIBRARIES = {"netfilterqueue": 1, "iptc": 1}
"""Bindings whose traps must stay behind one module each."""


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every dotted name a file imports, wherever the statement stands; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("package", ["trireme_py", "policy", "agent"])
def test_imports_point_one_way(package: str) -> None:
    for path in sources(package):
        for name in imports(path):
            top = name.partition(".")[0]
            if top in OURS or top == "tests":
                assert within(name, OURS[package]), f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("package", ["trireme_py", "policy"])
def test_the_core_and_the_policy_engine_do_no_io(package: str) -> None:
    allowed = (sys.stdlib_module_names - IMPURE) | THIRD_PARTY[package] | OURS.keys()
    for path in sources(package):
        for name in imports(path):
            assert name.partition(".")[0] in allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_scapy_stays_in_the_tests() -> None:
    """Its licence (GPL-2.0-only) would become ours."""
    for path in [path for package in OURS for path in sources(package)]:
        assert "scapy" not in {name.partition(".")[0] for name in imports(path)}, path


@pytest.mark.parametrize(("library", "modules"), KERNEL_LIBRARIES.items())
def test_a_kernel_library_has_one_importer(library: str, modules: int) -> None:
    importers = [str(p.relative_to(ROOT)) for p in sources("agent") if library in {n.split(".")[0] for n in imports(p)}]
    assert len(importers) <= modules, f"{library} is imported by {importers}"
