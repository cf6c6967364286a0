"""What somebody knows who does with a watch's lists and changes what the agent does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.kubernetes.inbox import Inbox
from agent.kubernetes.resources import Known
from tests.harness.api_stand_in import PATIENCE_S


class CountingInbox(Inbox):
    """Remembers how many objects each list had, also of those that the next one has overtaken."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def put_list(self, resource: str, objects: dict[str, Known], now_s: float) -> None:
        self.sizes.append(len(objects))
        super().put_list(resource, objects, now_s)


@dataclass
class State:
    """The reader of one watch's inbox."""

    inbox: CountingInbox = field(default_factory=CountingInbox)
    objects: dict[str, Known] = field(default_factory=dict)
    lists: int = 0

    def take(self) -> None:
        batch = self.inbox.take()
        for listed in batch.lists.values():
            self.objects = dict(listed)
            self.lists += 1
        for changes in batch.changes.values():
            for key, known in changes.items():
                self.objects.pop(key, None)
                if known is not None:
                    self.objects[key] = known

    def wait_for(self, *keys: str) -> None:
        """Wait until exactly ``keys`` are known."""
        deadline = time.monotonic() + PATIENCE_S
        self.take()
        while set(self.objects) != set(keys) or not self.lists:
            assert self.inbox.wait(deadline - time.monotonic()), (sorted(self.objects), self.lists)
            self.take()

    def wait_until(self, done: Callable[[], object]) -> None:
        """Wait until ``done`` holds of what is known."""
        deadline = time.monotonic() + PATIENCE_S
        self.take()
        while not self.lists or not done():
            assert self.inbox.wait(deadline - time.monotonic()), sorted(self.objects)
            self.take()
