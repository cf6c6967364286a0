from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.watching import follow, is_configuration


@dataclass
class Counter:
    """Counts, and does at each tick what it is told to."""

    stop: threading.Event
    at_tick: Callable[[int], None]
    ticks: int = 0
    changes: list[int] = field(default_factory=list)

    def changed(self) -> None:
        self.changes.append(self.ticks)
        self.stop.set()

    def tick(self) -> None:
        self.ticks += 1
        self.at_tick(self.ticks)


def test_it_ticks_while_something_else_is_written_all_the_time(tmp_path: Path) -> None:
    stop = threading.Event()

    def second_tick(ticks: int) -> None:
        if ticks == 2:
            stop.set()

    def log_beside_the_configuration() -> None:
        with (tmp_path / "flows.jsonl").open("a") as log:
            for _ in range(1000):
                log.write("{}\n")
                log.flush()
                if stop.wait(0.01):
                    return
        stop.set()

    counter = Counter(stop, second_tick)
    writer = threading.Thread(target=log_beside_the_configuration)
    writer.start()
    follow(tmp_path, counter, stop)
    writer.join()
    assert counter.ticks == 2
    assert not counter.changes


def test_a_written_file_is_a_change(tmp_path: Path) -> None:
    stop = threading.Event()

    def write(_ticks: int) -> None:
        (tmp_path / "policy.yaml").write_text("kind: List\n")

    counter = Counter(stop, write)
    follow(tmp_path, counter, stop)
    assert counter.changes


def test_a_folder_that_cannot_be_watched_is_looked_at_once_a_second(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop = threading.Event()
    counter = Counter(stop, lambda _: stop.set())
    with caplog.at_level(logging.WARNING):
        follow(tmp_path / "gone", counter, stop)
    assert counter.ticks == 1
    assert "cannot be watched" in caplog.text


@pytest.mark.parametrize(
    ("name", "matters"),
    [("pod.yaml", True), ("pod.json", True), ("..data", True), ("flows.jsonl", False), (".pod.yaml.swp", False)],
)
def test_what_matters_is_yaml_json_and_the_links_of_a_config_map(tmp_path: Path, name: str, *, matters: bool) -> None:
    assert is_configuration(str(tmp_path / name)) is matters
