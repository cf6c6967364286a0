"""Queries to a real resolver, each from a fresh port: dnsmasq, asked by a bare socket, by glibc and by dig.

Run it: ``make bench``, or ``python bench/bench_resolver.py [--rounds N]``. Egress of the client is denied but for the
resolver, and the resolver's ingress but for the client. The lanes take turns, as in bench/bench_connections.py.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.bench_connections import Figures, in_turns, median, ratio, table
from bench.lanes import FLOOR, KINDS, UNPROTECTED, Lane, open_lane
from tests.harness.dnsmasq import resolver

PORT = 53
FLOWS = 100
LOOK_UPS = 50
COMMANDS = 5
CLIENTS = ("socket", "glibc", "dig's figure", "dig, whole")

GLIBC = """
import json, socket, statistics, sys, time
took = []
for number in range(int(sys.argv[1])):
    name = f"{sys.argv[2]}-{number}.test"
    began = time.monotonic_ns()
    socket.getaddrinfo(name, 80, socket.AF_INET, socket.SOCK_STREAM)
    took.append(time.monotonic_ns() - began)
print(json.dumps(statistics.median(took) / 1000))
"""


def ask_by_glibc(lane: Lane, folder: Path) -> float:
    """Return the median of getaddrinfo in one process, in microseconds. glibc opens a socket for each."""
    resolv = folder / "resolv.conf"
    resolv.write_text(f"nameserver {lane.server.ipv4}\noptions timeout:2 attempts:1\n", encoding="ascii")
    script = f'mount --bind {resolv} /etc/resolv.conf && exec "$@"'
    argv = ("unshare", "-m", "sh", "-c", script, "-", sys.executable, "-c", GLIBC, str(LOOK_UPS))
    return float(json.loads(lane.client.command(*argv, f"n{random.randrange(10**6)}")))


def ask_by_dig(lane: Lane) -> tuple[float, float]:
    """Return the medians of what dig says a query took, and of what the command took, in microseconds."""
    said, took = [], []
    argv = ("dig", "-u", "+tries=1", "+time=2", "-p", str(PORT), f"@{lane.server.ipv4}")

    def run() -> str:
        done = subprocess.run([*argv, f"n{random.randrange(10**6)}.test"], capture_output=True, text=True, check=True)
        return done.stdout

    for _ in range(COMMANDS):
        began = time.monotonic_ns()
        text = lane.client.run(run)
        took.append((time.monotonic_ns() - began) / 1000)
        found = re.search(r"Query time: (\d+) usec", text)
        if found is None:
            raise SystemExit(f"{lane.kind.name}: dig got no answer: {text}")
        said.append(float(found[1]))
    return statistics.median(said), statistics.median(took)


def queries(lane: Lane, folder: Path) -> Figures:
    bare = lane.datagrams(FLOWS, 0, PORT)
    if bare["failures"]:
        raise SystemExit(f"{lane.kind.name}: {bare['failures']} queries without an answer")
    figure, whole = ask_by_dig(lane)
    values = (bare["first"]["p50"] / 1000, ask_by_glibc(lane, folder), figure, whole)
    return dict(zip(CLIENTS, values, strict=True))


def report(rounds: int) -> str:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trireme-bench-")))
        lanes = [open_lane(stack, number, kind) for number, kind in enumerate(KINDS)]
        for lane in lanes:
            stack.enter_context(resolver(lane.server, PORT, folder))
        seen = in_turns(lanes, rounds, lambda lane: queries(lane, folder))
    rows = [
        [name]
        + [
            cell
            for client in CLIENTS
            for cell in (
                f"{median(one, client):,.0f}",
                f"{ratio(one, seen[UNPROTECTED.name], client):.2f}x",
                f"{ratio(one, seen[FLOOR.name], client):.2f}x",
            )
        ]
        for name, one in seen.items()
    ]
    head = [word for client in CLIENTS for word in (client, "unprotected", "floor")]
    return f"""## A resolver

Queries to dnsmasq, each from a fresh port, medians in µs, and against an unprotected pod and the queue's floor in the
same rounds: by a bare socket, by glibc's getaddrinfo, by dig as it says, and by dig from its start to its end.

{table(("", *head), rows)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="turns of each lane")
    print(report(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
