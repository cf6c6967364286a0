"""What an installation is: complete for the API server, and no more powerful than it has to be."""

from __future__ import annotations

import base64
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from agent import config
from agent.kubernetes.readiness import READY_FILE
from tests.harness.kustomize import MANIFESTS, Object, objects, of_kind, pod_specs, rendered

OVERLAYS = ("psk", "pki", "audit")
VERSION = tomllib.loads((MANIFESTS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
NEWEST = "1.37"
CUSTOM = ("monitoring.coreos.com/v1",)
"""Groups whose schemas are not Kubernetes' own."""


def overlay(name: str) -> list[Object]:
    return objects(f"overlays/{name}")


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("version", ["1.30", NEWEST])
def test_every_object_is_as_the_api_server_wants_it(name: str, version: str) -> None:
    for item in overlay(name):
        if item["apiVersion"] not in CUSTOM:
            kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_nothing_is_granted_by_wildcard_and_no_secret_can_be_read(name: str) -> None:
    roles = of_kind(overlay(name), "Role", "ClusterRole")
    assert roles
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], role["metadata"]["name"]
            assert "nonResourceURLs" not in rule
            assert "secrets" not in rule["resources"], role["metadata"]["name"]
            assert not {"delete", "deletecollection", "escalate", "bind", "impersonate"} & set(rule["verbs"])


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_role_is_bound_once_and_to_an_account_that_is_used(name: str) -> None:
    found = overlay(name)
    roles = {(item["kind"], item["metadata"]["name"]) for item in of_kind(found, "Role", "ClusterRole")}
    bindings = of_kind(found, "RoleBinding", "ClusterRoleBinding")
    bound = [(item["roleRef"]["kind"], item["roleRef"]["name"]) for item in bindings]
    assert sorted(bound) == sorted(roles)
    accounts = {item["metadata"]["name"] for item in of_kind(found, "ServiceAccount")}
    subjects = {(one["name"], one["namespace"]) for item in bindings for one in item["subjects"]}
    assert {name for name, _ in subjects} == accounts
    assert {namespace for _, namespace in subjects} == {"trireme-system"}
    assert {spec["serviceAccountName"] for spec in pod_specs(found).values()} == accounts


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_agent_has_three_capabilities_and_no_other_power_over_the_node(name: str) -> None:
    spec = pod_specs(overlay(name))["DaemonSet/trireme-agent"]
    assert not {"hostPID", "hostIPC", "shareProcessNamespace"} & spec.keys()
    (container,) = spec["containers"]
    assert "initContainers" not in spec
    security = container["securityContext"]
    assert "privileged" not in security
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW", "SYS_ADMIN"]}
    assert security["readOnlyRootFilesystem"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    paths = {volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    assert paths == {"/run/netns", "/run/trireme", "/run/xtables.lock", "/etc/cni/net.d", "/opt/cni/bin"}
    propagation = {mount["mountPath"]: mount.get("mountPropagation") for mount in container["volumeMounts"]}
    assert {path for path, way in propagation.items() if way} == {"/run/netns"}
    assert propagation["/run/netns"] == "HostToContainer"


def test_the_signer_has_no_power_over_its_node() -> None:
    spec = pod_specs(overlay("pki"))["Deployment/trireme-signer"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume]
    # In the pod network it would wait for an agent that waits for it.
    assert spec["hostNetwork"] is True


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_agent_outlives_pressure_and_is_updated_one_node_at_a_time(name: str) -> None:
    (daemon_set,) = of_kind(overlay(name), "DaemonSet")
    beside = {"maxSurge": 1, "maxUnavailable": 0}
    assert daemon_set["spec"]["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": beside}
    spec = daemon_set["spec"]["template"]["spec"]
    assert spec["priorityClassName"] == "system-node-critical"
    assert spec["tolerations"] == [{"operator": "Exists"}]
    (container,) = spec["containers"]
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}
    assert set(container["resources"]["limits"]) == {"memory"}, "a throttled agent delays every connection"


@pytest.mark.parametrize("name", OVERLAYS)
def test_probes_ask_the_address_that_the_configuration_answers_on(name: str, tmp_path: Path) -> None:
    (container,) = pod_specs(overlay(name))["DaemonSet/trireme-agent"]["containers"]
    loaded = configuration(name, tmp_path)
    probes = [container[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe")]
    assert {(probe["host"], probe["port"]) for probe in probes} == {loaded.health}
    assert [probe["path"] for probe in probes] == ["/livez", "/livez"]
    assert loaded.metrics is not None


@pytest.mark.parametrize("name", OVERLAYS)
def test_two_agents_can_be_on_a_node_and_only_their_own_files_say_which_is_ready(name: str) -> None:
    spec = pod_specs(overlay(name))["DaemonSet/trireme-agent"]
    (container,) = spec["containers"]
    assert "ports" not in container, "of two pods of the node's network that name a port the second is never placed"
    assert container["readinessProbe"]["exec"]["command"] == ["test", "-e", str(READY_FILE)]
    (volume,) = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == str(READY_FILE.parent)]
    assert [one["emptyDir"]["medium"] for one in spec["volumes"] if one["name"] == volume] == ["Memory"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_configuration_is_one_that_the_agent_takes(name: str, tmp_path: Path) -> None:
    loaded = configuration(name, tmp_path)
    assert loaded.kubernetes is not None
    assert loaded.mode == ("pki" if name == "pki" else "psk")
    assert loaded.audit is (name == "audit")
    (container,) = pod_specs(overlay(name))["DaemonSet/trireme-agent"]["containers"]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    keys = [path for path in (loaded.credentials.preshared_key, loaded.credentials.authority) if path is not None]
    assert [str(path.parent) for path in keys] == ["/etc/trireme-keys"]
    assert "/etc/trireme-keys" in mounts


@pytest.mark.parametrize("name", OVERLAYS)
def test_there_is_one_image_and_it_is_this_version(name: str) -> None:
    found = overlay(name)
    images = {container["image"] for spec in pod_specs(found).values() for container in spec["containers"]}
    assert images == {f"localhost/trireme-py:{VERSION}"}
    assert f"`localhost/trireme-py:{VERSION}`" in (MANIFESTS / "README.md").read_text(encoding="utf-8")
    for item in found:
        assert item["metadata"]["labels"]["app.kubernetes.io/version"] == VERSION
        assert item["metadata"]["labels"]["app.kubernetes.io/part-of"] == "trireme"


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_key_is_in_the_manifests(name: str) -> None:
    assert not of_kind(overlay(name), "Secret")
    for line in rendered(f"overlays/{name}").splitlines():
        for word in line.split():
            assert len(word) < 40 or not _is_base64(word), line
    assert not [path for path in MANIFESTS.rglob("*") if path.suffix in (".key", ".pem", ".crt")]


def configuration(name: str, folder: Path) -> config.AgentConfig:
    (map_,) = of_kind(overlay(name), "ConfigMap")
    for file, text in map_["data"].items():
        (folder / file).write_text(text, encoding="utf-8")
    assert yaml.safe_load(text)["kind"] == "AgentConfig"
    return config.load(folder)


def _is_base64(word: str) -> bool:
    try:
        base64.b64decode(word, validate=True)
    except ValueError:
        return False
    return True
