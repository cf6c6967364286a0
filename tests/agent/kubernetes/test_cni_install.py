"""The plugin's place in a node's CNI chain: taken, kept and given back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from agent.kubernetes.cni_install import NAME, OURS, CniInstallation
from trireme_py.errors import KernelError

STANZA = {"type": NAME, "socket": "/run/trireme/cni.sock", "timeoutSeconds": 30}
BRIDGE = {"type": "bridge", "ipam": {"type": "host-local", "big": 2**60, "ratio": 1.5}}
LIST = {"cniVersion": "1.0.0", "name": "net", "plugins": [BRIDGE, {"type": "portmap"}]}
PLAIN = {"cniVersion": "0.3.1", "name": "net", **BRIDGE}


class Site:
    def __init__(self, folder: Path) -> None:
        self.configuration = folder / "net.d"
        self.binaries = folder / "bin"
        self.plugin = folder / "built"
        for made in (self.configuration, self.binaries):
            made.mkdir()
        self.plugin.write_bytes(b"program")
        self.installation = self.new()

    def new(self, timeout_s: int = 30) -> CniInstallation:
        return CniInstallation(
            Path("/run/trireme/cni.sock"),
            timeout_s,
            configuration=self.configuration,
            binaries=self.binaries,
            plugin=self.plugin,
        )

    def write(self, name: str, configuration: object) -> bytes:
        text = json.dumps(configuration, indent="\t").encode()
        (self.configuration / name).write_bytes(text)
        return text

    def read(self, name: str) -> Any:
        return json.loads((self.configuration / name).read_bytes())

    def files(self) -> dict[str, bytes]:
        """Everything in both folders, by name."""
        return {path.name: path.read_bytes() for one in (self.configuration, self.binaries) for path in one.iterdir()}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_list_gets_our_stanza_and_nothing_else_changes(site: Site) -> None:
    site.write("10-net.conflist", LIST)
    site.write("20-other.conflist", LIST)
    assert site.installation.repair() == ()
    assert site.read("10-net.conflist") == {**LIST, "plugins": [*LIST["plugins"], STANZA]}
    assert site.read("20-other.conflist") == LIST
    program = site.binaries / NAME
    assert program.read_bytes() == b"program"
    assert os.access(program, os.X_OK)


def test_what_was_there_comes_back_octet_for_octet(site: Site) -> None:
    site.write("10-net.conflist", LIST)
    (site.configuration / "10-net.conflist").chmod(0o640)
    (site.configuration / "README").write_text("not ours")
    before = site.files()
    site.installation.repair()
    assert site.files() != before
    site.new().remove()
    assert site.files() == before
    assert (site.configuration / "10-net.conflist").stat().st_mode & 0o777 == 0o640
    site.new().remove()
    assert site.files() == before


def test_nothing_is_touched_while_all_is_in_place(site: Site) -> None:
    site.write("10-net.conflist", LIST)
    site.installation.repair()
    before = [(path, path.stat().st_ino) for path in sorted(site.configuration.iterdir())]
    for installation in (site.installation, site.new()):
        assert installation.repair() == ()
    assert [(path, path.stat().st_ino) for path in sorted(site.configuration.iterdir())] == before


def test_a_list_that_is_written_again_is_chained_again_and_given_back_as_it_then_was(site: Site) -> None:
    site.write("10-net.conflist", LIST)
    site.installation.repair()
    text = site.write("10-net.conflist", {**LIST, "plugins": [BRIDGE]})
    assert site.installation.repair() == ()
    assert site.read("10-net.conflist")["plugins"] == [BRIDGE, STANZA]
    site.installation.remove()
    assert site.files() == {"10-net.conflist": text}


def test_what_others_add_later_stays_when_ours_goes(site: Site) -> None:
    site.write("10-net.conflist", LIST)
    site.installation.repair()
    mesh = {"type": "mesh"}
    chained = site.read("10-net.conflist")
    site.write("10-net.conflist", {**chained, "plugins": [*chained["plugins"], mesh]})
    assert site.installation.repair() == ()
    assert site.read("10-net.conflist")["plugins"] == [*LIST["plugins"], STANZA, mesh]
    site.installation.remove()
    assert site.read("10-net.conflist") == {**LIST, "plugins": [*LIST["plugins"], mesh]}
    assert list(site.files()) == ["10-net.conflist"]


def test_another_time_out_replaces_the_stanza(site: Site) -> None:
    text = site.write("10-net.conflist", LIST)
    site.installation.repair()
    assert site.new(timeout_s=60).repair() == ()
    assert site.read("10-net.conflist")["plugins"] == [*LIST["plugins"], {**STANZA, "timeoutSeconds": 60}]
    site.installation.remove()
    assert site.files() == {"10-net.conflist": text}


@pytest.mark.parametrize("name", ["10-net.conf", "10-net.json"])
def test_a_single_plugin_is_put_into_a_list_of_ours_that_comes_first(site: Site, name: str) -> None:
    text = site.write(name, PLAIN)
    assert site.installation.repair() == ()
    assert site.read(OURS) == {"cniVersion": "0.3.1", "name": "net", "plugins": [PLAIN, STANZA]}
    assert min(path.name for path in site.configuration.iterdir()) == OURS
    changed = {**PLAIN, "mtu": 1400}
    text = site.write(name, changed)
    assert site.installation.repair() == ()
    assert site.read(OURS)["plugins"] == [changed, STANZA]
    site.installation.remove()
    assert site.files() == {name: text}


def test_a_single_plugin_that_becomes_a_list_needs_ours_no_more(site: Site) -> None:
    site.write("10-net.conf", PLAIN)
    site.installation.repair()
    site.write("05-new.conflist", LIST)
    assert site.installation.repair() == ()
    assert not (site.configuration / OURS).exists()
    assert site.read("05-new.conflist")["plugins"][-1] == STANZA


def test_a_single_plugin_that_goes_takes_ours_along(site: Site) -> None:
    site.write("10-net.conf", PLAIN)
    site.installation.repair()
    (site.configuration / "10-net.conf").unlink()
    (problem,) = site.installation.repair()
    assert "no network configuration yet" in problem
    assert list(site.files()) == [NAME]


def test_a_network_that_comes_later_is_chained_when_it_comes(site: Site) -> None:
    (problem,) = site.installation.repair()
    assert str(site.configuration) in problem
    site.write("10-net.conflist", LIST)
    assert site.installation.repair() == ()
    assert site.read("10-net.conflist")["plugins"][-1] == STANZA


def test_a_program_that_was_removed_or_replaced_is_put_back(site: Site) -> None:
    site.write("10-net.conflist", LIST)
    site.installation.repair()
    program = site.binaries / NAME
    program.unlink()
    assert site.installation.repair() == ()
    program.write_bytes(b"another")
    assert site.installation.repair() == ()
    assert program.read_bytes() == b"program"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "truncated"),
        (b"[]", "10-net.conflist"),
        (b'{"cniVersion":"1.0.0"}', "plugins"),
        (b'{"cniVersion":"1.0.0","plugins":[]}', "plugins"),
        (b'{"cniVersion":"1.0.0","plugins":["x"]}', "plugins"),
        (b'{"cniVersion":"0.2.0","plugins":[{"type":"x"}]}', "0.2.0"),
        (b'{"plugins":[{"type":"x"}]}', "0.1.0"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_left_alone(site: Site, text: bytes, expected: str) -> None:
    (site.configuration / "10-net.conflist").write_bytes(text)
    (problem,) = site.installation.repair()
    assert expected in problem
    assert "10-net.conflist" in problem
    assert site.files() == {"10-net.conflist": text, NAME: b"program"}
    site.write("10-net.conflist", LIST)
    assert site.installation.repair() == ()


def test_without_a_program_nothing_is_chained(site: Site) -> None:
    text = site.write("10-net.conflist", LIST)
    site.plugin.unlink()
    (problem,) = site.installation.repair()
    assert "scripts/setup" in problem
    assert site.files() == {"10-net.conflist": text}


def test_a_name_that_comes_before_ours_is_a_problem(site: Site) -> None:
    site.write("!net.conf", PLAIN)
    (problem,) = site.installation.repair()
    assert OURS in problem
    assert list(site.files()) == ["!net.conf", NAME]


def test_what_asks_another_agent_stays(site: Site) -> None:
    site.write("10-net.conflist", LIST)
    site.write("20-net.conf", PLAIN)
    site.installation.repair()
    before = site.files()
    CniInstallation(
        Path("/run/other/cni.sock"), 30, configuration=site.configuration, binaries=site.binaries, plugin=site.plugin
    ).remove()
    assert site.files() == before


def test_removal_from_where_nothing_is(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    CniInstallation(tmp_path / "s", 30, configuration=missing, binaries=missing, plugin=missing).remove()
    assert list(tmp_path.iterdir()) == []


def test_removal_that_fails_says_where(site: Site) -> None:
    (site.binaries / NAME).mkdir()
    with pytest.raises(KernelError, match=NAME):
        site.installation.remove()
