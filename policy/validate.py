"""What the API server would refuse in an object whose shape is right.

Sources: pkg/apis/networking/validation/validation.go of Kubernetes, and the validation rules of the
ClusterNetworkPolicy CRD (policy.networking.k8s.io/v1alpha2).
"""

from __future__ import annotations

import re
from typing import Any, Final

from policy.addresses import parse_address, parse_network
from policy.document import join
from policy.fields import Fields, check_label
from policy.objects import (
    Action,
    ClusterPeer,
    ClusterPort,
    ClusterProtocol,
    ClusterRule,
    ClusterSubject,
    IPBlock,
    LabelSelector,
    NamespacedPods,
    Operator,
    PolicyPeer,
    PolicyPort,
    Rule,
)
from trireme_py.model import Address, NamedPort, Protocol

MAX_ITEMS: Final = 25
"""Of rules a direction, peers a rule, protocols a rule and networks a peer in a ClusterNetworkPolicy."""
PROTOCOLS: Final = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}
_PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
"""IANA service name (RFC 6335, section 5.1), lower case."""
_DOMAIN = re.compile(r"(\*\.)?([a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?")


def check_selector(selector: LabelSelector, fields: Fields, path: str) -> None:
    for key, value in selector.match_labels.items():
        check_label(fields, _relative(fields, join(f"{path}.matchLabels", key)), key, (value,))
    for index, item in enumerate(selector.match_expressions):
        where = _relative(fields, f"{path}.matchExpressions[{index}]")
        check_label(fields, where, item.key, item.values)
        if item.operator in (Operator.IN, Operator.NOT_IN) and not item.values:
            fields.problem(f"{where}.values", f"{item.operator.value} needs at least one value", "add values: [...]")
        if item.operator in (Operator.EXISTS, Operator.DOES_NOT_EXIST) and item.values:
            fields.problem(f"{where}.values", f"{item.operator.value} takes no values", "remove values")


def check_rule(rule: Rule, fields: Fields, path: str) -> None:
    """Check one rule of a NetworkPolicy."""
    side = "from" if path.startswith("ingress") else "to"
    for index, peer in enumerate(rule.peers):
        _check_peer(peer, fields, f"{path}.{side}[{index}]")
    for index, port in enumerate(rule.ports):
        _check_port(port, fields, f"{path}.ports[{index}]")


def _check_peer(peer: PolicyPeer, fields: Fields, path: str) -> None:
    if peer.pod_selector is not None:
        check_selector(peer.pod_selector, fields, f"{path}.podSelector")
    if peer.namespace_selector is not None:
        check_selector(peer.namespace_selector, fields, f"{path}.namespaceSelector")
    if peer.ip_block is not None:
        if peer.pod_selector is not None or peer.namespace_selector is not None:
            hint = "write ipBlock as an item of its own, with '- ' before it"
            fields.problem(path, "ipBlock stands beside a selector", hint)
        _check_block(peer.ip_block, fields, f"{path}.ipBlock")
    elif peer.pod_selector is None and peer.namespace_selector is None:
        hint = "write podSelector, namespaceSelector or ipBlock; to allow everyone, remove the whole list"
        fields.problem(path, "names no peer", hint)


def _check_block(block: IPBlock, fields: Fields, path: str) -> None:
    try:
        whole = parse_network(block.cidr)
    except ValueError:
        fields.problem(f"{path}.cidr", f"{block.cidr[:60]!r} is not a CIDR block", _cidr_hint(block.cidr))
        return
    for index, text in enumerate(block.exceptions):
        where = f"{path}.except[{index}]"
        try:
            part = parse_network(text)
        except ValueError:
            fields.problem(where, f"{text[:60]!r} is not a CIDR block", _cidr_hint(text))
            continue
        if part == whole or not part.within(whole):
            fields.problem(where, f"{text} does not lie strictly inside {block.cidr}", "narrow it, or remove it")


def _cidr_hint(text: str) -> str:
    try:
        return f"write {text}/{len(parse_address(text)) * 8} for this one address"
    except ValueError:
        return "write address/prefix length, such as 10.0.0.0/8"


