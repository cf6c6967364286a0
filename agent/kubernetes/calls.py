"""One call to the API server, for those that need no watch: keys and announcements."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final, Protocol, TypeVar

import msgspec

from trireme_py.errors import TriremeError

JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"
"""RFC 7396."""
NOT_FOUND: Final = 404
CONFLICT: Final = 409
"""The object is there already, or is no longer the one that was read."""
_HASH_DIGITS: Final = 16

T = TypeVar("T")


class ApiRefused(TriremeError):
    """The API server answered, and not with what was asked for. The text names the call."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api(Protocol):
    """A connection to the API server, with the pod's own credentials."""

    def request(
        self, method: str, path: str, body: bytes | None = None, *, content_type: str = JSON, accept: str = JSON
    ) -> tuple[int, bytes]:
        """Return status and body of the answer. Raises OSError where there is none, after seconds rather than minutes.

        ``path`` has its query with it. May be called from any thread.
        """


class _Status(msgspec.Struct):
    """What the API server says in place of an object (meta/v1)."""

    message: str = ""


def call(
    api: Api,
    method: str,
    path: str,
    kind: type[T],
    body: object = None,
    *,
    content_type: str = JSON,
    accept: str = JSON,
) -> T:
    """Make one call and decode what comes back as ``kind``.

    :raises ApiRefused: the status is not 2xx, or the body is something else
    :raises OSError: there is no answer
    """
    encoded = None if body is None else msgspec.json.encode(body)
    status, answer = api.request(method, path, encoded, content_type=content_type, accept=accept)
    if not 200 <= status < 300:
        raise ApiRefused(status, f"{method} {path}: {status} {_message(answer)}")
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.MsgspecError as error:
        raise ApiRefused(status, f"{method} {path}: answered with something else: {error}") from error


def _message(answer: bytes) -> str:
    try:
        return msgspec.json.decode(answer, type=_Status).message
    except msgspec.MsgspecError:
        return ""


def micro_time(wall_s: float) -> str:
    """Return seconds since the Unix epoch as the API's MicroTime."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def shortened(name: str, longest: int) -> str:
    """Return ``name`` in at most ``longest`` (24 or more) characters: itself, or its beginning and a hash of all."""
    if len(name) <= longest:
        return name
    begin = name[: longest - _HASH_DIGITS - 1].rstrip(".-")  # no part of a name in Kubernetes ends with either
    return f"{begin}-{sha256(name.encode()).hexdigest()[:_HASH_DIGITS]}"


class Backoff:
    """How long to wait after one more failure: twice as long each time, up to a limit, and never all at once."""

    def __init__(self, first_s: float, longest_s: float, draw: Callable[[], float] = random.random) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._draw = draw
        self._failures = 0

    def failed(self) -> float:
        """Return seconds, between half and all of the time that it is the turn of."""
        wait_s = min(self._first_s * 2.0**self._failures, self._longest_s)
        if wait_s < self._longest_s:
            self._failures += 1
        return wait_s * (1 + self._draw()) / 2

    def worked(self) -> None:
        self._failures = 0
