"""``trireme cleanup`` says what it did, and that it did nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from agent import backends, leaving
from agent.cli import main
from agent.kubernetes.config import CniConfig
from agent.runtime import Recorded, RuntimeDirectory
from agent.wanted import OWN_NAMESPACE


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this machine's CNI plugins nor its rules are touched."""
    monkeypatch.setattr(leaving, "CniConfig", lambda: CniConfig(configuration=tmp_path / "cni", binaries=tmp_path))
    monkeypatch.setattr(backends, "removers", tuple)


def cleanup(directory: Path) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["cleanup", "--runtime-directory", str(directory)])
    return done.exit_code, done.output


def test_where_nothing_is_recorded_it_says_so(tmp_path: Path) -> None:
    said = f"nothing is recorded in {tmp_path / 'nope'}, and nothing was removed from any namespace\n"
    assert cleanup(tmp_path / "nope") == (0, said)
    assert not (tmp_path / "nope").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "psk.key").write_text("secret")
    assert cleanup(other) == (0, said.replace("nope", "other"))
    assert [path.name for path in other.iterdir()] == ["psk.key"]


def test_the_node_s_own_namespace_goes_by_its_name(tmp_path: Path) -> None:
    runtime = RuntimeDirectory(tmp_path / "run")
    runtime.lock()
    runtime.write_node(OWN_NAMESPACE)
    runtime.write([Recorded("shop/web", "/does/not/exist", (1, 2), 1, "")])
    runtime.release()
    assert cleanup(runtime.path) == (0, f"cleaned this node's own namespace\nremoved {runtime.path}\n")