def _check_port(port: PolicyPort, fields: Fields, path: str) -> None:
    if port.protocol not in PROTOCOLS:
        upper = port.protocol.upper()
        hint = f"write {upper}" if upper in PROTOCOLS else "write TCP, UDP or SCTP"
        fields.problem(f"{path}.protocol", f"{port.protocol[:40]!r} is not a protocol that policy knows", hint)
    if isinstance(port.port, int):
        _check_number(port.port, fields, f"{path}.port")
    elif isinstance(port.port, str) and not _PORT_NAME.fullmatch(port.port):
        hint = f"write {port.port} without quotes" if port.port.isdigit() else "use at most 15 lower-case letters and -"
        fields.problem(f"{path}.port", f"{port.port[:40]!r} is not a port name", hint)
    if port.end_port is None:
        return
    if not isinstance(port.port, int):
        fields.problem(f"{path}.endPort", "needs a port number to begin at", "write port: as a number")
        return
    _check_number(port.end_port, fields, f"{path}.endPort")
    if port.end_port < port.port:
        fields.problem(f"{path}.endPort", f"{port.end_port} is below port {port.port}", "swap them")


def _check_number(number: int, fields: Fields, path: str) -> None:
    if not 1 <= number <= 65535:
        fields.problem(path, f"{number} is not a port", "write a number from 1 to 65535")


def check_subject(subject: ClusterSubject, fields: Fields) -> None:
    if (subject.namespaces is None) == (subject.pods is None):
        fields.problem("subject", "must have exactly one of namespaces and pods", "write namespaces: {} for every pod")
    if subject.namespaces is not None:
        check_selector(subject.namespaces, fields, "subject.namespaces")
    _check_pods(subject.pods, fields, "subject.pods")


def _check_pods(pods: NamespacedPods | None, fields: Fields, path: str) -> None:
    if pods is not None:
        check_selector(pods.namespace_selector, fields, f"{path}.namespaceSelector")
        check_selector(pods.pod_selector, fields, f"{path}.podSelector")


def check_cluster_rule(rule: ClusterRule, fields: Fields, path: str) -> None:
    """Check one rule of a ClusterNetworkPolicy."""
    egress = path.startswith("egress")
    side = f"{path}.{'to' if egress else 'from'}"
    if len(rule.name) > 100:
        fields.problem(f"{path}.name", f"has {len(rule.name)} characters", "use at most 100")
    if not rule.peers:
        fields.problem(side, "names no peer", "write '- namespaces: {}' for every pod")
    for index, peer in enumerate(rule.peers):
        _check_cluster_peer(peer, rule.action, egress, fields, f"{side}[{index}]")
    for index, protocol in enumerate(rule.protocols):
        _check_protocol(protocol, fields, f"{path}.protocols[{index}]")
    named = any(protocol.destination_named_port is not None for protocol in rule.protocols)
    if named and any(peer.namespaces is None and peer.pods is None for peer in rule.peers):
        hint = "write the port's number, or give the named port a rule of its own"
        fields.problem(f"{path}.protocols", "destinationNamedPort beside peers that are not pods", hint)
    for name, items in ((side, rule.peers), (f"{path}.protocols", rule.protocols)):
        if len(items) > MAX_ITEMS:
            fields.problem(name, f"holds {len(items)} items", f"split the rule: at most {MAX_ITEMS}")


def _check_cluster_peer(peer: ClusterPeer, action: Action, egress: bool, fields: Fields, path: str) -> None:
    given = (peer.namespaces, peer.pods, peer.networks, peer.nodes, peer.domain_names)
    if sum(field is not None for field in given) != 1:
        names = "namespaces, pods, networks, nodes and domainNames" if egress else "namespaces and pods"
        fields.problem(path, f"must have exactly one of {names}", "give each peer an item of its own")
    if not egress and any(field is not None for field in given[2:]):
        fields.problem(path, "networks, nodes and domainNames are egress peers", "write namespaces or pods")
    if peer.namespaces is not None:
        check_selector(peer.namespaces, fields, f"{path}.namespaces")
    if peer.nodes is not None:
        check_selector(peer.nodes, fields, f"{path}.nodes")
    _check_pods(peer.pods, fields, f"{path}.pods")
    for name, items in (("networks", peer.networks), ("domainNames", peer.domain_names)):
        if items is not None and not 1 <= len(items) <= MAX_ITEMS:
            fields.problem(f"{path}.{name}", f"holds {len(items)} items", f"write 1 to {MAX_ITEMS}")
    for index, text in enumerate(peer.networks or ()):
        try:
            parse_network(text)
        except ValueError:
            fields.problem(f"{path}.networks[{index}]", f"{text[:60]!r} is not a CIDR block", _cidr_hint(text))
    if peer.domain_names is not None and action is not Action.ACCEPT:
        fields.problem(f"{path}.domainNames", f"cannot be used with {action.value}", "use domainNames with Accept only")
    for index, text in enumerate(peer.domain_names or ()):
        if not _DOMAIN.fullmatch(text):
            hint = "write a name with a dot, with '*.' in front if its subdomains are meant"
            fields.problem(f"{path}.domainNames[{index}]", f"{text[:60]!r} is not a domain name", hint)


