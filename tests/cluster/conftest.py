"""The cluster that tests marked ``cluster`` share: the one that runs, else one for this session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster import build, machine
from tests.cluster.cluster import Cluster
from tests.cluster.down import down
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
