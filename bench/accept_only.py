"""NetfilterQueue, accepting everything untouched: the floor of a packet queue in Python.

    python -m bench.accept_only NAMESPACE_FILE…

The same verdicts and marks for the same packets as bench/floor.c. Prints a line when it is ready; ends with its input.
"""

from __future__ import annotations

import json
import selectors
import sys
from pathlib import Path
from typing import Any

from netfilterqueue import COPY_PACKET, NetfilterQueue

from agent import netns
from agent.marks import FIRST_EPOCH, Marks
from agent.ruleset import DEFAULT_QUEUE
from trireme_py.model import Protocol, Verdict

MARKS = Marks()
CLEAR = MARKS.answer(Verdict.PASS_CLEAR, 0, FIRST_EPOCH)
ACCEPT = MARKS.answer(Verdict.ACCEPT, 0, FIRST_EPOCH)
SYN = 0x02


def accept(packet: Any) -> None:
    data = packet.get_payload()
    head, protocol = ((data[0] & 15) * 4, data[9]) if data[0] >> 4 == 4 else (40, data[6])
    opens = protocol == Protocol.TCP and len(data) > head + 13 and data[head + 13] & SYN
    packet.set_mark(CLEAR if opens else ACCEPT)
    packet.repeat()


def main() -> None:
    selector = selectors.DefaultSelector()
    for word in sys.argv[1:]:
        queue = netns.run_inside(Path(word), NetfilterQueue)
        queue.bind(DEFAULT_QUEUE, accept, 8192, COPY_PACKET, 0xFFFF, 1 << 24)
        selector.register(queue.get_fd(), selectors.EVENT_READ, queue)
    selector.register(sys.stdin, selectors.EVENT_READ)
    print(json.dumps({"ready": 1}), flush=True)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                return
            key.data.run(block=False)


if __name__ == "__main__":
    main()
