"""The agent's configuration: one ``kind: AgentConfig`` document in the ``--config`` folder (docs/standalone.md).

Parsing is strict, and reports everything that is wrong at once, each with file, line and field.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import msgspec

from agent.failmode import FailMode
from agent.kubernetes.config import KubernetesConfig, KubernetesDocument, from_document
from agent.marks import DEFAULT_MASK, Marks
from agent.ruleset import DEFAULT_QUEUE
from policy.files import Document, Problem, join, load_folder
from trireme_py.assertion import MAX_LIFETIME_S
from trireme_py.errors import ConfigError

API_VERSION: Final = "trireme.io/v1alpha1"
KIND: Final = "AgentConfig"
DEFAULT_RUNTIME_DIRECTORY: Final = "/run/trireme"

Network = IPv4Network | IPv6Network
AuthMode = Literal["psk", "pki"]
DatapathName = Literal["c", "python"]
RuleBackendName = Literal["auto", "nft", "legacy", "python-iptables"]

_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")  # SPIFFE-ID standard, section 2.1
_DURATION: Final = re.compile(r"(\d{1,6})([smh])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}
_LIFETIME_RANGE_S: Final = (60, MAX_LIFETIME_S)
"""Shorter than a minute leaves no time to renew at half of it; peers believe nothing longer than a day."""
_PRIVATE: Final = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
"""Private addresses (RFC 1918, RFC 6598, RFC 4193): where pods live in practice."""
_EXAMPLE: Final = (
    "apiVersion: trireme.io/v1alpha1, kind: AgentConfig, "
    "spec: {trustDomain: example.org, mode: psk, credentials: {presharedKey: psk.key}}"
)


@dataclass(frozen=True, slots=True)
class CredentialPaths:
    """Where this node's keys lie, absolute. Those of the other mode are None."""

    preshared_key: Path | None = None
    key: Path | None = None
    certificate: Path | None = None
    authority: Path | None = None


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything the agent can be told. Every field has a user; docs/standalone.md says what each is for."""

    trust_domain: str
    mode: AuthMode
    credentials: CredentialPaths
    pod_ranges: tuple[Network, ...]
    """Where pods live: an address here that is translated must be explained by conntrack."""
    identity_scope: tuple[Network, ...]
    """Destinations that may see a token; labels go nowhere else."""
    require_translation_evidence: bool
    """Refuse a dialled address outside every pod range that conntrack cannot explain, instead of counting it."""
    node_network_namespace: str | None
    """Whose conntrack is asked about translations, name or path; None: the agent's own namespace."""
    mark_mask: int
    queue: int
    rules: RuleBackendName
    datapath: DatapathName
    """Who answers warm connections: the fast path in C, or Python as everything else."""
    fail_mode: FailMode
    metrics: tuple[str, int] | None
    """Address and port to serve metrics on; None: off."""
    health: tuple[str, int] | None
    """Address and port to answer the kubelet's probes on; None: off."""
    flow_log: str | None
    """Path, ``-`` for standard output; None: off."""
    runtime_directory: Path
    assertion_lifetime_s: int
    audit: bool
    """Judge and report everything, enforce nothing."""
    kubernetes: KubernetesConfig | None
    """Where pods and policies come from the API server; None: standalone, they are in the folder."""


