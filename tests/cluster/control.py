"""The control plane: etcd, API server, controller manager and scheduler, and the relay that brings kubectl to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.cluster import machine, pki
from tests.cluster.layout import (
    API_PORT,
    AUDIT_LOG,
    CLUSTER_DOMAIN,
    CONTROL,
    PKI,
    PODS,
    SERVICES,
)

API_SERVER = "kube-apiserver"
_ETCD_URL = "http://127.0.0.1:2379"
_HERE = Path(__file__).parent
_WRITE_A_LITTLE = """
import sys, time, urllib.request
deadline, left = time.monotonic() + 30, 10
while left:
    try:
        urllib.request.urlopen(sys.argv[1] + "/v3/kv/put", b'{"key": "YQ==", "value": "YQ=="}', timeout=5).close()
        left -= 1
    except OSError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.05)
"""
"""So the API server finds that version 1 is past, and refuses a watch from there, as it does when it is old itself."""


def _flags(options: Mapping[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def _joined(values: tuple[object, ...]) -> str:
    return ",".join(str(value) for value in values)


def start_etcd() -> None:
    """Start etcd. It is told not to wait for the disk: the cluster ends with the computer."""
    options = {
        "data-dir": CONTROL.folder / "etcd",
        "listen-client-urls": _ETCD_URL,
        "advertise-client-urls": _ETCD_URL,
        "listen-peer-urls": "http://127.0.0.1:2380",
        "unsafe-no-fsync": "true",
        "log-level": "warn",
        "logger": "zap",
    }
    machine.start(CONTROL, "etcd", "etcd", *_flags(options))
    subprocess.run(machine.enter(CONTROL, sys.executable, "-c", _WRITE_A_LITTLE, _ETCD_URL), check=True)


def start_api_server() -> None:
    """Start the API server; ``up.wait_for_api`` says when it answers."""
    options = {
        "etcd-servers": _ETCD_URL,
        "secure-port": API_PORT,
        "advertise-address": CONTROL.addresses[0],
        "service-cluster-ip-range": _joined(SERVICES),
        "tls-cert-file": pki.certificate_file(API_SERVER),
        "tls-private-key-file": pki.key_file(API_SERVER),
        "client-ca-file": pki.certificate_file("ca"),
        "kubelet-client-certificate": pki.certificate_file("kubelet-client"),
        "kubelet-client-key": pki.key_file("kubelet-client"),
        "kubelet-certificate-authority": pki.certificate_file("ca"),
        "kubelet-preferred-address-types": "InternalIP",
        "requestheader-client-ca-file": pki.certificate_file("front-proxy-ca"),
        "requestheader-allowed-names": "front-proxy-client",
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "proxy-client-cert-file": pki.certificate_file("front-proxy-client"),
        "proxy-client-key-file": pki.key_file("front-proxy-client"),
        "enable-aggregator-routing": "true",
        "service-account-key-file": PKI / "service-accounts.pub",
        "service-account-signing-key-file": pki.key_file("service-accounts"),
        "service-account-issuer": f"https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": "true",
        "audit-policy-file": _HERE / "manifests" / "audit-policy.yaml",
        "audit-log-path": AUDIT_LOG,
        "audit-log-maxsize": 200,
        "audit-log-maxbackup": 1,
    }
    machine.start(CONTROL, API_SERVER, API_SERVER, *_flags(options))


def start_controllers() -> None:
    """Start the controller manager and the scheduler; the API server answers already."""
    kubeconfig = pki.kubeconfig("kube-controller-manager")
    options = {
        "kubeconfig": kubeconfig,
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "requestheader-client-ca-file": pki.certificate_file("front-proxy-ca"),
        "leader-elect": "false",
        "use-service-account-credentials": "true",
        "service-account-private-key-file": pki.key_file("service-accounts"),
        "root-ca-file": pki.certificate_file("ca"),
        "cluster-signing-cert-file": pki.certificate_file("ca"),
        "cluster-signing-key-file": pki.key_file("ca"),
        "cluster-cidr": _joined(PODS),
        "service-cluster-ip-range": _joined(SERVICES),
        "allocate-node-cidrs": "false",
        # Else the pods of a node are taken out of Services when it, or the API server, was slow or away for 50 s.
        "node-monitor-grace-period": "10m",
    }
    machine.start(CONTROL, "kube-controller-manager", "kube-controller-manager", *_flags(options))
    kubeconfig = pki.kubeconfig("kube-scheduler")
    options = {
        "kubeconfig": kubeconfig,
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "leader-elect": "false",
    }
    machine.start(CONTROL, "kube-scheduler", "kube-scheduler", *_flags(options))


def start_relay() -> None:
    """Start what carries connections from this computer's loopback to the API server."""
    machine.start_outside("relay", sys.executable, str(_HERE / "relay.py"), str(CONTROL.namespace), str(API_PORT))
