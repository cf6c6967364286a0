"""Which namespace is whose: told by the plugin, found by addresses, never guessed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from agent import netns
from agent.kubernetes.discovery import Discovery, find, namespaces_in
from agent.kubernetes.sandboxes import MIRROR_ANNOTATION, Sandboxes, network_namespace
from agent.kubernetes.starts import Sandbox
from policy.objects import Pod
from trireme_py.model import Address

pytestmark = pytest.mark.kernel

Make = Callable[..., Path]
FOUR, OTHER_FOUR, SIX = "10.91.0.2", "10.91.0.3", "fd91::2"


def packed(*addresses: str) -> tuple[Address, ...]:
    return tuple(ip_address(one).packed for one in addresses)


def give(namespace: Path, *addresses: str) -> None:
    """Put ``addresses`` on the one interface there is."""

    def add() -> None:
        with IPRoute() as route:
            for address in addresses:
                route.addr("add", index=1, address=address, prefixlen=32 if "." in address else 128)

    netns.run_inside(namespace, add)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where this test's runtime pins namespaces."""
    return tmp_path / "netns"


@pytest.fixture
def make(folder: Path) -> Iterator[Make]:
    made: list[Path] = []

    def make(name: str, *addresses: str) -> Path:
        path = netns.create(folder / name)
        made.append(path)
        give(path, *addresses)
        return path

    yield make
    for path in made:
        netns.remove(path)


@pytest.fixture
def sandboxes(tmp_path: Path) -> Sandboxes:
    return Sandboxes(tmp_path / "sandboxes.json")


def pod(name: str = "db", uid: str = "u1", addresses: tuple[str, ...] = (FOUR,), **more: object) -> Pod:
    return Pod(namespace="shop", name=name, uid=uid, addresses=packed(*addresses), **more)  # type: ignore[arg-type]


def told(path: Path, uid: str = "u1", container: str = "c1") -> Sandbox:
    return Sandbox("shop/db", uid, container, path, packed(FOUR))


def test_only_other_network_namespaces_are_taken_for_one(make: Make, folder: Path) -> None:
    path = make("a")
    (folder / "file").write_text("")
    (folder / "link").symlink_to("/proc/self/ns/mnt")
    (folder / "own").symlink_to("/proc/self/ns/net")
    (folder / "folder").mkdir()
    status = path.stat()
    assert network_namespace(path) == (status.st_dev, status.st_ino)
    for name in ("file", "link", "own", "folder", "missing", "nul\0"):
        assert network_namespace(folder / name) is None
    assert list(namespaces_in([folder, folder / "missing"])) == [(path, (status.st_dev, status.st_ino))]


def test_what_the_plugin_told_is_known_until_it_is_gone(make: Make, sandboxes: Sandboxes) -> None:
    path = make("a", FOUR)
    sandboxes.add(told(path))
    assert sandboxes.locate(pod(addresses=())) == path
    assert sandboxes.locate(pod(name="other")) is None
    assert sandboxes.addresses_at(path) == packed(FOUR)
    sandboxes.remove("c1")
    assert sandboxes.addresses_at(path) == ()
    sandboxes.remove("c1")
    assert sandboxes.locate(pod()) is None


def test_a_pod_made_anew_under_its_name_is_another(make: Make, sandboxes: Sandboxes) -> None:
    old, new = make("a"), make("b")
    sandboxes.add(told(old, "u1", "c1"))
    assert sandboxes.locate(pod(uid="u2")) is None
    sandboxes.add(told(new, "u2", "c2"))
    assert sandboxes.locate(pod(uid="u2")) == new
    assert sandboxes.locate(pod(uid="u1")) == old


def test_the_newest_sandbox_of_a_pod_counts(make: Make, sandboxes: Sandboxes) -> None:
    old, new = make("a"), make("b")
    sandboxes.add(told(old, container="c1"))
    sandboxes.add(told(new, container="c2"))
    assert sandboxes.locate(pod()) == new
    sandboxes.remove("c1")
    assert sandboxes.locate(pod()) == new


def test_a_static_pod_has_the_kubelet_s_uid(make: Make, sandboxes: Sandboxes) -> None:
    path = make("a")
    sandboxes.add(told(path, uid="hash"))
    assert sandboxes.locate(pod(uid="of-the-mirror", annotations={MIRROR_ANNOTATION: "hash"})) == path
    assert sandboxes.locate(pod(uid="of-the-mirror")) is None


def test_another_namespace_under_the_same_path_is_not_it(make: Make, sandboxes: Sandboxes, tmp_path: Path) -> None:
    path = make("a")
    sandboxes.add(told(path))
    first = network_namespace(path)
    keeper = os.open(path, os.O_RDONLY)  # or the kernel could give the next one the same number
    netns.remove(path)
    assert sandboxes.locate(pod()) is None
    netns.create(path)
    assert network_namespace(path) != first
    assert sandboxes.locate(pod()) is None
    again = Sandboxes(tmp_path / "sandboxes.json")
    again.restore()
    assert again.locate(pod()) is None
    assert sandboxes.told() == {}
    os.close(keeper)


def test_what_was_told_outlives_the_agent(make: Make, sandboxes: Sandboxes, tmp_path: Path) -> None:
    path, gone = make("a"), make("b")
    sandboxes.add(told(path))
    sandboxes.add(told(gone, uid="u9", container="c9"))
    sandboxes.remove("c9")
    again = Sandboxes(tmp_path / "sandboxes.json")
    again.restore()
    assert again.locate(pod(addresses=())) == path
    assert again.locate(pod(uid="u9")) is None


