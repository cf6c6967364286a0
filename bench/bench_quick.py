"""The fast path against the floor of the packet queue, in less than 50 seconds.

Run it: ``make bench-quick``. The last line is one of JSON: medians of ratios, of turns right beside each other.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.lanes import FLOOR, Kind, Lane, Protection, open_lane

SECONDS = 38.0
"""For all of it, set-up included."""
LATENCY_TURN_S = 0.15
RATE_TURN_S = 0.3
FLIGHT = 64


def turn(lane: Lane) -> tuple[float, float]:
    """Return the median connect latency of one connection at a time (ns), and connections per second of 64."""
    alone, many = lane.connect(1, LATENCY_TURN_S), lane.connect(FLIGHT, RATE_TURN_S)
    if alone["failures"] or many["failures"]:
        raise SystemExit(f"{lane.kind.name}: {alone['failures'] + many['failures']} connections failed")
    return alone["connect"]["p50"], many["rate"]


def main() -> None:
    deadline = time.monotonic() + SECONDS
    with ExitStack() as stack:
        floor = open_lane(stack, 1, FLOOR)
        ours = open_lane(stack, 2, Kind("ours, C, PSK", Protection("c")))
        pairs: list[tuple[tuple[float, float], tuple[float, float]]] = []
        order = [floor, ours]
        while time.monotonic() < deadline or len(pairs) < 3:
            seen = {lane.kind.name: turn(lane) for lane in order}
            order.reverse()
            pairs.append((seen[floor.kind.name], seen[ours.kind.name]))
    for number, (one, other) in enumerate(pairs, 1):
        print(
            f"turn {number:2}  floor {one[0] / 1000:6.0f} us {one[1]:7.0f}/s   "
            f"ours {other[0] / 1000:6.0f} us {other[1]:7.0f}/s"
        )
    latency = statistics.median(other[0] / one[0] for one, other in pairs)
    rate = statistics.median(other[1] / one[1] for one, other in pairs)
    print(
        json.dumps({"connect_p50_vs_queue_floor": round(latency, 3), "connects_per_s_vs_queue_floor": round(rate, 3)})
    )


if __name__ == "__main__":
    main()
