"""What protection costs: connections, datagrams and streams, against no protection and against the queue's floor.

Run it: ``make bench``, or ``python bench/bench_connections.py [--out FOLDER] [--rounds N]``. It writes report.md and
its charts. The lanes of a comparison take turns, in another order each round; a ratio is the median of the rounds'
ratios, so what else the machine does meanwhile meets all of them alike.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import flood, memory, plot
from bench.lanes import BUILD, FLOOR, KINDS, TRACKED, UNPROTECTED, Kind, Lane, Protection, open_lane

FLIGHTS = (1, 64, 512)
TURN_S = 0.4
FLOWS = 100
LATER = 3
STREAM_S = 0.2
STREAMS = 5
"""Turns of a stream for each turn of connections: what one turn of it shows scatters by a third."""
BASE = Kind("1 policy, 2 peers", Protection("c"))
SIZES = (
    BASE,
    Kind("100 policies", Protection("c", policies=100)),
    Kind("10,000 policies", Protection("c", policies=10_000)),
    Kind("10 known peers", Protection("c", peers=10)),
    Kind("10,000 known peers", Protection("c", peers=10_000)),
)

Figures = dict[str, float]
"""What one turn of one lane showed, by name."""


def in_turns(lanes: Sequence[Lane], rounds: int, turn: Callable[[Lane], Figures]) -> dict[str, list[Figures]]:
    """Let every lane have its turn in each round. Returns the figures of each lane, by its name, a round each."""
    seen: dict[str, list[Figures]] = {lane.kind.name: [] for lane in lanes}
    order = list(lanes)
    for _ in range(rounds):
        random.shuffle(order)
        for lane in order:
            seen[lane.kind.name].append(turn(lane))
    return seen


def median(seen: Sequence[Figures], name: str) -> float:
    return statistics.median(one[name] for one in seen)


def ratio(seen: Sequence[Figures], base: Sequence[Figures], name: str) -> float:
    return statistics.median(one[name] / other[name] for one, other in zip(seen, base, strict=True))


def connections(lane: Lane) -> Figures:
    """One turn of each number of connections in flight. Times in microseconds."""
    figures: Figures = {"failures": 0}
    for flight in FLIGHTS:
        result = lane.connect(flight, TURN_S)
        figures[f"rate {flight}"] = result["rate"]
        figures[f"cpu {flight}"] = result["cpu_us"]
        figures["failures"] += result["failures"]
        for what in ("connect", "first"):
            for point in ("p50", "p99", "p999"):
                figures[f"{what} {point} {flight}"] = result[what][point] / 1000
    return figures


def others(lane: Lane) -> Figures:
    """Datagrams, in microseconds."""
    result: dict[str, Any] = lane.datagrams(FLOWS, LATER)
    return {
        "query": result["first"]["p50"] / 1000,
        "second": result["second"]["p50"] / 1000,
        "later": result["later"]["p50"] / 1000,
        "failures": result["failures"],
    }


def stream(lane: Lane) -> Figures:
    """One stream, and the packets of it that came to user space."""
    before = lane.queued()
    return {**lane.stream(STREAM_S), "queued": lane.queued() - before}


def per_busy_second(seen: Sequence[Figures]) -> float:
    """Octets of all streams by the processor time of all: of one stream it is known to a tick only."""
    return sum(one["octets"] for one in seen) / sum(one["busy"] for one in seen)


def alone(lane: Lane) -> Figures:
    result = lane.connect(1, TURN_S)
    return {"p50": result["connect"]["p50"] / 1000, "first": result["first"]["p50"] / 1000}


def first_contact(lane: Lane) -> Figures:
    """One connection between identities that have not met, and the one after it."""
    if lane.program and isinstance(lane.kind.what, Protection):
        lane.program.tell("renew")
    cold, warm = (lane.connect(1, 1.0, 1) for _ in range(2))
    return {"cold": cold["first"]["p50"] / 1000, "warm": warm["first"]["p50"] / 1000}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def compare_lanes(rounds: int, out: Path) -> str:
    with ExitStack() as stack:
        lanes = [open_lane(stack, number, kind) for number, kind in enumerate(KINDS)]
        seen = in_turns(lanes, rounds, connections)
        more = in_turns(lanes, max(3, rounds // 2), others)
        streams = in_turns([*lanes, open_lane(stack, len(KINDS), TRACKED)], rounds * STREAMS, stream)
        met = in_turns(lanes[-3:], rounds * 2, first_contact)
    floor = seen[FLOOR.name]
    psk, pki = seen["ours, C, PSK"], seen["ours, C, PKI"]
    latency = [
        [name, *(f"{median(one, f'connect {point} 1'):,.0f}" for point in ("p50", "p99", "p999")),
         f"{median(one, 'first p50 1'):,.0f}", f"{ratio(one, floor, 'connect p50 1'):.2f}x"]
        for name, one in seen.items()
    ]  # fmt: skip
    rates = [
        [name, *(f"{median(one, f'rate {flight}'):,.0f}" for flight in FLIGHTS),
         *(f"{ratio(one, floor, f'rate {flight}'):.2f}x" for flight in FLIGHTS[1:]),
         *(f"{median(one, f'cpu {flight}'):,.0f}" for flight in FLIGHTS[:2]), f"{sum(f['failures'] for f in one):.0f}"]
        for name, one in seen.items()
    ]  # fmt: skip
    base = streams[UNPROTECTED.name]
    rest = [
        [name, f"{median(one, 'query'):,.0f}", f"{ratio(one, more[FLOOR.name], 'query'):.2f}x",
         f"{median(one, 'second'):,.0f}", f"{median(one, 'later'):,.0f}",
         f"{ratio(one, more[UNPROTECTED.name], 'later'):.2f}x"]
        for name, one in more.items()
    ]  # fmt: skip
    flows = [
        [name, f"{median(one, 'rate') / 1e9:.2f}", f"{ratio(one, base, 'rate'):.2f}x",
         f"{per_busy_second(one) / 1e9:.2f}", f"{per_busy_second(one) / per_busy_second(base):.2f}x",
         f"{median(one, 'queued'):.0f}"]
        for name, one in streams.items()
    ]  # fmt: skip
    contacts = [
        [name, f"{median(one, 'cold'):,.0f}", f"{max(figures['cold'] for figures in one):,.0f}",
         f"{median(one, 'warm'):,.0f}"]
        for name, one in met.items()
    ]  # fmt: skip
    chart = [(name, (median(one, "rate 64"), median(one, "rate 512"))) for name, one in seen.items()]
    (out / "rate.svg").write_text(
        plot.bars("Connections per second", chart, ("64 in flight", "512 in flight"), "1/s"), "utf-8"
    )
    chart = [(name, (median(one, "connect p50 1"), median(one, "first p50 1"))) for name, one in seen.items()]
    (out / "latency.svg").write_text(
        plot.bars("One connection", chart, ("connected", "first octet"), "µs, median"), "utf-8"
    )
    return f"""## Connections

