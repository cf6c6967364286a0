"""The data path's tests run on both implementations: Python alone, and the fast path in C in front of it."""

from __future__ import annotations

import pytest

from tests.harness import world


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test of a module that builds a world, or has one built, once on each.

    Those about C choose for themselves.
    """
    about_c = metafunc.module.__name__.rpartition(".")[2].startswith("test_fast")
    if not about_c and {"World", "Shop", "Storm", "Resolver"} & vars(metafunc.module).keys():
        chosen = metafunc.config.getoption("--impl")
        metafunc.parametrize("implementation", ["python", "c"] if chosen == "both" else [chosen], indirect=True)


@pytest.fixture(autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Used by every test: a fixture that nobody asks for is not set up because a test has a parameter of its name."""
    if hasattr(request, "param"):
        monkeypatch.setattr(world, "IMPLEMENTATION", request.param)
