"""The agent's end of the CNI plugin: holds each pod that starts until it is under enforcement.

``trireme-cni`` (``agent/cni/trireme_cni.c``) forwards what the container runtime
says; here it is understood. The result of the plugins before ours is passed on as it came: we change no interface.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from ipaddress import ip_interface
from pathlib import Path
from typing import Final

import msgspec

from agent.kubernetes.cni_wire import READ_PATIENCE_S, VERSIONS, Request, answer, receive
from agent.kubernetes.discovery import find
from agent.kubernetes.sandboxes import Sandboxes
from agent.kubernetes.starts import PodStarts, Sandbox
from agent.logs import fields
from agent.runtime import CNI_SOCKET
from trireme_py.errors import KernelError, TriremeError
from trireme_py.model import Address

log = logging.getLogger(__name__)

SOCKET: Final = CNI_SOCKET
"""In the runtime directory."""
ANSWER_MARGIN_S: Final = 0.5
"""The plugin gives up at its deadline; what went wrong is known, and said, this much earlier."""
CLOSE_S: Final = 0.5
"""How often a server with all hands full looks whether it is to close."""
REQUESTS: Final = 128
"""At a time, a thread each; a kubelet has 110 pods by default. More wait in the listener's backlog."""

# https://www.cni.dev/docs/spec/#error; from 100 on they are the plugin's own.
INCOMPATIBLE_VERSION: Final = 1
BAD_ENVIRONMENT: Final = 4
UNDECODABLE: Final = 6
BAD_CONFIGURATION: Final = 7
TRY_LATER: Final = 11
INTERNAL: Final = 100


class _Interface(msgspec.Struct, frozen=True):
    sandbox: str = ""
    """Empty: on the node's side."""


class _Address(msgspec.Struct, frozen=True):
    address: str
    interface: int | None = None


class _Result(msgspec.Struct, frozen=True):
    """What the plugins before ours made."""

    interfaces: tuple[_Interface, ...] = ()
    ips: tuple[_Address, ...] = ()


class _Configuration(msgspec.Struct, frozen=True, rename="camel"):
    cni_version: str = "0.1.0"
    """The specification's default."""
    prev_result: msgspec.Raw = msgspec.Raw()


class _Error(msgspec.Struct, frozen=True, rename="camel"):
    cni_version: str
    code: int
    msg: str