def _check_protocol(protocol: ClusterProtocol, fields: Fields, path: str) -> None:
    given = (protocol.tcp, protocol.udp, protocol.sctp, protocol.destination_named_port)
    if sum(field is not None for field in given) != 1:
        hint = "give each protocol an item of its own"
        fields.problem(path, "must have exactly one of tcp, udp, sctp and destinationNamedPort", hint)
    for name, ports in (("tcp", protocol.tcp), ("udp", protocol.udp), ("sctp", protocol.sctp)):
        if ports is not None:
            _check_cluster_port(ports.destination_port, fields, f"{path}.{name}.destinationPort")
    if protocol.destination_named_port is not None and not _PORT_NAME.fullmatch(protocol.destination_named_port):
        name = protocol.destination_named_port[:40]
        hint = "use at most 15 lower-case letters, digits and -"
        fields.problem(f"{path}.destinationNamedPort", f"{name!r} is not a port name", hint)


def _check_cluster_port(port: ClusterPort, fields: Fields, path: str) -> None:
    if (port.number is None) == (port.range is None):
        fields.problem(path, "must have exactly one of number and range", "write number: 80")
    if port.number is not None:
        _check_number(port.number, fields, f"{path}.number")
    if port.range is not None:
        _check_number(port.range.start, fields, f"{path}.range.start")
        _check_number(port.range.end, fields, f"{path}.range.end")
        if port.range.start >= port.range.end:
            fields.problem(f"{path}.range", f"start {port.range.start} is not below end {port.range.end}", "swap them")


def decode_ports(spec: Fields) -> tuple[NamedPort, ...]:
    """Collect the named ports of containers and native sidecars from a pod's spec."""
    found: list[NamedPort] = []
    for group in ("containers", "initContainers"):
        for index, container in enumerate(spec.list_of(group)):
            if not isinstance(container, dict):
                spec.problem(f"{group}[{index}]", "must be a mapping", "write - name: ...")
            elif group == "containers" or container.get("restartPolicy") == "Always":
                found.extend(_container_ports(Fields(container, f"{spec.path}.{group}[{index}]", spec.problems)))
    return tuple(found)


def _container_ports(container: Fields) -> list[NamedPort]:
    found: list[NamedPort] = []
    for index, port in enumerate(container.list_of("ports")):
        data: Any = port if isinstance(port, dict) else {}
        number, name, protocol = data.get("containerPort"), data.get("name"), data.get("protocol", "TCP")
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 65535:
            container.problem(f"ports[{index}].containerPort", f"{number!r} is not a port", "write a number")
        elif protocol not in PROTOCOLS:
            container.problem(f"ports[{index}].protocol", f"{protocol!r} is unknown", "write TCP, UDP or SCTP")
        elif isinstance(name, str) and name:
            found.append(NamedPort(name, int(PROTOCOLS[protocol]), number))
        elif name is not None:
            container.problem(f"ports[{index}].name", f"{name!r} is not a port name", "use lower-case letters and -")
    return found


def decode_addresses(status: Fields) -> tuple[Address, ...]:
    """Read ``status.podIPs``, or ``status.podIP`` where only that is given."""
    texts: list[tuple[str, Any]] = [
        (f"podIPs[{index}].ip", item.get("ip") if isinstance(item, dict) else item)
        for index, item in enumerate(status.list_of("podIPs"))
    ]
    if not texts and status.data.get("podIP"):
        texts.append(("podIP", status.data["podIP"]))
    found: list[Address] = []
    for field, text in texts:
        try:
            found.append(parse_address(text if isinstance(text, str) else ""))
        except ValueError:
            status.problem(field, f"{text!r} is not an IP address", "write an IPv4 or IPv6 address")
    return tuple(dict.fromkeys(found))


def node_addresses(status: Fields) -> tuple[Address, ...]:
    """Read the IP addresses out of a node's ``status.addresses``; host names are passed over."""
    found: list[Address] = []
    for index, item in enumerate(status.list_of("addresses")):
        data: Any = item if isinstance(item, dict) else {}
        if data.get("type") in ("InternalIP", "ExternalIP"):
            try:
                found.append(parse_address(str(data.get("address"))))
            except ValueError:
                text = f"{data.get('address')!r} is not an IP address"
                status.problem(f"addresses[{index}].address", text, "write an IPv4 or IPv6 address")
    return tuple(dict.fromkeys(found))


def _relative(fields: Fields, path: str) -> str:
    """Problems are reported below ``fields.path``; callers of check_selector may give the whole path."""
    return path.removeprefix(f"{fields.path}.") if fields.path else path
