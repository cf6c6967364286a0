"""The signer's loop: follow the requests that are for it, answer each, and try again what could not be answered."""

from __future__ import annotations

import logging
import threading
from typing import Any, Final, cast

import msgspec

from agent.kubernetes.api import ApiServer
from agent.kubernetes.calls import Backoff
from agent.kubernetes.csr import SIGNER_NAME
from agent.kubernetes.inbox import Batch, Inbox
from agent.kubernetes.reflector import Reflector
from agent.kubernetes.resources import Known, Resource
from agent.kubernetes.signer import Signer, SigningRequest
from agent.logs import fields
from trireme_py.errors import TriremeError

log = logging.getLogger(__name__)

_AGAIN_S: Final = (1.0, 60.0)
_IDLE_S: Final = 3600.0


class _SigningRequests(Resource):
    """The requests for one signer, each kept as the API server gave it: answers are written into it."""

    def read(self, data: msgspec.Raw | bytes) -> Known:
        raw = msgspec.json.decode(data, type=dict[str, Any])
        return Known(str(raw.get("metadata", {}).get("name", "")), None, (), bytes(data))


class Desk:
    """The requests that wait for an answer."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._waiting: dict[str, bytes] = {}
        self._again = Backoff(*_AGAIN_S)

    def take(self, batch: Batch) -> float:
        """Answer what has come and what was left; return the seconds until something is worth another try."""
        for listed in batch.lists.values():
            self._waiting = {name: known.document for name, known in listed.items()}
        for changes in batch.changes.values():
            for name, known in changes.items():
                self._waiting.pop(name, None)
                if known is not None:
                    self._waiting[name] = known.document
        for name, document in tuple(self._waiting.items()):
            try:
                self._signer.answer(msgspec.json.decode(document, type=dict[str, Any]))
            except msgspec.MsgspecError as error:
                log.error("request cannot be read", extra=fields(request=name, error=error))
            except (OSError, TriremeError) as error:
                wait_s = self._again.failed()
                log.error("request not answered", extra=fields(request=name, error=error, again_in_s=int(wait_s)))
                return wait_s  # what hinders this one hinders all: the authority's files, or the API server
            del self._waiting[name]
        self._again.worked()
        return _IDLE_S


def serve(api: ApiServer, signer: Signer, stop: threading.Event, inbox: Inbox) -> None:
    """Answer requests until ``stop`` is set; wake ``inbox`` with it."""
    resource = _SigningRequests(
        "certificatesigningrequests",
        "CertificateSigningRequest",
        "certificates.k8s.io/v1",
        cast("Any", SigningRequest),
        {"fieldSelector": f"spec.signerName={SIGNER_NAME}"},
    )
    desk = Desk(signer)
    reflector = Reflector(api, resource, inbox)
    reflector.start()
    try:
        wait_s = _IDLE_S
        while not stop.is_set():
            inbox.wait(wait_s)
            wait_s = desk.take(inbox.take())
    finally:
        reflector.stop()
