"""Pods that rules inside their own namespace cannot hold (docs/datapath.md, "What this cannot hold").

A container with CAP_NET_ADMIN can flush the rules; a runtime that keeps the pod's network stack in a virtual machine,
or in user space, never passes them.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

CAPABILITIES: Final = frozenset({"NET_ADMIN", "ALL"})
"""Those that allow a container to change rules. Kubernetes takes each name with and without ``CAP_``."""
_OTHER_STACKS: Final = re.compile(r"kata|gvisor|runsc|firecracker|hyperv|(^|[-.])vm([-.]|$)")
"""Names of runtime classes whose pods have a network stack of their own. What a class does is not in the Pod."""


class _Capabilities(msgspec.Struct):
    add: tuple[str, ...] | None = None


class _ContainerSecurity(msgspec.Struct):
    privileged: bool | None = None
    capabilities: _Capabilities | None = None


class _Container(msgspec.Struct, rename="camel"):
    name: str = ""
    security_context: _ContainerSecurity | None = None


class _Spec(msgspec.Struct, rename="camel"):
    containers: tuple[_Container, ...] | None = None
    init_containers: tuple[_Container, ...] | None = None
    ephemeral_containers: tuple[_Container, ...] | None = None
    runtime_class_name: str | None = None
    host_network: bool | None = None


class _Pod(msgspec.Struct):
    spec: _Spec = msgspec.field(default_factory=_Spec)


def unholdable(pod: bytes | msgspec.Raw) -> str | None:
    """Return why rules cannot hold ``pod``, a Pod object in JSON as the API has it; None if they can.

    A pod of the host's network is none of those: it is the node, and not enforced as a pod at all.
    """
    try:
        spec = msgspec.json.decode(pod, type=_Pod).spec
    except msgspec.MsgspecError as error:
        return f"its containers cannot be read: {error}"
    if spec.host_network:
        return None
    if spec.runtime_class_name and _OTHER_STACKS.search(spec.runtime_class_name):
        return f"runtime class {spec.runtime_class_name} keeps the pod's network where rules of the node do not reach"
    for containers in (spec.containers, spec.init_containers, spec.ephemeral_containers):
        for container in containers or ():
            reason = _reason(container.security_context)
            if reason:
                return f"container {container.name} {reason}, and can change the rules that hold it"
    return None


def _reason(security: _ContainerSecurity | None) -> str:
    if security is None:
        return ""
    if security.privileged:
        return "is privileged"
    added = (security.capabilities.add if security.capabilities else None) or ()
    for name in added:
        if name.upper().removeprefix("CAP_") in CAPABILITIES:
            return f"has {name}"
    return ""
