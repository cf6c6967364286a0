"""What runs on a node: containerd, kubelet and kube-proxy, and the CNI configuration that other plugins can join."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.cluster import machine, pki
from tests.cluster.images import PAUSE
from tests.cluster.layout import CLUSTER_DOMAIN, DNS_SERVICE, PODS, Machine

CNI_PLUGINS = ("bridge", "firewall", "host-local", "loopback", "portmap", "ptp", "tuning")
_NO_DAD = "no-dad"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"

_CONTAINERD = f"""\
version = 2
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
"""


def node_object(node: Machine) -> dict[str, object]:
    """The Node object, made before the kubelet looks for it, so that the CNI file below is right from the start."""
    pods = [str(network) for network in node.pods or ()]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": {"kubernetes.io/hostname": node.name}},
        "spec": {"podCIDR": pods[0], "podCIDRs": pods},
    }


def _kubelet(node: Machine) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"x509": {"clientCAFile": str(pki.certificate_file("ca"))}, "webhook": {"enabled": True}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki.certificate_file(node.name)),
        "tlsPrivateKeyFile": str(pki.key_file(node.name)),
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "clusterDNS": [str(address) for address in DNS_SERVICE],
        "clusterDomain": CLUSTER_DOMAIN,
        "resolvConf": "/etc/kubernetes/resolv.conf",
        "volumePluginDir": "/var/lib/kubelet/volumeplugins",
        "serializeImagePulls": False,
        # A machine without CAP_SYS_RESOURCE and with the first version of cgroups, shared by both nodes and all else:
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.name}",
        "enforceNodeAllocatable": [],
        "oomScoreAdj": 0,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
            "imagefs.inodesFree": "0%",
        },
    }


def _proxy(node: Machine) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "hostnameOverride": node.name,
        "clientConnection": {"kubeconfig": str(pki.kubeconfig("kube-proxy"))},
        "clusterCIDR": ",".join(str(network) for network in PODS),
        # The bounds of the connection table belong to the whole computer.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def _cni(node: Machine) -> dict[str, object]:
    """The network configuration: each pod on a point-to-point link, routed by the node."""
    ranges = [[{"subnet": str(network)}] for network in node.pods or ()]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    ipam = {"type": "host-local", "dataDir": "/run/cni-ipam", "ranges": ranges, "routes": routes}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    plugins = [{"type": _NO_DAD}, {"type": "ptp", "ipam": ipam}, ports]
    return {"cniVersion": "0.4.0", "name": "trireme-test", "plugins": plugins}


def prepare(node: Machine, plugins: Path) -> None:
    """Write a node's configuration into its own /etc and /opt, before the machine is made.

    Args:
        plugins: the folder of the CNI programs.
    """
    folders = {
        name: node.folder / name for name in ("etc/kubernetes", "etc/containerd", "etc/cni/net.d", "opt/cni/bin")
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
    kubernetes = folders["etc/kubernetes"]
    (kubernetes / "kubelet.json").write_text(json.dumps(_kubelet(node), indent=2), encoding="utf-8")
    (kubernetes / "kube-proxy.json").write_text(json.dumps(_proxy(node), indent=2), encoding="utf-8")
    (kubernetes / "resolv.conf").write_text("", encoding="utf-8")  # the cluster has no outside
    (folders["etc/containerd"] / "config.toml").write_text(_CONTAINERD, encoding="utf-8")
    (folders["etc/cni/net.d"] / "10-trireme-test.conflist").write_text(
        json.dumps(_cni(node), indent=2), encoding="utf-8"
    )
    for name in CNI_PLUGINS:
        shutil.copy(plugins / name, folders["opt/cni/bin"] / name)
    own = folders["opt/cni/bin"] / _NO_DAD
    shutil.copy(Path(__file__).with_name(f"{_NO_DAD}.sh"), own)
    own.chmod(0o755)


def start_containerd(node: Machine) -> None:
    machine.start(node, "containerd", "containerd", "--config=/etc/containerd/config.toml")


def start_kubelet(node: Machine) -> None:
    addresses = ",".join(str(address) for address in node.addresses)
    kubeconfig = pki.kubeconfig(node.name)
    options = [f"--kubeconfig={kubeconfig}", f"--node-ip={addresses}", f"--hostname-override={node.name}"]
    machine.start(node, "kubelet", "kubelet", "--config=/etc/kubernetes/kubelet.json", *options)


def start_proxy(node: Machine) -> None:
    machine.start(node, "kube-proxy", "kube-proxy", "--config=/etc/kubernetes/kube-proxy.json")
