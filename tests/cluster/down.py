"""``make cluster-down``: end every process of the cluster, and leave nothing of it but the cache."""

from __future__ import annotations

import shutil
import sys

from tests.cluster import build, machine
from tests.cluster.layout import STATE
from tests.cluster.machine import ClusterError


def down() -> None:
    """Remove the cluster; none there is fine.

    Raises:
        ClusterError: if something of it stays.
    """
    machine.need_root()
    with build.locked():
        machine.remove()
        if left := machine.remnants():  # before anything is deleted that may be mounted somewhere
            raise ClusterError(f"these are still there: {', '.join(left)}; remove them, then make cluster-down again")
        if STATE.exists():
            shutil.rmtree(STATE)


def main() -> None:
    try:
        down()
    except ClusterError as error:
        sys.exit(f"cluster: {error}")
    build.say("removed")


if __name__ == "__main__":
    main()
