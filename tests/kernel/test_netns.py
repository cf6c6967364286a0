"""Entering namespaces: nobody else moves, and nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent import netns
from trireme_py.errors import KernelError

pytestmark = pytest.mark.kernel


@pytest.fixture
def two() -> object:
    names = [f"trm-netns-{os.getpid()}-{letter}" for letter in "ab"]
    paths = [netns.create(name) for name in names]
    yield paths
    for path in paths:
        netns.remove(path)


def here() -> tuple[int, int]:
    status = os.stat("/proc/thread-self/ns/net")
    return status.st_dev, status.st_ino


def of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def threads_namespaces() -> set[tuple[int, int]]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found.add(of(task / "ns" / "net"))
    return found


def test_the_call_is_inside_and_the_caller_stays(two: list[Path]) -> None:
    before = here()
    assert netns.run_inside(two[0], here) == of(two[0])
    assert netns.run_inside(two[1].name, here) == of(two[1])
    assert of(two[0]) != of(two[1])
    assert here() == before


def test_many_threads_at_once_are_each_where_they_asked_to_be(two: list[Path]) -> None:
    barrier = threading.Barrier(8)

    def inside(index: int) -> bool:
        barrier.wait()
        return all(netns.run_inside(two[(index + turn) % 2], here) == of(two[(index + turn) % 2]) for turn in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(inside, range(8)))


def test_a_call_that_raises_leaves_no_thread_in_the_namespace(two: list[Path]) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        netns.run_inside(two[0], fail)
    assert threading.active_count() == threads
    deadline = time.monotonic() + 10
    while of(two[0]) in threads_namespaces():  # a thread that Python has joined takes a moment to leave the kernel
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_socket_made_inside_stays_inside(two: list[Path]) -> None:
    def interfaces() -> list[str]:
        return [name for _, name in socket.if_nameindex()]

    assert netns.run_inside(two[0], interfaces) == ["lo"]
    with netns.run_inside(two[0], lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as inside:
        assert os.fstat(inside.fileno())
        with pytest.raises(OSError, match="unreachable"):
            inside.connect(("192.0.2.1", 9))


def test_a_scratch_namespace_is_new_and_has_no_name() -> None:
    names = sorted(netns.RUN_DIR.iterdir()) if netns.RUN_DIR.exists() else []
    assert netns.run_inside_new(here) != here()
    assert names == (sorted(netns.RUN_DIR.iterdir()) if netns.RUN_DIR.exists() else [])


def test_errors_name_the_namespace(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="/run/netns/trm-nowhere"):
        netns.run_inside("trm-nowhere", here)
    with pytest.raises(KernelError, match=f"{two[0]}: cannot be created"):
        netns.create(two[0])
    plain = tmp_path / "plain"
    plain.touch()
    with pytest.raises(KernelError, match=f"{plain}: setns"):
        netns.run_inside(plain, here)


def test_removing_twice_is_once(two: list[Path]) -> None:
    netns.remove(two[0])
    netns.remove(two[0])
    assert not netns.exists(two[0])


def test_a_pin_without_its_namespace_is_none(two: list[Path], tmp_path: Path) -> None:
    """Removing is two steps: unmount, unlink. Whoever looks in between finds an empty file."""
    assert netns.exists(two[0])
    assert netns.exists("/proc/self/ns/net")
    plain = tmp_path / "plain"
    plain.touch()
    assert not netns.exists(plain)
