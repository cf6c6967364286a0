"""A flood beside ordinary connections: what known peers keep of their rate."""

from __future__ import annotations

import os
import random
import statistics
import threading
from contextlib import ExitStack
from typing import Any

from agent.lab import LabPod
from bench.lanes import BUILD, FLOOR, PORT, Kind, Lane, Protection, open_lane
from bench.peers import write_flood

RATE = 20_000
TURN_S = 1.5
FLIGHT = 64
OURS = Kind("ours, C, unknown identities", Protection("c"))


def flooded(lane: Lane, mallory: LabPod) -> tuple[float, float]:
    """Return connections per second of the lane's known peers under the flood, and packets sent per second."""
    file = BUILD / f"flood-{lane.kind.name.split()[0]}.bin"
    sent: dict[str, Any] = {}

    def send() -> None:
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[0]})  # of this thread; the sender inherits it
        sent.update(lane.load(mallory, "flood", file, RATE, TURN_S + 0.5))

    thread = threading.Thread(target=send)
    thread.start()
    rate = float(lane.connect(FLIGHT, TURN_S)["rate"])
    thread.join()
    return rate, sent["sent"] / sent["elapsed"] * 1e9


def report(rounds: int) -> str:
    """Compare the floor under bare SYNs with ours under SYNs of unknown identities; returns Markdown."""
    with ExitStack() as stack:
        lanes = []
        for number, (kind, identified) in enumerate(((FLOOR, False), (OURS, True))):
            lane = open_lane(stack, number, kind)
            mallory = lane.lab.add_pod("mallory")
            file = BUILD / f"flood-{kind.name.split()[0]}.bin"
            write_flood(file, mallory.ipv4, lane.server.ipv4, PORT, identified=identified)
            lanes.append((lane, mallory))
        calm: dict[str, list[float]] = {kind.name: [] for kind in (FLOOR, OURS)}
        under: dict[str, list[tuple[float, float]]] = {kind.name: [] for kind in (FLOOR, OURS)}
        for _ in range(max(3, rounds // 2)):
            random.shuffle(lanes)
            for lane, mallory in lanes:
                calm[lane.kind.name].append(lane.connect(FLIGHT, TURN_S)["rate"])
                under[lane.kind.name].append(flooded(lane, mallory))
    pairs = zip(under[OURS.name], under[FLOOR.name], strict=True)
    kept = statistics.median(ours[0] / floor[0] for ours, floor in pairs)
    rows = []
    for kind, name in ((FLOOR, "queue floor (C), bare SYNs"), (OURS, OURS.name)):
        values = (calm[kind.name], *zip(*under[kind.name], strict=True))
        rows.append(f"| {name} | " + " | ".join(f"{statistics.median(column):,.0f}" for column in values) + " |")
    return f"""## A flood of {RATE:,} SYNs a second

Connections per second of a known peer, {FLIGHT} in flight, without and with a flood from one sender to the same pod.

| | calm | flooded | flood sent, 1/s |
|---|---:|---:|---:|
{chr(10).join(rows)}

Ours under unknown identities against the floor under bare SYNs: {kept:.2f}x.
"""