class _CredentialsDocument(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    preshared_key: str | None = None
    key: str | None = None
    certificate: str | None = None
    authority: str | None = None


class _SpecDocument(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    trust_domain: str
    mode: AuthMode
    credentials: _CredentialsDocument
    pod_ranges: list[str] = []
    identity_scope: list[str] = msgspec.field(default_factory=lambda: list(_PRIVATE))
    require_translation_evidence: bool = True
    node_network_namespace: str | None = None
    mark_mask: Annotated[int, msgspec.Meta(ge=1, le=0xFFFFFFFF)] = DEFAULT_MASK
    queue: Annotated[int, msgspec.Meta(ge=0, le=65535)] = DEFAULT_QUEUE
    rules: RuleBackendName = "auto"
    datapath: DatapathName = "python"
    fail_mode: Literal["closed", "open"] = "closed"
    # YAML reads a bare `off` as the boolean false.
    metrics: str | bool = "127.0.0.1:9643"
    health: str | bool = False
    flow_log: str | bool = False
    runtime_directory: str = DEFAULT_RUNTIME_DIRECTORY
    assertion_lifetime: str = "1h"
    audit: bool = False
    kubernetes: KubernetesDocument | None = None


_REQUIRED_CREDENTIALS: Final[dict[str, tuple[str, ...]]] = {
    "psk": ("presharedKey",),
    "pki": ("key", "certificate", "authority"),
}
_FIRST_VALUES: Final = {"trustDomain": "example.org", "mode": "psk", "credentials": "{presharedKey: psk.key}"}
"""What to write where a required field is missing."""
_EXPECTED: Final = re.compile(r"Expected `([^`]+)`(?: ([<>]=) (\d+))?")
_IN_WORDS: Final = {
    "str": "text, in quotes",
    "bool | str": "text, in quotes",
    "str | null": "text, in quotes",
    "int": "a number, without quotes",
    "bool": "true or false, without quotes",
    "array": "a list, such as [10.244.0.0/16]",
}


@dataclass(slots=True)
class _Report:
    """Collects what is wrong in one document."""

    folder: Path
    document: Document
    problems: list[Problem]

    def add(self, path: str, message: str) -> None:
        self.problems.append(Problem(self.document.file, self.document.line_of(path), path, message))

    def text(self) -> str:
        return "\n".join(map(str, sorted(self.problems)))


def load(folder: Path) -> AgentConfig:
    """Read the configuration from the one AgentConfig document in ``folder``.

    Raises ConfigError whose text lists every problem, one a line.
    """
    if folder.is_file():
        raise ConfigError(f"{folder}: is a file; name the folder it is in: --config {folder.parent}")
    loaded = load_folder(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is not a folder; make it, with an {KIND} in it: {_EXAMPLE}")
    found = [document for document in loaded.others if document.kind == KIND]
    if not found and (slips := [_slip(document) for document in loaded.others if _is_slip(document)]):
        raise ConfigError("\n".join(map(str, slips)))
    if not found:
        example = f"{folder}: no {KIND} document in any .yaml file; write one: {_EXAMPLE}"
        raise ConfigError("\n".join([*map(str, loaded.problems), example]))
    if len(found) > 1:
        places = ", ".join(f"{document.file}:{document.line}" for document in found)
        raise ConfigError(f"{folder}: more than one {KIND} document ({places}); keep one")
    report = _Report(folder, found[0], [])
    config = _parse(found[0].data, report)
    if report.problems:
        raise ConfigError(report.text())
    return config


def cautions(config: AgentConfig) -> list[tuple[str, str]]:
    """Return the fields that weaken what is enforced, each with what that means: to be said at every start."""
    found: list[tuple[str, str]] = []
    if config.audit:
        found.append(("spec.audit", "everything is judged and reported, and nothing is enforced"))
    if config.fail_mode is FailMode.OPEN:
        found.append(("spec.failMode", "packets that cannot be judged pass, also while no agent runs"))
    if not config.require_translation_evidence:
        rest = "" if config.pod_ranges else "; without spec.podRanges that is every address"
        text = f"a server behind an address outside the pod ranges is believed to be whoever it says it is{rest}"
        found.append(("spec.requireTranslationEvidence", text))
    return found


def check(documents: Iterable[Document]) -> list[Problem]:
    """Return what is wrong with the configuration among ``documents``, wherever it lies."""
    problems: list[Problem] = []
    for document in documents:
        if document.kind == KIND:
            _parse(document.data, _Report(Path(document.file).parent, document, problems))
        elif _is_slip(document):
            problems.append(_slip(document))
    return problems


def _is_slip(document: Document) -> bool:
    """Tell whether a document is ours by its version or, but for upper and lower case, by its kind."""
    group = document.api_version.partition("/")[0]
    return document.kind != KIND and (group == API_VERSION.partition("/")[0] or document.kind.lower() == KIND.lower())


def _slip(document: Document) -> Problem:
    text = f"{document.kind} is not a known kind"
    return Problem(document.file, document.line_of("kind"), "kind", text, f"did you mean {KIND}?")


def _parse(document: dict[str, Any], report: _Report) -> AgentConfig:
    """Return the configuration, which is of use only if nothing was reported."""
    for key in document:
        if key not in ("apiVersion", "kind", "metadata", "spec"):
            report.add(key, "unknown field; an AgentConfig has apiVersion, kind, metadata and spec")
    if document.get("apiVersion") != API_VERSION:
        report.add("apiVersion", f"write apiVersion: {API_VERSION}")
    values = _decode(_SpecDocument, document.get("spec"), "spec", report)
    # A field that could not be decoded gets a harmless value, so that the others are still checked.
    harmless: dict[str, Any] = {"trust_domain": "none", "mode": None, "credentials": None}
    return _semantics(_SpecDocument(**{**harmless, **values}), report)


def _decode(kind: type[Any], data: object, path: str, report: _Report) -> dict[str, Any]:
    """Decode a struct field by field, so that one wrong field does not hide the next; return the good ones."""
    if not isinstance(data, dict):
        report.add(path, "missing" if data is None else "expected a mapping")
        return {}
    known = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            report.add(join(path, key), f"unknown field; did you mean {near[0]}?" if near else "unknown field")
            continue
        wanted = known[key].type
        part = next((one for one in (wanted, *get_args(wanted)) if _is_struct(one)), None)
        if part is not None:
            values[known[key].name] = part(**_decode(part, value, join(path, key), report))
            continue
        try:
            values[known[key].name] = msgspec.convert(value, wanted, strict=True)
        except msgspec.ValidationError as error:
            text, _, where = str(error).partition(" - at `$")
            if get_origin(wanted) is Literal:
                text = f"{value!r} is not one of {', '.join(get_args(wanted))}"
            report.add(join(path, key) + where.rstrip("`"), _in_words(text))
    for key, field in known.items():
        if field.required and key not in data:
            report.add(join(path, key), f"missing; write {key}: {_FIRST_VALUES[key]}")
    return values


def _is_struct(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _in_words(text: str) -> str:
    """Say msgspec's message as one who writes YAML would."""
    match = _EXPECTED.match(text)
    if match is None:
        return text[:1].lower() + text[1:]
    bound = {"<=": f" of at most {match[3]}", ">=": f" of at least {match[3]}"}.get(match[2], "")
    words = _IN_WORDS.get(match[1], match[1])
    return f"must be {words.partition(',')[0]}{bound}" if bound else f"must be {words}"


def _semantics(spec: _SpecDocument, report: _Report) -> AgentConfig:
    """Check what types cannot say."""
    if not _TRUST_DOMAIN.fullmatch(spec.trust_domain):
        report.add("spec.trustDomain", "lower-case letters, digits, '.', '-' and '_' only, 1 to 255 of them")
    return AgentConfig(
        trust_domain=spec.trust_domain,
        mode=spec.mode,
        credentials=_credentials(spec, report),
        pod_ranges=_networks(spec.pod_ranges, "spec.podRanges", report),
        identity_scope=_networks(spec.identity_scope, "spec.identityScope", report),
        require_translation_evidence=spec.require_translation_evidence,
        node_network_namespace=spec.node_network_namespace,
        mark_mask=_mark_mask(spec.mark_mask, report),
        queue=spec.queue,
        rules=spec.rules,
        datapath=spec.datapath,
        fail_mode=FailMode(spec.fail_mode),
        metrics=_listen_address(spec.metrics, "metrics", report),
        health=_listen_address(spec.health, "health", report),
        flow_log=_flow_log(spec.flow_log, report),
        runtime_directory=_runtime_directory(spec.runtime_directory, report),
        assertion_lifetime_s=_lifetime(spec.assertion_lifetime, report),
        audit=spec.audit,
        kubernetes=_kubernetes(spec, report),
    )


def _kubernetes(spec: _SpecDocument, report: _Report) -> KubernetesConfig | None:
    if spec.kubernetes is None:
        return None
    return from_document(
        spec.kubernetes, report.folder, lambda field, text: report.add(join("spec.kubernetes", field), text)
    )


def _credentials(spec: _SpecDocument, report: _Report) -> CredentialPaths:
    if not isinstance(spec.credentials, _CredentialsDocument) or spec.mode not in _REQUIRED_CREDENTIALS:
        return CredentialPaths()
    given = {
        "presharedKey": spec.credentials.preshared_key,
        "key": spec.credentials.key,
        "certificate": spec.credentials.certificate,
        "authority": spec.credentials.authority,
    }
    required = _REQUIRED_CREDENTIALS[spec.mode]
    if spec.mode == "pki" and spec.kubernetes is not None:
        required = ("authority",)  # the node makes its key and asks the cluster's signer (agent/kubernetes/csr.py)
    where = " in a cluster" if spec.kubernetes is not None else ""
    for name, value in given.items():
        if name in required and not value:
            report.add(f"spec.credentials.{name}", f"mode {spec.mode} needs it; {_credential_advice(name, report)}")
        elif name not in required and value is not None:
            report.add(f"spec.credentials.{name}", f"mode {spec.mode} does not use it{where}; remove it")
    paths = {name: None if value is None else (report.folder / value).absolute() for name, value in given.items()}
    return CredentialPaths(paths["presharedKey"], paths["key"], paths["certificate"], paths["authority"])


def _credential_advice(name: str, report: _Report) -> str:
    if name == "presharedKey":
        return f"write psk.key, and make it with: trireme key new {report.folder / 'psk.key'}"
    if name == "key":
        return f"write node.key, and make it with: trireme node request {report.folder}"
    return "write node.crt, which trireme ca sign made: it holds the authority's certificate, too"


def _networks(texts: list[str], path: str, report: _Report) -> tuple[Network, ...]:
    networks: list[Network] = []
    for index, text in enumerate(texts):
        try:
            networks.append(ip_network(text))
        except ValueError as error:
            report.add(join(path, index), f"{error}; write a network such as 10.244.0.0/16")
    return tuple(networks)


def _mark_mask(mask: int, report: _Report) -> int:
    try:
        return Marks(mask).mask
    except ConfigError as error:
        report.add("spec.markMask", str(error))
        return DEFAULT_MASK


def _listen_address(value: str | bool, field: str, report: _Report) -> tuple[str, int] | None:
    if value is False or value == "off":
        return None
    host, _, port = str(value).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ip_address(host)
        number = int(port)
        if not 0 <= number <= 65535:
            raise ValueError(port)
    except ValueError:
        report.add(f"spec.{field}", f"{value!r} is not ADDRESS:PORT, such as 127.0.0.1:9643 or [::1]:9643, or off")
        return None
    return host, number


def _flow_log(value: str | bool, report: _Report) -> str | None:
    if value is False or value == "off":
        return None
    if isinstance(value, str) and (value == "-" or value.startswith("/")):
        return value
    report.add("spec.flowLog", f"{value!r} is not an absolute path, '-' for standard output, or off")
    return None


def _runtime_directory(value: str, report: _Report) -> Path:
    # A Unix socket's path holds 107 bytes (unix(7)); ours is "/observe.sock" longer than the folder.
    if not value.startswith("/") or len(value.encode()) > 90:
        report.add("spec.runtimeDirectory", "an absolute path of at most 90 bytes, such as /run/trireme")
    return Path(value)


def _lifetime(value: str, report: _Report) -> int:
    match = _DURATION.fullmatch(value)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    low, high = _LIFETIME_RANGE_S
    if not low <= seconds <= high:
        report.add("spec.assertionLifetime", f"{value!r} is not a time from 1m to 24h, such as 15m or 1h")
    return seconds
