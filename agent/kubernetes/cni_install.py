"""Puts ``trireme-cni`` into the node's CNI chain, keeps it there, and takes it out again.

Container runtimes use the first file of the configuration folder, by name, that ends in one of :data:`SUFFIXES`. A list
of plugins (``.conflist``) gets a stanza of ours at its end, and the file as it was is kept beside it. A single plugin
is put into a list of ours, in a file whose name comes first. Network plugins write their file again when they are
restarted; so this is looked at in every tick, which costs a stat per file.

The order matters: the program is there before a stanza names it, and is removed after the last one is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.kubernetes.cni_wire import MAX_INPUT, VERSIONS
from agent.logs import fields
from trireme_py.errors import KernelError

log = logging.getLogger(__name__)

NAME: Final = "trireme-cni"
PLUGIN: Final = Path(sys.prefix) / "bin" / NAME
"""Where the image, and scripts/setup, put it."""
CONFIGURATION: Final = Path("/etc/cni/net.d")
BINARIES: Final = Path("/opt/cni/bin")
SUFFIXES: Final = (".conf", ".conflist", ".json")
LIST: Final = ".conflist"
OURS: Final = "0-trireme.conflist"
"""The list into which a single plugin is put; comes before 00-anything."""
KEPT: Final = ".before-trireme"
"""Appended to the name of a file that we changed: the file as it was. Runtimes pass over this suffix."""
_FRESH: Final = ".trireme-new"
"""What is being written. It must be in the same folder: containerd looks again when a file is moved within it."""

Configuration = dict[str, Any]


class CniInstallation:
    """Use it from one thread."""

    def __init__(
        self,
        socket: Path,
        timeout_s: int,
        *,
        configuration: Path = CONFIGURATION,
        binaries: Path = BINARIES,
        plugin: Path = PLUGIN,
    ) -> None:
        """``socket``: that of the agent, as the node sees it; ``timeout_s``: how long a pod waits for the agent."""
        self._stanza = {"type": NAME, "socket": str(socket), "timeoutSeconds": timeout_s}
        self._configuration = configuration
        self._binaries = binaries
        self._plugin = plugin
        self._seen: object = None
        self._problems: tuple[str, ...] = ()

    def repair(self) -> tuple[str, ...]:
        """Bring everything into place, if something has changed since the last call; return what could not be done."""
        if self._problems or self._look() != self._seen:
            try:
                self._copy_plugin()
                self._chain()
                self._problems = ()
            except KernelError as error:
                self._problems = (str(error),)
            self._seen = self._look()
        return self._problems

    def remove(self) -> None:
        """Take the plugin out of every chain, then remove it; nothing happens where it is not.

        What asks another agent, by its socket, stays, and the program with it. Raises KernelError if something of ours
        is left.
        """
        try:
            lists = [path for path in self._configurations() if path.suffix == LIST]
            for path in lists:
                _restore(path, str(self._stanza["socket"]))
            if any(_asks(path) for path in lists if path.exists()):
                return
            for leftover in (*self._configuration.glob(f"*{KEPT}"), *self._configuration.glob(f"*{_FRESH}")):
                leftover.unlink(missing_ok=True)
            for program in (self._binaries / NAME, self._binaries / (NAME + _FRESH)):
                program.unlink(missing_ok=True)
        except OSError as error:
            raise KernelError(f"{error.filename}: {error.strerror}; remove {NAME} there by hand") from error

    def _configurations(self) -> Iterator[Path]:
        """Yield what a runtime would read, in its order."""
        try:
            found = sorted(self._configuration.iterdir())
        except FileNotFoundError:
            return
        yield from (path for path in found if path.suffix in SUFFIXES and path.is_file())

    def _look(self) -> object:
        """Return something that is different after any change that matters."""
        paths = [*self._configurations(), self._binaries / NAME]
        found = []
        for path in paths:
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
        return found

    def _copy_plugin(self) -> None:
        target = self._binaries / NAME
        try:
            program = self._plugin.read_bytes()
        except OSError as error:
            raise KernelError(f"CNI plugin {self._plugin}: {error.strerror}; make it: scripts/setup") from error
        with contextlib.suppress(OSError):
            if target.read_bytes() == program and os.access(target, os.X_OK):
                return
        _write(target, program, 0o755)
        log.info("CNI plugin installed", extra=fields(file=target))

    def _chain(self) -> None:
        ours = self._configuration / OURS
        first = next((path for path in self._configurations() if path.name != OURS), None)
        if first is None:
            # Another network plugin is yet to write its file; ours alone would be a network without interfaces.
            ours.unlink(missing_ok=True)
            raise KernelError(f"{self._configuration}: no network configuration yet; pods are found after their start")
        found = _read(first)
        version = found.get("cniVersion", "0.1.0")
        if version not in VERSIONS:
            text = f"cniVersion {version} is not one of {', '.join(VERSIONS)}; pods are found after their start"
            raise KernelError(f"{first}: {text}")
        if first.suffix == LIST:
            self._add_to(first, found)
            ours.unlink(missing_ok=True)
            return
        if first.name < OURS:
            raise KernelError(f"{first}: comes before {OURS}, which is to hold it; give it a name that begins with 1")
        wrapped = {"cniVersion": version, "name": found.get("name", "network"), "plugins": [found, self._stanza]}
        if not ours.exists() or _read(ours) != wrapped:
            _write(ours, _text(wrapped), 0o644)
            log.info("CNI plugin chained", extra=fields(file=ours, after=first))

    def _add_to(self, path: Path, found: Configuration) -> None:
        plugins = _plugins(path, found)
        # Wherever it stands: another plugin that wants to be last must not be fought.
        if [plugin for plugin in plugins if plugin.get("type") == NAME] == [self._stanza]:
            return
        before = _without_ours(found)
        kept = path.with_name(path.name + KEPT)
        if before == found or not kept.exists():
            _write(kept, path.read_bytes() if before == found else _text(before), 0o600)
        _write(path, _text({**before, "plugins": [*before["plugins"], self._stanza]}), path.stat().st_mode & 0o777)
        log.info("CNI plugin chained", extra=fields(file=path))


def _restore(path: Path, socket: str) -> None:
    """Make ``path`` as it was, octet for octet if nobody else has changed it since."""
    try:
        found = _read(path)
    except KernelError:
        return  # not one that we wrote
    before = _without_ours(found, socket)
    if before == found:
        return
    if path.name == OURS:
        path.unlink()
        return
    kept = path.with_name(path.name + KEPT)
    try:
        text = kept.read_bytes() if _read(kept) == before else _text(before)
    except (OSError, KernelError):
        text = _text(before)
    _write(path, text, path.stat().st_mode & 0o777)
    kept.unlink(missing_ok=True)
    log.info("CNI plugin removed from its chain", extra=fields(file=path))


def _asks(path: Path) -> bool:
    """Tell whether the plugin is in this list."""
    try:
        found = _read(path)
    except KernelError:
        return False
    return _without_ours(found) != found


def _without_ours(found: Configuration, socket: str | None = None) -> Configuration:
    """Return a list without our stanzas; with a ``socket``, without those that name it."""
    plugins = found.get("plugins")
    if not isinstance(plugins, list):
        return found

    def ours(one: object) -> bool:
        return isinstance(one, dict) and one.get("type") == NAME and socket in (None, one.get("socket"))

    return {**found, "plugins": [one for one in plugins if not ours(one)]}


def _plugins(path: Path, found: Configuration) -> list[Configuration]:
    plugins = found.get("plugins")
    if not isinstance(plugins, list) or not plugins or not all(isinstance(one, dict) for one in plugins):
        raise KernelError(
            f"{path}: plugins: not a list of plugins; the network plugin that writes this file is at fault"
        )
    return plugins


def _read(path: Path) -> Configuration:
    """Raises KernelError if there is no JSON object in ``path``."""
    try:
        with open(path, "rb") as stream:
            return msgspec.json.decode(stream.read(MAX_INPUT), type=Configuration)
    except OSError as error:
        raise KernelError(f"{path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise KernelError(f"{path}: {error}; pods are found after their start") from error


def _text(configuration: Configuration) -> bytes:
    return msgspec.json.format(msgspec.json.encode(configuration), indent=2) + b"\n"


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replace ``path`` in one step. Raises KernelError."""
    fresh = path.with_name(path.name + _FRESH)
    try:
        with open(fresh, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())  # an empty file after a power cut would be a node without a network
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise KernelError(f"{path}: {error.strerror}; pods are found after their start") from error
