"""Read a kubeconfig file: the current context's server, and credentials that are a certificate or a token.

https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/. Plugins and passwords are refused: an agent that runs
for months on a node has a certificate or a token file of its own.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any, Final

from agent.kubernetes.api import Access, split_url
from policy.document import DocumentError, read_documents_untrusted
from trireme_py.errors import ConfigError

_REFUSED: Final = ("exec", "auth-provider", "username", "password", "as", "as-uid", "as-groups")
_ADVICE: Final = "give the agent a client-certificate with its client-key, or a tokenFile"


def read(file: Path) -> Access:
    """Return what the current context of ``file`` says. Raises ConfigError that names the field."""
    try:
        documents = list(read_documents_untrusted(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"spec.kubernetes.kubeconfig {file}: {getattr(error, 'strerror', error)}") from error
    except DocumentError as error:
        raise ConfigError(f"{file}:{error.line}: {error.message}") from error
    data = documents[0][0] if len(documents) == 1 else None
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: is not one kubeconfig document; write one: kubectl config view --minify --flatten")
    chosen = _text(data, "current-context", f"{file}: current-context")
    context = _named(data, "contexts", "context", chosen, file)
    cluster = _named(
        data, "clusters", "cluster", _text(context, "cluster", f"{file}: contexts[{chosen}].cluster"), file
    )
    name = _text(context, "user", f"{file}: contexts[{chosen}].user")
    user = _named(data, "users", "user", name, file)
    host, port, tls = split_url(_text(cluster, "server", f"{file}: server"), f"{file}: server")
    for field in _REFUSED:
        if user.get(field):
            raise ConfigError(f"{file}: users[{name}].{field}: is not supported; {_ADVICE}")
    if cluster.get("insecure-skip-tls-verify"):
        raise ConfigError(f"{file}: insecure-skip-tls-verify: is not supported; name its certificate-authority")
    token_file = user.get("tokenFile")
    token = file.parent / str(token_file) if token_file else user.get("token")
    if token is not None and not tls:
        raise ConfigError(f"{file}: users[{name}]: a token is not sent to {host}:{port} without TLS; write https://")
    certificate = _content(user, "client-certificate", file)
    key = _content(user, "client-key", file)
    if (certificate is None) != (key is None):
        raise ConfigError(f"{file}: users[{name}]: client-certificate and client-key belong together; name both")
    return Access(
        host,
        port,
        tls,
        cluster.get("tls-server-name"),
        _content(cluster, "certificate-authority", file),
        certificate,
        key,
        token if isinstance(token, Path) or token is None else str(token),
    )


def _text(data: dict[str, Any], field: str, place: str) -> str:
    value = data.get(field)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{place}: missing; see: kubectl config view")
    return value


def _named(data: dict[str, Any], group: str, part: str, name: str, file: Path) -> dict[str, Any]:
    items = data.get(group)
    for item in items if isinstance(items, list) else []:
        if isinstance(item, dict) and item.get("name") == name and isinstance(item.get(part), dict):
            found: dict[str, Any] = item[part]
            return found
    raise ConfigError(f"{file}: {group}: none is called {name!r}; see: kubectl config view")


def _content(data: dict[str, Any], field: str, file: Path) -> Path | bytes | None:
    """Return the path in ``field``, relative to the file, or what is in ``field-data``."""
    inline = data.get(f"{field}-data")
    if inline:
        try:
            return base64.b64decode(str(inline), validate=True)
        except binascii.Error as error:
            raise ConfigError(f"{file}: {field}-data: is not base64; name a file instead: {field}") from error
    path = data.get(field)
    return file.parent / str(path) if path else None
