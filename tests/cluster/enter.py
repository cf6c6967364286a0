"""Run a command inside a machine of the cluster: ``python -m tests.cluster.enter trm-node1 COMMAND...``."""

from __future__ import annotations

import os
import sys

from tests.cluster import machine
from tests.cluster.layout import MACHINES


def main() -> None:
    names = {each.name: each for each in MACHINES}
    if len(sys.argv) < 3 or sys.argv[1] not in names:
        sys.exit(f"usage: python -m tests.cluster.enter {'|'.join(names)} COMMAND...")
    try:
        line = machine.enter(names[sys.argv[1]], *sys.argv[2:])
    except machine.ClusterError as error:
        sys.exit(f"cluster: {error}")
    os.execvpe(line[0], line, {**os.environ, "PATH": machine.PATH})


if __name__ == "__main__":
    main()
