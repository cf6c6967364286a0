"""Connections to the API server: where it is, who we are, and plain requests and streams.

The standard library's client and 200 lines do what the agent needs: no retries, proxies or pools, and none of the
official client's generated models, whose import alone costs 35 MiB on every node. Files with tokens, certificates and
keys are looked at again for each connection: a service account's token is replaced every hour.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from agent.kubernetes.calls import JSON
from trireme_py.errors import ConfigError

CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 30.0
"""Of a request that is no watch. The API server gives up on one after a minute."""
LARGEST_ANSWER: Final = 256 << 20
"""A page of 500 objects has a megabyte or two, and etcd takes no object above 1.5; far more is no API server."""
_READ: Final = 1 << 16
_KEEPALIVE_IDLE_S: Final = 20
_KEEPALIVE_INTERVAL_S: Final = 5
_KEEPALIVE_PROBES: Final = 3
"""A machine that is gone is noticed within 35 s, although nobody says so and a watch may be silent for a minute."""

_SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is, and what shows who we are. Paths are read at each connection."""

    host: str
    port: int
    tls: bool = True
    server_name: str | None = None
    """Name that its certificate must be for, if that is not ``host``."""
    authority: Path | bytes | None = None
    """Certificates that vouch for the server, PEM; None: those that this machine trusts."""
    certificate: Path | bytes | None = None
    key: Path | bytes | None = None
    token: Path | str | None = None

    def __repr__(self) -> str:
        return f"Access({self.host}:{self.port})"  # nothing secret, whoever prints it

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def in_cluster(environment: Mapping[str, str] = os.environ, folder: Path = _SERVICE_ACCOUNT) -> Access:
    """Return the access that Kubernetes gives to every pod. Raises ConfigError where this is none."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port.isdigit():
        raise ConfigError(
            "spec.kubernetes: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, so this is no pod; "
            "set spec.kubernetes.kubeconfig"
        )
    for name in ("token", "ca.crt"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{folder / name}: is not there; set automountServiceAccountToken: true in the pod's spec"
            )
    return Access(host, int(port), authority=folder / "ca.crt", token=folder / "token")


class Connection:
    """One connection to the API server; use it from one thread."""

    def __init__(self, access: Access, context: ssl.SSLContext | None, agent: str) -> None:
        self._access = access
        self._agent = agent
        self._interrupted = False
        if context is None:
            self._http = http.client.HTTPConnection(access.host, access.port, timeout=CONNECT_TIMEOUT_S)
        else:
            self._http = _TlsConnection(access, context)
        self._http.auto_open = 0  # never again behind the back of interrupt()

    def send(
        self, method: str, path: str, body: bytes | None = None, *, content_type: str = JSON, accept: str = JSON
    ) -> http.client.HTTPResponse:
        """Return the answer, its body unread. Raises OSError or HTTPException if there is none."""
        headers = {"Accept": accept, "User-Agent": self._agent}
        if body is not None:
            headers["Content-Type"] = content_type
        token = self._access.token
        if token is not None:
            headers["Authorization"] = f"Bearer {token if isinstance(token, str) else token.read_text().strip()}"
        if self._http.sock is None:
            self._http.connect()
            if self._http.sock is not None:
                _keep_alive(self._http.sock)
            if self._interrupted:  # while it was being opened
                raise ConnectionAbortedError("interrupted")
        self.set_timeout(ANSWER_TIMEOUT_S)
        self._http.request(method, path, body, headers)
        return self._http.getresponse()

    def set_timeout(self, seconds: float) -> None:
        """Give up on a read that brings nothing for so long."""
        if self._http.sock is not None:
            self._http.sock.settimeout(seconds)

    def close(self) -> None:
        self._http.close()

    def interrupt(self) -> None:
        """End whatever another thread waits for on it, now or next."""
        self._interrupted = True
        if (opened := self._http.sock) is not None:
            with suppress(OSError):
                socket.socket.shutdown(opened, socket.SHUT_RDWR)  # of TLS, too: its own would wait for the reader


class _TlsConnection(http.client.HTTPSConnection):
    """TLS to a server whose certificate may be for another name than the address it is dialled by."""

    def __init__(self, access: Access, context: ssl.SSLContext) -> None:
        super().__init__(access.host, access.port, timeout=CONNECT_TIMEOUT_S, context=context)
        self._tls, self._name = context, access.server_name or access.host

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name)


class ApiServer:
    """Implements :class:`agent.kubernetes.calls.Api`. May be used from any thread."""

    def __init__(self, access: Access, agent: str = "trireme-agent") -> None:
        """``agent``: how the API server's log calls us."""
        self.access = access
        self._agent = agent
        self._context: tuple[object, ssl.SSLContext] | None = None

    def connect(self) -> Connection:
        """Return a connection, which opens itself at the first request. Raises OSError if a file cannot be read."""
        return Connection(self.access, self._tls() if self.access.tls else None, self._agent)

    def request(
        self, method: str, path: str, body: bytes | None = None, *, content_type: str = JSON, accept: str = JSON
    ) -> tuple[int, bytes]:
        with closing(self.connect()) as connection:
            try:
                answer = connection.send(method, path, body, content_type=content_type, accept=accept)
                return answer.status, read_all(answer)
            except http.client.HTTPException as error:
                raise ConnectionError(f"{self.access.address}: {error or type(error).__name__}") from error

    def _tls(self) -> ssl.SSLContext:
        """Return a context made from the files as they are now."""
        access = self.access
        files = [path for path in (access.authority, access.certificate, access.key) if isinstance(path, Path)]
        state = tuple((path, found.st_mtime_ns, found.st_ino) for path in files if (found := path.stat()))
        cached = self._context
        if cached is not None and cached[0] == state:
            return cached[1]
        context = ssl.create_default_context()
        if access.authority is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            text = access.authority if isinstance(access.authority, bytes) else access.authority.read_bytes()
            context.load_verify_locations(cadata=text.decode())
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if access.certificate is not None and access.key is not None:
            with _as_file(access.certificate) as certificate, _as_file(access.key) as key:
                context.load_cert_chain(certificate.name, key.name)
        self._context = state, context
        return context


