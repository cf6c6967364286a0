"""The cluster that tests marked ``cluster`` share: the one that runs, else one for this session."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.cluster import build, machine
from tests.cluster.cluster import Cluster
from tests.cluster.down import down
from tests.cluster.installation import OVERLAYS, Installed, build_image
from tests.cluster.up import up


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Give a cluster that is ready; one that was started for the tests ends with them."""
    if os.geteuid() != 0:
        pytest.skip("not root, and the test cluster is made of namespaces and cgroups")
    asked = os.environ.get("TRIREME_CLUSTER", "0") not in ("", "0")
    if not (build.is_built() or asked):
        pytest.skip("the test cluster is not built: make cluster, or TRIREME_CLUSTER=1 for these tests to build it")
    ran_before = machine.running()
    yield up()
    if not ran_before:
        down()


@pytest.fixture(scope="session")
def image(cluster: Cluster) -> Path:
    """Build the image of this checkout and load it on every node."""
    archive = build_image()
    cluster.load_image(archive)
    return archive


@pytest.fixture(scope="module")
def installed(
    cluster: Cluster, image: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installed]:
    """Give the agent, installed by one ``kubectl apply -k`` with a fresh key and ready on every node.

    A module that wants both modes: ``@pytest.mark.parametrize("installed", ["psk", "pki"], indirect=True)``; psk
    without. At the end it is uninstalled, and nothing may be left.
    """
    mode = getattr(request, "param", "psk")
    installed = Installed(cluster, OVERLAYS / mode, mode)
    installed.prepare(tmp_path_factory.mktemp("keys"))
    try:
        installed.apply()
        installed.wait()
        yield installed
    except BaseException:
        print(installed.diagnosis())
        raise
    finally:
        said = installed.remove()
    installed.gone(said)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.CallInfo[None], None]:
    """Add what the agents say to a failure of a test that has them."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when != "call" or not report.failed:
        return
    for argument in getattr(item, "funcargs", {}).values():
        installed = getattr(argument, "installed", argument)
        if isinstance(installed, Installed):
            report.sections.append(("agents", installed.diagnosis()))
            return
