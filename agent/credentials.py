"""This node's credentials, from files to an authenticator. Whatever is wrong is said at start, with the file's name."""

from __future__ import annotations

import base64
import binascii
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from agent.enroll import (
    authority_key,
    compact_certificate_of,
    fingerprint,
    is_authority,
    load_certificates,
    load_private_key,
    public_bytes,
    trust_domain_of,
    utc,
)
from agent.logs import fields
from agent.secretfile import is_mounted, read_secret
from trireme_py.assertion import Claims, VerifiedAssertion
from trireme_py.auth import Authenticator, Mode
from trireme_py.auth_pki import PkiAuthenticator
from trireme_py.auth_psk import MIN_PSK_SIZE, PskAuthenticator
from trireme_py.certificate import (
    MAX_CERTIFICATE,
    NodeCertificate,
    read_certificate_untrusted,
    verify_certificate_untrusted,
)
from trireme_py.cose import loads_untrusted
from trireme_py.errors import CredentialError, InvalidToken

log = logging.getLogger(__name__)

LOOK_S: Final = 10.0
"""How often a key's file is looked at: the kubelet swaps a Secret's within a minute or two of the change."""
_HEX: Final = re.compile(rb"(?:[0-9A-Fa-f]{2})+")
_EMPTY_LINE: Final = re.compile(rb"\n[ \t\r]*\n\s*")
MAX_PSKS: Final = 2
"""One that comes and one that goes."""
_MIN_DISTINCT: Final = 8
"""32 random bytes have 30 different values on average; fewer than 8 are a key somebody typed."""


# -- Pre-shared key ---------------------------------------------------------------------------------------------------


def load_psk(path: Path, trust_domain: str) -> PskAuthenticator:
    """Load a pre-shared key: 32 bytes or more as base64 or hexadecimal, as ``trireme key new`` writes it.

    While the key is changed there are two, with an empty line between them: the first signs, both are believed.

    :raises CredentialError: it is missing, open to others, short, or not random, or there are more than two
    """
    return _authenticator(_read_psks(path), trust_domain)


def _authenticator(psks: Sequence[bytes], trust_domain: str) -> PskAuthenticator:
    return PskAuthenticator(psks[0], trust_domain, *psks[1:])


def _read_psks(path: Path) -> list[bytes]:
    texts = _EMPTY_LINE.split(read_secret(path, _whence(path)).strip())
    if len(texts) > MAX_PSKS:
        raise CredentialError(
            f"{path}: holds {len(texts)} keys, and {MAX_PSKS} are in use at most; to see what is an empty line, "
            f"run: grep -c '^$' {path}"
        )
    return [_psk(path, text) for text in texts]


def _whence(path: Path) -> str:
    """Return where the key comes from. A new one is for the first node alone: no other one would know it."""
    if is_mounted(path):
        return "look at the Secret, run: kubectl -n trireme-system describe secret trireme-psk"
    return f"copy it from another node (for the first node, run: trireme key new {path})"


def _psk(path: Path, text: bytes) -> bytes:
    replace = _whence(path) if is_mounted(path) else f"move it away and {_whence(path)}"
    text = b"".join(text.split())
    try:
        psk = binascii.unhexlify(text) if _HEX.fullmatch(text) else base64.b64decode(text, validate=True)
    except binascii.Error:
        raise CredentialError(f"{path}: is neither base64 nor hexadecimal; {replace}") from None
    if len(psk) < MIN_PSK_SIZE:
        raise CredentialError(f"{path}: has {len(psk)} bytes where {MIN_PSK_SIZE} are needed; {replace}")
    if len(set(psk)) < _MIN_DISTINCT:
        raise CredentialError(f"{path}: is not random; {replace}")
    return psk


# -- Node key and certificate -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeCredentials:
    """A node's key, its certificate in both forms, and the authorities it trusts; checked against one another."""

    key: ec.EllipticCurvePrivateKey
    certificate: NodeCertificate
    compact: bytes
    authorities: tuple[ec.EllipticCurvePublicKey, ...]


def load_pki(key: Path, certificate: Path, authority: Path, trust_domain: str, wall_s: float) -> PkiAuthenticator:
    """Load this node's key and certificate, and every authority in ``authority`` (several during a rotation).

    ``wall_s``: seconds since the Unix epoch, to say at start what would fail at the first handshake.

    :raises CredentialError: a file cannot be used, or they do not belong together, or the time is not theirs
    """
    node = load_node(key, certificate, authority)
    return authenticator_of(node, certificate, trust_domain, wall_s, f"trireme node request {key.parent}")


def authenticator_of(
    node: NodeCredentials, certificate: Path, trust_domain: str, wall_s: float, again: str
) -> PkiAuthenticator:
    """Return what signs with a node's credentials. ``certificate``: their file; ``again``: what gets other ones.

    :raises CredentialError: they are for another trust domain, or the time is not theirs
    """
    if node.certificate.trust_domain != trust_domain:
        raise CredentialError(
            f"{certificate}: is for trust domain {node.certificate.trust_domain}, not {trust_domain}; "
            f"correct spec.trustDomain, or run: {again}"
        )
    begin, end = node.certificate.not_before, node.certificate.not_after
    if wall_s >= end:
        raise CredentialError(f"{certificate}: ended at {utc(end):%Y-%m-%d %H:%M} UTC; run: {again}")
    if wall_s < begin:
        raise CredentialError(
            f"{certificate}: begins at {utc(begin):%Y-%m-%d %H:%M} UTC; compare the clock with: timedatectl"
        )
    return PkiAuthenticator(node.key, node.compact, node.authorities, trust_domain)