@pytest.mark.parametrize("text", [b"", b"{}", b'[{"pod":1}]', b"\xff"])
def test_a_record_that_cannot_be_read_is_no_record(sandboxes: Sandboxes, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "sandboxes.json").write_bytes(text)
    sandboxes.restore()
    assert sandboxes.told() == {}


def test_pods_that_were_there_before_are_found_by_their_addresses(
    make: Make, sandboxes: Sandboxes, folder: Path
) -> None:
    db, web = make("x", FOUR, SIX), make("y", OTHER_FOUR)
    make("z", "10.91.0.9")
    pods = [pod(addresses=(FOUR, SIX)), pod("web", "u2", (OTHER_FOUR,)), pod("elsewhere", "u3", ("10.91.1.1",))]
    assert Discovery([folder], sandboxes).look(pods) == []
    assert [sandboxes.locate(one) for one in pods] == [db, web, None]
    assert sandboxes.locate(pod(uid="made-anew", addresses=(FOUR, SIX))) is None


def test_every_address_must_be_there(make: Make, sandboxes: Sandboxes, folder: Path) -> None:
    make("x", FOUR)
    make("y", SIX)
    one = pod(addresses=(FOUR, SIX))
    assert Discovery([folder], sandboxes).look([one]) == []
    assert sandboxes.locate(one) is None


@pytest.mark.parametrize("how", [{"host_network": True}, {"phase": "Succeeded"}, {"addresses": ()}])
def test_pods_that_have_no_namespace_of_their_own_are_not_looked_for(
    make: Make, sandboxes: Sandboxes, folder: Path, how: dict[str, object]
) -> None:
    make("x", FOUR)
    one = pod(**how)  # type: ignore[arg-type]
    assert Discovery([folder], sandboxes).look([one]) == []
    assert sandboxes.locate(one) is None


def test_two_namespaces_with_a_pod_s_address_are_reported_and_none_is_chosen(
    make: Make, sandboxes: Sandboxes, folder: Path
) -> None:
    one, discovery = pod(), Discovery([folder], sandboxes)
    right = make("x", FOUR)
    assert discovery.look([one]) == []
    make("y", FOUR)
    (problem,) = discovery.look([one])
    assert "shop/db" in problem
    assert FOUR in problem
    assert str(right) in problem
    assert sandboxes.locate(one) is None
    netns.remove(folder / "y")
    assert discovery.look([one]) == []
    assert sandboxes.locate(one) == right


def test_two_names_of_one_namespace_are_no_ambiguity(make: Make, sandboxes: Sandboxes, folder: Path) -> None:
    path = make("x", FOUR)
    (folder / "y").symlink_to(path)
    assert Discovery([folder], sandboxes).look([pod()]) == []
    assert sandboxes.locate(pod()) == path


def test_two_pods_with_one_address_are_reported_and_neither_gets_it(
    make: Make, sandboxes: Sandboxes, folder: Path
) -> None:
    make("x", FOUR)
    pods = [pod(), pod("web", "u2")]
    problems = Discovery([folder], sandboxes).look(pods)
    assert ["shop/db" in problems[0], "shop/web" in problems[1]] == [True, True]
    assert [sandboxes.locate(one) for one in pods] == [None, None]


def test_a_namespace_that_the_plugin_told_of_is_nobody_else_s(make: Make, sandboxes: Sandboxes, folder: Path) -> None:
    """An address is used again before the API has forgotten who had it."""
    path = make("x", FOUR)
    sandboxes.add(told(path))
    former = pod("former", "u0")
    assert Discovery([folder], sandboxes).look([former, pod()]) == []
    assert sandboxes.locate(former) is None
    assert sandboxes.locate(pod()) == path


def test_addresses_that_come_after_the_namespace_are_found(make: Make, sandboxes: Sandboxes, folder: Path) -> None:
    path, discovery = make("x"), Discovery([folder], sandboxes)
    for _ in range(5):
        discovery.look([pod()])
    give(path, FOUR)
    ticks = 0
    while sandboxes.locate(pod()) is None:
        discovery.look([pod()])
        ticks += 1
    assert ticks <= 8


def test_the_runtime_s_name_for_a_namespace_is_understood(make: Make, folder: Path, tmp_path: Path) -> None:
    path, other = make("cni-1", FOUR), make("cni-2", OTHER_FOUR)
    folders = [tmp_path / "missing", folder]
    assert find(folders, "/var/run/netns/cni-1", packed(FOUR)) == path
    assert find(folders, "/var/run/netns/cni-1", ()) == path
    # A path of /proc is another process here: the addresses say which namespace is meant.
    assert find(folders, "/proc/1/ns/net", packed(OTHER_FOUR)) == other
    assert find(folders, "/var/run/netns/cni-1", packed(OTHER_FOUR)) == other
    assert find(folders, "/proc/1/ns/net", ()) is None
    assert find(folders, "/var/run/netns/cni-1", packed("10.91.0.9")) is None
    make("cni-3", OTHER_FOUR)
    assert find(folders, "/proc/1/ns/net", packed(OTHER_FOUR)) is None
    for name in ("..", "", "/", "cni-1/.."):
        assert find(folders, name, ()) is None
