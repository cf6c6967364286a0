from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import load
from agent.kubernetes.config import CniConfig
from trireme_py.errors import ConfigError

GOOD = """\
apiVersion: trireme.io/v1alpha1
kind: AgentConfig
spec:
  trustDomain: example.org
  mode: psk
  credentials: {presharedKey: psk.key}
"""


def test_how_pods_are_held_from_their_start_is_told_in_a_mapping_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text(GOOD + "  kubernetes: {node: a, cni: {}}\n")
    found = load(tmp_path).kubernetes
    assert found is not None
    assert found.cni == CniConfig(Path("/etc/cni/net.d"), Path("/opt/cni/bin"), 30)
    assert (found.network_namespaces, found.unprotected) == ((Path("/run/netns"),), "declare")
    text = (
        "  kubernetes: {node: a, cni: {configuration: /c, binaries: /b, timeoutSeconds: 60}, "
        "networkNamespaces: [/run/docker/netns], unprotected: refuse}\n"
    )
    (tmp_path / "agent.yaml").write_text(GOOD + text)
    found = load(tmp_path).kubernetes
    assert found is not None
    assert found.cni == CniConfig(Path("/c"), Path("/b"), 60)
    assert (found.network_namespaces, found.unprotected) == ((Path("/run/docker/netns"),), "refuse")
    (tmp_path / "agent.yaml").write_text(GOOD + "  kubernetes: {cni: {binaries: b}, networkNamespaces: [n]}\n")
    with pytest.raises(ConfigError) as refused:
        load(tmp_path)
    assert "spec.kubernetes.cni: 'b' is not an absolute path" in str(refused.value)
    assert "spec.kubernetes.networkNamespaces: 'n' is not an absolute path" in str(refused.value)
