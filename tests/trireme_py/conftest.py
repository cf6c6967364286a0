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
        metafunc.fixturenames.append("implementation")
        metafunc.parametrize("implementation", ["python", "c"] if chosen == "both" else [chosen], indirect=True)


@pytest.fixture
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "IMPLEMENTATION", request.param)
