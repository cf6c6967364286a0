"""What every test shares: tests marked ``kernel`` run where they can, and say why where they cannot."""

from __future__ import annotations

import os

import pytest

from agent import lab
from agent.rules_restore import probe
from trireme_py.errors import KernelError


def _missing() -> str:
    """Return what keeps kernel tests from running here; empty if nothing does."""
    if os.geteuid() != 0:
        return "not root; 'make test' starts the tests in a user namespace where there are any"
    try:
        lab.make_run_writable()
        probe()
    except KernelError as error:
        return str(error)
    return ""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--impl", choices=("python", "c", "both"), default="both", help="which data path the tests in memory run on"
    )


def _gets_another_try(item: pytest.Item) -> bool:
    """Tell whether a test works on a whole machine, where others run beside it, and is not about an attack.

    What gets in once in two tries got in.
    """
    on_machine = item.get_closest_marker("kernel") or item.get_closest_marker("cluster")
    return on_machine is not None and "attack" not in item.nodeid and "leak" not in item.nodeid


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in filter(_gets_another_try, items):
        item.add_marker(pytest.mark.flaky(reruns=1))
    kernel = [item for item in items if item.get_closest_marker("kernel")]
    missing = _missing() if kernel else ""
    if not missing:
        return
    if os.environ.get("TRIREME_REQUIRE_KERNEL", "0") not in ("", "0"):
        raise pytest.UsageError(f"TRIREME_REQUIRE_KERNEL is set, but kernel tests cannot run: {missing}")
    for item in kernel:
        item.add_marker(pytest.mark.skip(reason=missing))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show why a test needed its second try."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"first try of {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)