class _Refusal(Exception):
    """An answer that makes the start fail."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class CniServer:
    """Answers the plugin. Each request has a thread, and none ends the process."""

    def __init__(self, path: Path, starts: PodStarts, sandboxes: Sandboxes, folders: Sequence[Path]) -> None:
        self.path = path
        self.held = 0
        """Pods that started under enforcement."""
        self.refused = 0
        """Answers that made a pod's start fail; the kubelet tries again."""
        self._starts = starts
        self._sandboxes = sandboxes
        self._folders = folders
        self._free = threading.BoundedSemaphore(REQUESTS)
        self._stopping = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._run, name="cni", daemon=True)

    def start(self) -> None:
        """Listen on the path, which is replaced if it exists; the caller is the only agent of that directory.

        Raises KernelError if the socket cannot be made there.
        """
        try:
            self.path.unlink(missing_ok=True)
            # The mode is set before anybody can connect: listen() comes after chmod().
            self._listener.bind(str(self.path))
            self.path.chmod(0o600)
            self._listener.listen(REQUESTS)
        except OSError as error:
            raise KernelError(
                f"CNI socket {self.path}: {error.strerror}; set spec.runtimeDirectory to another folder"
            ) from error
        self._thread.start()

    def close(self) -> None:
        """Take no more requests. Pods that are being held then are held by the next agent, which the plugin asks."""
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() does not
        if self._thread.is_alive():
            self._thread.join()
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._free.acquire(timeout=CLOSE_S):
                continue
            try:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), name="cni-request", daemon=True).start()
            except (OSError, RuntimeError) as error:
                self._free.release()
                if not self._stopping.is_set():
                    # No descriptor or no thread is free; the plugin waits, or asks again.
                    log.warning("a CNI request cannot be taken", extra=fields(error=error))
                    self._stopping.wait(0.1)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                if not _is_root(connection):
                    return
                message = answer(*self._answer(receive(connection)))
                connection.settimeout(READ_PATIENCE_S)
                connection.sendall(message)
        except (OSError, ValueError) as error:
            # It went away, which the runtime does when it has lost patience, or it is not our plugin.
            log.warning("CNI request without an answer", extra=fields(error=error))
        except Exception:
            log.exception("CNI request failed")
        finally:
            self._free.release()

    def _answer(self, request: Request) -> tuple[int, bytes]:
        """Return exit code and output."""
        version = VERSIONS[-1]
        try:
            command = request.environment.get("CNI_COMMAND")
            if command == "DEL":
                container = request.environment.get("CNI_CONTAINERID", "")
                self._sandboxes.remove(container)
                self._starts.gone(container)
                return 0, b""
            configuration = _decode(request.input)
            version = configuration.cni_version
            if version not in VERSIONS:
                raise _Refusal(INCOMPATIBLE_VERSION, f"cniVersion {version} is not one of {', '.join(VERSIONS)}")
            if command not in ("ADD", "CHECK"):
                raise _Refusal(BAD_ENVIRONMENT, f"CNI_COMMAND {command} is not one that the agent answers")
            self._hold(request, configuration)
            return 0, bytes(configuration.prev_result) if command == "ADD" else b""
        except _Refusal as refusal:
            code, text = refusal.code, str(refusal)
        except TriremeError as error:
            code, text = TRY_LATER, str(error)
        except Exception as error:
            log.exception("CNI request failed")
            code, text = INTERNAL, f"{type(error).__name__} in the agent; its log says more"
        self.refused += 1
        log.warning("pod not started", extra=fields(args=request.environment.get("CNI_ARGS"), code=code, reason=text))
        return 1, msgspec.json.encode(_Error(version, code, f"trireme: {text}"))

    def _hold(self, request: Request, configuration: _Configuration) -> None:
        arguments = _arguments(request.environment.get("CNI_ARGS", ""))
        name = arguments.get("K8S_POD_NAME")
        if not name:
            return  # started by another tool than a kubelet: no policy of Kubernetes is about it
        container = _required(request.environment, "CNI_CONTAINERID")
        pod = f"{arguments.get('K8S_POD_NAMESPACE', 'default')}/{name}"
        addresses = _addresses(configuration.prev_result)
        path = find(self._folders, _required(request.environment, "CNI_NETNS"), addresses)
        if path is None:
            raise _Refusal(
                TRY_LATER,
                f"pod {pod}: no network namespace with its addresses for {request.environment['CNI_NETNS']} in "
                f"{', '.join(map(str, self._folders))}; the agent needs the folder that the runtime pins them in",
            )
        began = time.monotonic()
        sandbox = Sandbox(pod, arguments.get("K8S_POD_UID", ""), container, path, addresses)
        self._sandboxes.add(sandbox)
        try:
            self._starts.hold(sandbox, max(request.deadline - began - ANSWER_MARGIN_S, 0.0))
        except BaseException:
            self._sandboxes.remove(container)
            raise
        self.held += 1
        log.info(
            "pod held from its start",
            extra=fields(pod=pod, container=container, ms=round((time.monotonic() - began) * 1000, 1)),
        )


def _is_root(connection: socket.socket) -> bool:
    """Tell whether the other end may tell us of pods; the socket's mode says the same."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[1] in (0, os.geteuid())


def _decode(text: bytes) -> _Configuration:
    try:
        return msgspec.json.decode(text, type=_Configuration)
    except msgspec.MsgspecError as error:
        raise _Refusal(UNDECODABLE, f"the network configuration cannot be read: {error}") from error


def _addresses(result: msgspec.Raw) -> tuple[Address, ...]:
    """Return the pod's own addresses, as :func:`agent.interfaces.addresses_of` counts them."""
    if not bytes(result):
        raise _Refusal(BAD_CONFIGURATION, "no prevResult: trireme-cni must come after the plugin that makes interfaces")
    try:
        made = msgspec.json.decode(result, type=_Result)
        found = []
        for one in made.ips:
            here = one.interface is None or not made.interfaces or bool(made.interfaces[one.interface].sandbox)
            address = ip_interface(one.address).ip
            if here and not address.is_loopback and not address.is_link_local:
                found.append(address.packed)
    except (msgspec.MsgspecError, ValueError, IndexError) as error:
        raise _Refusal(UNDECODABLE, f"prevResult cannot be read: {error}") from error
    return tuple(found)


def _arguments(text: str) -> dict[str, str]:
    """Split ``CNI_ARGS``: ``NAME=VALUE;NAME=VALUE``."""
    return {name: value for name, _, value in (pair.partition("=") for pair in text.split(";"))}


def _required(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise _Refusal(BAD_ENVIRONMENT, f"{name} is not set")
    return environment[name]
