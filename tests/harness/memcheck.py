"""The fast path under valgrind: handshakes in memory, and every input of the fuzz targets' corpus.

    python -m tests.harness.memcheck

Needs valgrind and gcc. Exit code 1 if there was an error or a leak.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench.bench_handshake import build as build_handshake
from tests.harness.fuzzing import FUZZ, TARGETS, build, unpack

VALGRIND: Final = ("valgrind", "-q", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect,possible")
HANDSHAKES, PEERS = "300", "100"


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="trireme-valgrind-") as name:
        folder = Path(name)
        programs = [[str(build_handshake(folder)), HANDSHAKES, PEERS]]
        for target in TARGETS:
            program = build(target, folder, "gcc", str(FUZZ / "replay.c"))
            programs.append([str(program), *map(str, unpack(target, folder / target))])
        wrong = 0
        for argv in programs:
            print(Path(argv[0]).name, flush=True)
            wrong |= subprocess.run([*VALGRIND, "--error-exitcode=1", *argv], check=False).returncode
    return int(wrong != 0)


if __name__ == "__main__":
    sys.exit(main())