def load_node(key: Path, certificate: Path, authority: Path, again: str = "") -> NodeCredentials:
    """Load the files of a node and hold them against one another; neither time nor trust domain is judged.

    ``again``: the command that gets another certificate, if it is not ``trireme node request``.

    :raises CredentialError: a file cannot be used, or they do not belong together
    """
    again = again or f"trireme node request {key.parent}"
    private = load_private_key(key, again)
    leaf = _leaf(certificate, load_certificates(certificate, f"{again}, have it signed, and put the certificate there"))
    authorities = load_authorities(authority)
    try:
        message, claims = read_certificate_untrusted(
            loads_untrusted(compact_certificate_of(certificate, leaf), MAX_CERTIFICATE)
        )
        verify_certificate_untrusted(message, authorities)
    except InvalidToken as error:
        known = ", ".join(fingerprint(known) for known in authorities)
        raise CredentialError(
            f"{certificate}: is not signed by the authority in {authority} ({known}): {error}; "
            f"put the right authority's certificate there, or run: {again}"
        ) from error
    if public_bytes(claims.public_key) != public_bytes(private.public_key()):
        raise CredentialError(f"{certificate}: is not for the key in {key}; run: {again}")
    return NodeCredentials(private, claims, compact_certificate_of(certificate, leaf), authorities)


def _leaf(path: Path, certificates: Sequence[x509.Certificate]) -> x509.Certificate:
    for certificate in certificates:
        if not is_authority(certificate):
            return certificate
    raise CredentialError(f"{path}: holds no node's certificate; run where the authority is: trireme ca sign REQUEST")


def load_authorities(path: Path) -> tuple[ec.EllipticCurvePublicKey, ...]:
    """Load the authorities of a file; a node's certificate in front of them is passed over.

    :raises CredentialError: there is none, or they are of several trust domains
    """
    advice = "trireme ca sign REQUEST --out node.crt, and name node.crt here: it holds the authority's certificate, too"
    found = [certificate for certificate in load_certificates(path, advice) if is_authority(certificate)]
    if not found:
        raise CredentialError(f"{path}: holds no authority's certificate; run: {advice}")
    domains = {trust_domain_of(path, certificate) for certificate in found}
    if len(domains) > 1:
        raise CredentialError(f"{path}: holds authorities of several trust domains: {', '.join(sorted(domains))}")
    return tuple(authority_key(path, certificate) for certificate in found)


# -- Keys that change while the agent runs ----------------------------------------------------------------------------


class Replaceable:
    """An authenticator whose keys are replaced while it is in use; see :class:`trireme_py.auth.Authenticator`.

    What was issued before stays as good as the peers find it: they ask who signed it, not whose turn it is.
    """

    __slots__ = ("_current",)

    def __init__(self, current: Authenticator) -> None:
        self._current = current

    def replace(self, current: Authenticator) -> None:
        """Use ``current`` from now on, on every thread. Raises CredentialError if it is for another trust domain."""
        if current.trust_domain != self._current.trust_domain:
            raise CredentialError(
                f"the new key is for trust domain {current.trust_domain}, not {self._current.trust_domain}; "
                "restart the agent with: kubectl rollout restart"
            )
        self._current = current  # one assignment: whoever has begun with the old one ends with it

    @property
    def trust_domain(self) -> str:
        return self._current.trust_domain

    @property
    def mode(self) -> Mode:
        return self._current.mode

    def pair_salt(self, client_assertion: bytes) -> bytes:
        return self._current.pair_salt(client_assertion)

    def issue(self, claims: Claims, salt: bytes) -> bytes:
        return self._current.issue(claims, salt)

    def verify_untrusted(
        self, assertion: bytes, wall_s: float, admit: Callable[[], None] = lambda: None
    ) -> VerifiedAssertion:
        return self._current.verify_untrusted(assertion, wall_s, admit)


class PresharedKey:
    """The pre-shared key in a file, loaded again when the file changes; see :class:`agent.kubernetes.chores.Chore`."""

    def __init__(self, path: Path, trust_domain: str) -> None:
        """Load it. Raises CredentialError."""
        self._path = path
        self._seen = _version(path)
        self._psks = _read_psks(path)
        self.authenticator: Final = Replaceable(_authenticator(self._psks, trust_domain))
        self.not_after: Final = 0.0
        self.changes = 0
        """How often the key in use was another one. From any thread."""
        self.problem = ""
        """Why the file cannot be used now, while the key before is in use; empty if it can. From any thread."""
        self.on_replaced: Callable[[], None] = lambda: None
        """Called, on the thread of ``step``, when other keys are in use."""

    def step(self) -> float:
        """Look at the file; return the seconds until the next time. One that cannot be used changes nothing."""
        version = _version(self._path)
        # What could not be used is tried each time: that may have had a reason outside the file.
        if version == self._seen and not self.problem:
            return LOOK_S
        self._seen = version
        try:
            psks = _read_psks(self._path)
            if psks != self._psks:
                self.authenticator.replace(_authenticator(psks, self.authenticator.trust_domain))
        except CredentialError as error:
            self._say(f"pre-shared key: {error}; until then the one before is in use")
            return LOOK_S
        self._say("")
        if psks != self._psks:
            self._psks = psks
            log.info("the pre-shared key was changed", extra=fields(file=self._path))
            self.changes += 1
            self.on_replaced()
        return LOOK_S

    def _say(self, problem: str) -> None:
        """Say what is new about the file, once."""
        before, self.problem = self.problem, problem
        if problem and problem != before:
            text = "the file of the pre-shared key cannot be used; the key before is"
            log.error(text, extra=fields(problem=problem))
        elif before and not problem:
            log.info("the file of the pre-shared key can be used again", extra=fields(file=self._path))


def _version(path: Path) -> tuple[int, int, int, int] | None:
    """Return what differs when a file was written, swapped, or opened to others; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
