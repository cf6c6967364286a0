"""CPU of one warm handshake, and of one query in UDP, in the fast path's engine, both ends, packets in memory.

Run: python bench/bench_handshake.py [HANDSHAKES]. Prints a line of JSON for each number of other known peers:
microseconds a handshake, a query and a MAC, and heap allocations in all of them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FASTPATH = ROOT / "trireme_py" / "fastpath"
ENGINE = (
    "client", "datagram", "datagram_client", "datagram_server", "endpoint", "engine", "handover", "mac", "message",
    "packet", "server", "session", "siphash", "surplus", "table", "teach",
)  # fmt: skip
PEERS = (10, 10_000)
WRAPPED = ("malloc", "calloc", "realloc")


def build(folder: Path, *flags: str) -> Path:
    """Compile the program into ``folder``; needs gcc and libssl-dev."""
    program = folder / "handshake"
    sources = [str(FASTPATH / f"{name}.c") for name in ENGINE]
    command = ["gcc", "-std=c11", "-O2", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-fstack-protector-strong"]
    wraps = [f"-Wl,--wrap={name}" for name in WRAPPED]
    own = str(ROOT / "bench" / "handshake.c")
    subprocess.run(
        [*command, *flags, f"-I{FASTPATH}", own, *sources, *wraps, "-lcrypto", "-pthread", "-o", str(program)],
        check=True,
    )
    return program


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="trireme-bench-") as folder:
        program = str(build(Path(folder)))
        for peers in PEERS:
            subprocess.run([program, *(sys.argv[1:2] or ["200000"]), str(peers)], check=True)


if __name__ == "__main__":
    main()