One at a time, in µs. *Connected* is when `connect` returns; the first octet from the server comes after the proof.

{table(("", "connected p50", "p99", "p99.9", "first octet p50", "p50 against the floor"), latency)}
![](latency.svg)

Many at a time: connections per second, and the processor time of what protects both ends, in µs a connection.

{table(("", "1", "64", "512", "64 against the floor", "512", "CPU at 1", "CPU at 64", "failed"), rates)}
![](rate.svg)

PKI against PSK, both warm: connected p50 {ratio(pki, psk, "connect p50 1"):.2f}x, 64 in flight \
{ratio(pki, psk, "rate 64"):.2f}x.

## First contact

From `connect` to the first octet, in µs, right after both identities were renewed, and for the connection after that.
Each is one connection of a process that has just begun, so both are slower than above.

{table(("", "first contact p50", "slowest", "the next one"), contacts)}
## Datagrams

Answers to datagrams, in µs: to a query from a fresh port to a known peer, to the second datagram of a flow, and to
later ones, of a flow that is accepted.

{table(("", "query", "against the floor", "second", "later", "against unprotected"), rest)}
## Streams

One TCP stream: its rate, what a second of processor time carries (both ends and the router, in GB), each against
unprotected, and how many of its packets came to user space, at both ends.

{table(("", "GB/s", "against unprotected", "GB per processor second", "same", "queued"), flows)}"""


def compare_sizes(rounds: int) -> str:
    with ExitStack() as stack:
        lanes = [open_lane(stack, number, kind) for number, kind in enumerate(SIZES)]
        seen = in_turns(lanes, rounds * 2, alone)
    base = seen[BASE.name]
    rows = [
        [name, f"{median(one, 'p50'):,.0f}", f"{ratio(one, base, 'p50'):.2f}x", f"{median(one, 'first'):,.0f}"]
        for name, one in seen.items()
    ]
    return f"""## Policies and peers

Ours in C, one warm connection at a time, in µs.

{table(("", "connected p50", f"against {BASE.name}", "first octet p50"), rows)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=BUILD, help="where report.md goes (default: build/bench)")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each lane")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    head = (
        f"# What protection costs\n\nLinux {platform.release()}, {os.cpu_count()} processors, Python "
        f"{platform.python_version()}; load average {load:.1f} before the run. Medians of {arguments.rounds} "
        f"interleaved rounds. Two pods behind one router, both protected by one process. Method: docs/bench.md.\n"
    )
    parts = [head]
    sections: tuple[Callable[[], str], ...] = (
        lambda: compare_lanes(arguments.rounds, out),
        lambda: compare_sizes(arguments.rounds),
        lambda: flood.report(arguments.rounds),
        memory.report,
    )
    for section in sections:
        parts.append(section())
        (out / "report.md").write_text("\n".join(parts), encoding="utf-8")
        print(parts[-1], flush=True)
    print(f"written to {out / 'report.md'}")


if __name__ == "__main__":
    main()