class _as_file:
    """A file of what is in memory, without a trace on a disk; a path stands for itself."""

    def __init__(self, content: Path | bytes) -> None:
        self._content = content
        self._descriptor: int | None = None
        self.name = str(content) if isinstance(content, Path) else ""

    def __enter__(self) -> _as_file:
        if isinstance(self._content, bytes):
            self._descriptor = os.memfd_create("credential", os.MFD_CLOEXEC)
            os.write(self._descriptor, self._content)
            self.name = f"/proc/self/fd/{self._descriptor}"
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def read_all(answer: http.client.HTTPResponse) -> bytes:
    """Return the whole body. Raises OSError or HTTPException if it ends early or is far too long."""
    parts = []
    size = 0
    while part := answer.read(_READ * 16):
        size += len(part)
        if size > LARGEST_ANSWER:
            raise ConnectionError(f"the answer is larger than {LARGEST_ANSWER >> 20} MiB")
        parts.append(part)
    return b"".join(parts)


def split_url(url: str, place: str) -> tuple[str, int, bool]:
    """Return host, port and whether TLS is to be used. ``place`` names the field. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        host, port, scheme = parts.hostname, parts.port, parts.scheme
    except ValueError as error:
        raise ConfigError(f"{place}: {url!r}: {error}") from error
    if scheme not in ("http", "https") or not host or parts.path.strip("/"):
        raise ConfigError(f"{place}: {url!r} is not the URL of an API server, such as https://10.0.0.1:6443")
    return host, port or (443 if scheme == "https" else 80), scheme == "https"


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
    # What was sent and is not acknowledged: a request to a machine that has just gone.
    connection.setsockopt(
        socket.IPPROTO_TCP,
        socket.TCP_USER_TIMEOUT,
        1000 * (_KEEPALIVE_IDLE_S + _KEEPALIVE_INTERVAL_S * _KEEPALIVE_PROBES),
    )
