"""What the API server said last, in files: an agent that starts while the API server is away goes on with it.

One file for each object in ``last-good/`` of the runtime directory, with the fields that count; the mark ``complete``
says that a whole state was written once. Without it, part of the policy could be missing, and nobody would notice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from agent.kubernetes.resources import Known, Resource
from agent.logs import fields

log = logging.getLogger(__name__)

MARK: Final = "complete"
_VERSION: Final = "1"
_LONGEST_NAME: Final = 200
"""In octets: file systems take 255."""


class _Head(msgspec.Struct, rename="camel"):
    kind: str
    api_version: str


class LastKnown:
    """Use it from one thread. Nothing here raises: a full disk must not keep a change from being enforced."""

    def __init__(self, folder: Path, node: str) -> None:
        """``folder``: made if it is not there. What another node's name was given to is not this node's."""
        self._folder = folder
        self._mark = f"{_VERSION} {node}\n"
        self._complete = False
        self._failed = False

    def read(self, resources: tuple[Resource, ...]) -> dict[str, dict[str, Known]] | None:
        """Return all objects by resource and key, None if no whole state was written."""
        try:
            if (self._folder / MARK).read_text() != self._mark:
                return None
        except OSError:
            return None
        self._complete = True
        found: dict[str, dict[str, Known]] = {resource.name: {} for resource in resources}
        by_kind = {(resource.kind, resource.api_version): resource for resource in resources}
        for file, data in self._files():
            try:
                head = msgspec.json.decode(data, type=_Head)
                resource = by_kind[head.kind, head.api_version]
                known = resource.read(data)
            except (msgspec.MsgspecError, KeyError) as error:
                log.warning("a file of the last known state cannot be used", extra=fields(file=file, error=error))
                continue
            found[resource.name][known.key] = known
        return found

    def clear(self) -> None:
        """Forget everything, before the first state is written."""
        for path in (self._folder / MARK, *self._folder.glob("*.json"), *self._folder.glob("*.yaml")):
            path.unlink(missing_ok=True)
        self._complete = False

    def keep(self, known: Known) -> None:
        self._write(self._file(known.key), known.document)

    def forget(self, key: str) -> None:
        self._file(key).unlink(missing_ok=True)

    def finish(self) -> None:
        """Say that everything there is has been written."""
        if not self._complete and not self._failed:
            self._complete = self._write(self._folder / MARK, self._mark.encode())

    def _files(self) -> Iterator[tuple[Path, bytes]]:
        for path in sorted(self._folder.glob("*.json")):
            try:
                yield path, path.read_bytes()
            except OSError as error:
                log.warning("a file of the last known state cannot be read", extra=fields(file=path, error=error))

    def _file(self, key: str) -> Path:
        name = quote(key, safe="").replace("%2F", ".")
        if len(name) > _LONGEST_NAME:
            name = f"{name[:_LONGEST_NAME]}.{sha256(key.encode()).hexdigest()[:16]}"
        return self._folder / f"{name}.json"

    def _write(self, file: Path, data: bytes) -> bool:
        fresh = file.with_suffix(".new")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh.write_bytes(data)
            fresh.replace(file)
        except OSError as error:
            if not self._failed:
                log.error("the last known state cannot be kept", extra=fields(file=file, error=error))
            self._failed = True
            # Half of a state is worse than none.
            (self._folder / MARK).unlink(missing_ok=True)
            return False
        return True
