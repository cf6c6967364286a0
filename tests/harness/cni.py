"""The CNI plugin as a container runtime runs it, and agents at the other end of its socket that behave as told."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.kubernetes.cni_wire import Request, answer, receive
from agent.kubernetes.starts import Sandbox

SOURCE = Path(__file__).parent.parent.parent / "agent" / "cni"
RESULT: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
    "ips": [{"address": "10.77.0.2/24", "interface": 1}],
    "dns": {},
}


def build(folder: Path, *, sanitize: bool = False) -> Path:
    """Compile the plugin into ``folder``."""
    plugin = folder / ("sanitized" if sanitize else "static") / "trireme-cni"
    plugin.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["make", "-s", "-C", SOURCE, f"OUT={plugin}", f"SANITIZE={int(sanitize)}"], check=True, capture_output=True
    )
    return plugin


def stanza(path: Path, version: str = "1.0.0", timeout_s: int = 10, **more: object) -> dict[str, Any]:
    """What libcni hands the plugin on standard input."""
    own = {"cniVersion": version, "name": "net", "type": "trireme-cni"}
    return {**own, "socket": str(path), "timeoutSeconds": timeout_s, **more}


def start(
    plugin: Path, command: str, configuration: object, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Run the plugin without waiting for it. A ``configuration`` in octets is written as it is."""
    text = configuration if isinstance(configuration, bytes) else json.dumps(configuration).encode()
    process = subprocess.Popen(
        [plugin],
        env={"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.close()
    process.stdin = None
    return process


def finish(process: subprocess.Popen[bytes]) -> tuple[int, Any]:
    """Return exit code and decoded output, None if there is none. What sanitizers find ends up in an assertion."""
    output, errors = process.communicate(timeout=60)
    assert errors == b"", errors.decode()
    return process.returncode, json.loads(output) if output else None


def run(
    plugin: Path, command: str, configuration: object, environment: Mapping[str, str] | None = None
) -> tuple[int, Any]:
    """Run the plugin to its end; return exit code and output."""
    return finish(start(plugin, command, configuration, environment))


Behaviour = Callable[[socket.socket], None]


def answering(output: bytes, code: int = 0, seen: list[Request] | None = None) -> Behaviour:
    """An agent that reads the request and gives this answer."""

    def behave(connection: socket.socket) -> None:
        request = receive(connection)
        if seen is not None:
            seen.append(request)
        connection.sendall(answer(code, output))

    return behave


@contextmanager
def agent(path: Path, *behaviours: Behaviour) -> Iterator[None]:
    """Listen on ``path``; each behaviour meets one connection, in turn, the last one all that follow."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(8)

    def serve() -> None:
        left = list(behaviours)
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError, ValueError):  # the plugin had enough
                left[0](connection)
            del left[: len(left) > 1]

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()
        path.unlink()


class Recorder:
    """A PodStarts that writes down what it is asked, and does what the test says."""

    def __init__(self, hold: Callable[[Sandbox], None] = lambda _: None) -> None:
        self.asked: list[Sandbox] = []
        self.patience_s: list[float] = []
        self.let_go: list[str] = []
        self._hold = hold

    def hold(self, sandbox: Sandbox, timeout_s: float) -> None:
        self.asked.append(sandbox)
        self.patience_s.append(timeout_s)
        self._hold(sandbox)

    def gone(self, container: str) -> None:
        self.let_go.append(container)
