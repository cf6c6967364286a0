"""Kernel tests run on Python's data path, those of the exchange on the fast path in C as well (option ``--impl``)."""

from __future__ import annotations

import pytest

from tests.harness import implementation

ON_BOTH = {"test_attacks", "test_datagram_cases", "test_exchange", "test_marks", "test_nfqueue"}
"""Modules that run on both unless one is asked for. On the others the two do not differ by what runs only there, and
kernel tests take minutes. ``test_udp`` and ``test_udp_attacks`` would take two more: see
``pytest --impl c``."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.config.getoption("--impl") == "both" and metafunc.module.__name__.rpartition(".")[2] in ON_BOTH:
        metafunc.parametrize("data_path", ("c", "python"), indirect=True)


@pytest.fixture(autouse=True)
def data_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which data path this test runs on."""
    wanted = request.config.getoption("--impl")
    name: str = getattr(request, "param", "python" if wanted == "both" else wanted)
    monkeypatch.setattr(implementation, "name", name)
    return name


@pytest.fixture(params=[4, 6])
def family(request: pytest.FixtureRequest) -> int:
    """The version of IP. Modules that name families as sockets do have a fixture of their own."""
    version: int = request.param
    return version
