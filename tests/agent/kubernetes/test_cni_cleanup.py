from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.commands.cleanup import command
from agent.config import load
from agent.kubernetes.cni_install import CniInstallation
from agent.leaving import cni_installation
from agent.runtime import SANDBOXES, RuntimeDirectory

CONFIG = """\
apiVersion: trireme.io/v1alpha1
kind: AgentConfig
spec:
  trustDomain: example.org
  mode: psk
  credentials: {{presharedKey: psk.key}}
  runtimeDirectory: {0}/run
  kubernetes: {{node: a, cni: {{configuration: {0}/net.d, binaries: {0}/bin}}}}
"""
LIST = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A node with our plugin in its chain, and what an agent leaves in its runtime directory."""
    for name in ("etc", "net.d", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "etc" / "agent.yaml").write_text(CONFIG.format(tmp_path))
    (tmp_path / "net.d" / "10-net.conflist").write_text(json.dumps(LIST))
    (tmp_path / "built").write_bytes(b"program")
    (tmp_path / "run" / SANDBOXES).write_text("[]")
    CniInstallation(
        tmp_path / "run" / "cni.sock",
        30,
        configuration=tmp_path / "net.d",
        binaries=tmp_path / "bin",
        plugin=tmp_path / "built",
    ).repair()
    assert {path.name for path in (tmp_path / "net.d").iterdir()} > {"10-net.conflist"}
    return tmp_path


def cleanup(folder: Path) -> Result:
    return CliRunner().invoke(command, ["--config", str(folder / "etc")])


def test_cleanup_gives_the_chain_back_and_leaves_no_file(folder: Path) -> None:
    done = cleanup(folder)
    assert done.exit_code == 0, done.output
    assert [path.name for path in (folder / "net.d").iterdir()] == ["10-net.conflist"]
    assert json.loads((folder / "net.d" / "10-net.conflist").read_text()) == LIST
    assert list((folder / "bin").iterdir()) == []
    assert not (folder / "run").exists()


def test_what_cannot_be_removed_is_said_and_the_record_stays(folder: Path) -> None:
    program = folder / "bin" / "trireme-cni"
    program.unlink()
    program.mkdir()
    done = cleanup(folder)
    assert done.exit_code == 1
    assert str(program) in done.output
    assert (folder / "run").exists()
    program.rmdir()
    assert cleanup(folder).exit_code == 0
    assert not (folder / "run").exists()


def test_the_agent_installs_what_cleanup_removes(folder: Path) -> None:
    """One place says where the chain is, for both."""
    config = load(folder / "etc")
    assert config.kubernetes is not None
    installation = cni_installation(RuntimeDirectory(config.runtime_directory), config.kubernetes.cni)
    installation.remove()
    assert json.loads((folder / "net.d" / "10-net.conflist").read_text()) == LIST
