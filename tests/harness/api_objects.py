"""A stand-in for the API server's storage: objects by path, versions, conflicts; for calls, not for watches.

It keeps what keys and announcements rely on: a write against an old version is refused, a requester cannot say who he
is, and of a CertificateSigningRequest each subresource writes its own part only.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509

from agent.kubernetes.calls import JSON, MERGE_PATCH

Object = dict[str, Any]
LISTED_AT_ONCE = 2
"""Small, so that every list of three has a second page."""


@dataclass
class Objects:
    """``requester``: user name and extra that the next request comes with."""

    requester: tuple[str, dict[str, list[str]]] = ("", {})
    objects: dict[str, Object] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Method and path without its query, in order."""
    down: bool = False
    denied: frozenset[str] = frozenset()
    """Methods that RBAC does not grant."""
    _version: int = 0

    def request(
        self, method: str, path: str, body: bytes | None = None, *, content_type: str = JSON, accept: str = JSON
    ) -> tuple[int, bytes]:
        if self.down:
            raise ConnectionRefusedError("no API server")
        parts = urlsplit(path)
        self.calls.append((method, parts.path))
        if method in self.denied:
            return _answer(403, f"{method} is forbidden")
        data = json.loads(body or b"null")
        if method == "GET":
            return self._get(parts.path, {key: values[0] for key, values in parse_qs(parts.query).items()})
        if method == "POST":
            return self._create(parts.path, data)
        subresource = parts.path.rpartition("/")[2]
        place = parts.path.removesuffix("/" + subresource) if subresource in ("approval", "status") else parts.path
        if place not in self.objects:
            return _answer(404, f"{place} not found")
        old = self.objects[place]
        asserted = data.get("metadata", {}).get("resourceVersion")
        if asserted not in (None, old["metadata"]["resourceVersion"]) or (method == "PUT" and asserted is None):
            return _answer(409, "the object has been modified")
        if method == "PATCH":
            assert content_type == MERGE_PATCH
            return 200, self._store(place, _merged(old, data))
        assert method == "PUT"
        return 200, self._store(place, _with_subresource(old, data, subresource))

    def _get(self, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        if path in self.objects:
            return 200, json.dumps(self.objects[path]).encode()
        found = [self.objects[key] for key in sorted(self.objects) if key.rpartition("/")[0] == path]
        if not found and path.rpartition("/")[2] not in ("nodes", "leases", "certificatesigningrequests"):
            return _answer(404, f"{path} not found")
        if selector := query.get("labelSelector"):
            key, _, value = selector.partition("=")
            found = [one for one in found if one["metadata"].get("labels", {}).get(key) == value]
        begin = int(query.get("continue", "0"))
        end = begin + LISTED_AT_ONCE
        more = {"continue": str(end)} if end < len(found) else {}
        return 200, json.dumps({"metadata": {"resourceVersion": "1", **more}, "items": found[begin:end]}).encode()

    def _create(self, path: str, data: Object) -> tuple[int, bytes]:
        metadata = data["metadata"]
        if "generateName" in metadata:
            metadata["name"] = f"{metadata['generateName']}{self._version:05d}"
        metadata["uid"] = f"uid-{self._version}"
        place = f"{path}/{metadata['name']}"
        if place in self.objects:
            return _answer(409, f"{place} already exists")
        if data["kind"] == "CertificateSigningRequest":
            pem = base64.b64decode(data["spec"]["request"])
            assert x509.load_pem_x509_csr(pem).is_signature_valid  # as the API server checks
            username, extra = self.requester
            data["spec"].update(username=username, extra=extra)
            data["status"] = {}
        return 201, self._store(place, data)

    def _store(self, place: str, data: Object) -> bytes:
        self._version += 1
        data["metadata"]["resourceVersion"] = str(self._version)
        self.objects[place] = data
        return json.dumps(data).encode()


def _with_subresource(old: Object, new: Object, subresource: str) -> Object:
    if old.get("kind") != "CertificateSigningRequest":
        return new
    old_status, new_status = old.get("status", {}), new.get("status", {})
    settled = ("Approved", "Denied")
    conditions = [
        *(one for one in new_status.get("conditions", ()) if (one["type"] in settled) == (subresource == "approval")),
        *(one for one in old_status.get("conditions", ()) if (one["type"] in settled) != (subresource == "approval")),
    ]
    status = {**old_status, "conditions": conditions}
    if subresource == "status" and "certificate" in new_status:
        pem = base64.b64decode(new_status["certificate"])
        assert x509.load_pem_x509_certificates(pem)  # as the API server checks
        status["certificate"] = new_status["certificate"]
    return {**old, "metadata": dict(old["metadata"]), "status": status}


def _merged(old: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def _answer(status: int, message: str) -> tuple[int, bytes]:
    return status, json.dumps({"kind": "Status", "message": message}).encode()
