"""COSE_Sign1 and COSE_Mac0 (RFC 9052), with ES256 and HMAC 256/256 (RFC 9053) and nothing else.

A message is a tagged array of four::

    18 or 17 ( [ protected : bstr .cbor map,  unprotected : map,  payload : bstr,  signature or tag : bstr ] )

What is read must be in the one deterministic encoding of RFC 8949 section 4.2: the identity id is a hash of the bytes,
so a message that could be spelled in two ways would have two ids. Functions that end in ``_untrusted`` take bytes from
the network and raise only :class:`InvalidToken`.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NoReturn

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from trireme_py.errors import InvalidToken
from trireme_py.model import DropReason

# -- Specification ----------------------------------------------------------------------------------------------------


class Kind(IntEnum):
    """The message types in use; the value is the CBOR tag (RFC 9052, table 1)."""

    MAC0 = 17
    SIGN1 = 18


HEADER_ALGORITHM: Final = 1
HEADER_CRITICAL: Final = 2
HEADER_KEY_ID: Final = 4
HEADER_KCWT: Final = 13
"""A CWT that holds the signer's public key (RFC 9528; IANA, COSE Header Parameters)."""

ES256: Final = -7
HMAC_256: Final = 5
ALGORITHM: Final = {Kind.SIGN1: ES256, Kind.MAC0: HMAC_256}
PROOF_SIZE: Final = {Kind.SIGN1: 64, Kind.MAC0: 32}
CONTEXT: Final = {Kind.SIGN1: "Signature1", Kind.MAC0: "MAC0"}

UNDERSTOOD: Final = frozenset({HEADER_ALGORITHM, HEADER_CRITICAL, HEADER_KEY_ID, HEADER_KCWT})
"""The header parameters this module and its callers act on: the only ones that may be critical."""

P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Order of the P-256 group (FIPS 186-5; SP 800-186, section 3.2.1.3)."""

# -- Implementation ---------------------------------------------------------------------------------------------------

MAX_DEPTH: Final = 6
"""Arrays, maps and tags inside one another; the deepest of ours is a certificate in a header: 5."""

_UINT, _NINT, _BYTES, _TEXT, _ARRAY, _MAP, _TAG = range(7)
_FALSE, _TRUE = 0xF4, 0xF5


@dataclass(frozen=True, slots=True)
class Message:
    """One decoded message, its proof not yet checked."""

    kind: Kind
    protected: bytes
    """The protected header as it was signed."""
    header: Mapping[object, object]
    """The protected header, decoded."""
    unprotected: Mapping[object, object]
    payload: bytes
    proof: bytes
    """Signature (64 bytes, r then s) or tag (32 bytes)."""


def malformed(detail: str) -> NoReturn:
    """Raise what every broken assertion ends in."""
    raise InvalidToken(DropReason.MALFORMED_ASSERTION, detail)


# -- CBOR -------------------------------------------------------------------------------------------------------------


def dumps(value: object) -> bytes:
    """Encode deterministically (RFC 8949, section 4.2.3: maps sorted by length of key first).

    For the keys in use, integers of one sign or texts, this is also the order of section 4.2.1.
    """
    return cbor2.dumps(value, canonical=True)


def loads_untrusted(data: bytes, limit: int) -> object:
    """Decode one deterministic CBOR item of at most ``limit`` octets with nothing behind it.

    An array comes back as list or tuple, a map as any Mapping: that differs between releases of the library.

    Taken are integers, byte and text strings, arrays, maps with integers or texts as keys, booleans, tags 17 and 18.
    Everything else is refused before the CBOR library sees it, because what it does for some tags (shared references,
    regular expressions, dates, big numbers) is work for a stranger.
    """
    if len(data) > limit:
        malformed(f"{len(data)} octets where at most {limit} are taken")
    _check_shape_untrusted(data)
    try:
        value = cbor2.loads(data)
        again = dumps(value)
    except (cbor2.CBORError, ValueError, TypeError) as error:  # a text that is not UTF-8
        raise InvalidToken(DropReason.MALFORMED_ASSERTION, "not CBOR") from error
    if again != data:
        malformed("not deterministic CBOR")
    return value


def _check_shape_untrusted(data: bytes) -> None:
    """Walk the item's heads once; afterwards every length lies inside ``data``.

    Lengths in a form that is longer than need be, keys out of order and keys that appear twice are left to the
    comparison with the item encoded anew.
    """
    offset = 0
    open_items = [(1, False)]  # of each open container, outermost first: items it still wants, whether it is a map
    while open_items:
        wanted, is_map = open_items.pop()
        if not wanted:
            continue
        open_items.append((wanted - 1, is_map))
        major, argument, offset = _read_head_untrusted(data, offset)
        if is_map and wanted % 2 == 0 and major not in (_UINT, _NINT, _TEXT):
            malformed("key of a map is neither an integer nor a text")
        if major in (_BYTES, _TEXT):
            offset += argument
        elif major in (_ARRAY, _MAP, _TAG):
            if len(open_items) > MAX_DEPTH:
                malformed("nested too deep")
            items = {_ARRAY: argument, _MAP: 2 * argument, _TAG: 1}[major]
            open_items.append((items, major == _MAP))
    if offset != len(data):
        malformed(f"{len(data) - offset} octets behind the end")


def _read_head_untrusted(data: bytes, offset: int) -> tuple[int, int, int]:
    """Read the head of one item: its major type, its argument, and where what follows it begins.

    The argument of a string or a container is no more than the octets left, each item being at least one.
    """
    left = len(data) - offset - 1
    if left < 0:
        malformed("truncated")
    head = data[offset]
    major, argument = head >> 5, head & 0x1F
    offset += 1
    if head in (_FALSE, _TRUE):
        return major, argument, offset
    if major > _TAG or argument > 27:
        malformed(f"head 0x{head:02x} is not taken")  # floats, null, indefinite lengths, reserved heads
    if argument >= 24:
        size = 1 << (argument - 24)
        if size > left:
            malformed("truncated")
        argument = int.from_bytes(data[offset : offset + size], "big")
        offset += size
        left -= size
    if major == _TAG and argument not in (Kind.MAC0, Kind.SIGN1):
        malformed(f"tag {argument} is not taken")
    if major in (_BYTES, _TEXT, _ARRAY, _MAP) and argument > left:
        malformed("truncated")
    return major, argument, offset


# -- Framing ----------------------------------------------------------------------------------------------------------


def decode_untrusted(data: bytes, kind: Kind, limit: int) -> Message:
    """Read a message of ``kind`` of at most ``limit`` octets. Its proof is not checked."""
    return from_item_untrusted(loads_untrusted(data, limit), kind, limit)


def from_item_untrusted(item: object, kind: Kind, limit: int) -> Message:
    """Read a message that :func:`loads_untrusted` has already decoded, alone or as part of another."""
    if not isinstance(item, cbor2.CBORTag) or item.tag != kind:
        malformed(f"not a COSE message with tag {int(kind)}")
    parts = item.value
    if not isinstance(parts, list | tuple) or len(parts) != 4:
        malformed("not an array of four")
    protected, unprotected, payload, proof = parts
    if not isinstance(protected, bytes) or not isinstance(payload, bytes) or not isinstance(proof, bytes):
        malformed("header, payload and proof must be byte strings")
    if not isinstance(unprotected, Mapping):
        malformed("unprotected header is not a map")
    header = loads_untrusted(protected, limit)
    if not isinstance(header, Mapping):
        malformed("protected header is not a map")
    if any(type(label) is not int for label in (*header, *unprotected)):
        malformed("a header label is not an integer")
    if type(header.get(HEADER_ALGORITHM)) is not int or header[HEADER_ALGORITHM] != ALGORITHM[kind]:
        malformed("algorithm is not taken")
    if not header.keys().isdisjoint(unprotected):
        malformed("a header parameter is there twice")
    _check_critical_untrusted(header, unprotected)
    if len(proof) != PROOF_SIZE[kind]:
        malformed("proof has the wrong size")
    return Message(kind, protected, header, unprotected, payload, proof)


def _check_critical_untrusted(header: Mapping[object, object], unprotected: Mapping[object, object]) -> None:
    """Hold RFC 9052 section 3.1: whoever does not understand a critical parameter must not go on."""
    if HEADER_CRITICAL in unprotected:
        malformed("crit is not protected")
    if HEADER_CRITICAL not in header:
        return
    critical = header[HEADER_CRITICAL]
    if not isinstance(critical, list | tuple) or not critical:
        malformed("crit is not a list of labels")
    for label in critical:
        if type(label) is not int or label not in UNDERSTOOD or label not in header:
            malformed(f"critical header parameter {label!r} is not understood")


def to_be_proved(kind: Kind, protected: bytes, payload: bytes, context: bytes) -> bytes:
    """Return Sig_structure (RFC 9052, section 4.4) or MAC_structure (section 6.3).

    ``context`` is the external data that both ends know and nobody sends.
    """
    return cbor2.dumps([CONTEXT[kind], protected, context, payload])


def _frame(kind: Kind, protected: bytes, payload: bytes, proof: bytes) -> bytes:
    return dumps(cbor2.CBORTag(int(kind), [protected, {}, payload, proof]))


def overhead(kind: Kind, header: Mapping[int, object]) -> int:
    """Return how many octets a message has beside a payload of 256 to 65,535 octets."""
    protected = dumps({**header, HEADER_ALGORITHM: ALGORITHM[kind]})
    return len(_frame(kind, protected, b"", bytes(PROOF_SIZE[kind]))) + 2


def sign1(key: ec.EllipticCurvePrivateKey, header: Mapping[int, object], payload: bytes, context: bytes) -> bytes:
    """Sign ``payload`` with ES256; ``header`` gets the algorithm and is protected as a whole.

    Nonces are those of RFC 6979, so the same input gives the same bytes. Of the two signatures, with s and with the
    order less s, that ECDSA holds valid, the smaller is written.
    """
    protected = dumps({**header, HEADER_ALGORITHM: ES256})
    message = to_be_proved(Kind.SIGN1, protected, payload, context)
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    s = min(s, P256_ORDER - s)
    return _frame(Kind.SIGN1, protected, payload, r.to_bytes(32, "big") + s.to_bytes(32, "big"))


def verify_sign1_untrusted(message: Message, key: ec.EllipticCurvePublicKey, context: bytes) -> None:
    """Check an ES256 signature.

    :raises InvalidToken: BAD_SIGNATURE
    """
    r, s = int.from_bytes(message.proof[:32], "big"), int.from_bytes(message.proof[32:], "big")
    signed = to_be_proved(message.kind, message.protected, message.payload, context)
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise InvalidToken(DropReason.BAD_SIGNATURE) from None


def require_one_spelling_untrusted(message: Message) -> None:
    """Refuse what a stranger could change without breaking the proof, and so give one assertion many ids.

    That is the unprotected header, and the sign of s in an ECDSA signature.
    """
    if message.unprotected:
        malformed("unprotected header is not empty")
    if message.kind is Kind.SIGN1 and int.from_bytes(message.proof[32:], "big") > P256_ORDER // 2:
        malformed("signature is not in its low form")


def mac0(key: bytes, header: Mapping[int, object], payload: bytes, context: bytes) -> bytes:
    """Authenticate ``payload`` with HMAC-SHA256; ``header`` gets the algorithm and is protected as a whole."""
    protected = dumps({**header, HEADER_ALGORITHM: HMAC_256})
    tag = hmac.digest(key, to_be_proved(Kind.MAC0, protected, payload, context), "sha256")
    return _frame(Kind.MAC0, protected, payload, tag)


def verify_mac0_untrusted(message: Message, key: bytes, context: bytes) -> None:
    """Check an HMAC tag, in constant time.

    :raises InvalidToken: BAD_SIGNATURE
    """
    tag = hmac.digest(key, to_be_proved(message.kind, message.protected, message.payload, context), "sha256")
    if not hmac.compare_digest(tag, message.proof):
        raise InvalidToken(DropReason.BAD_SIGNATURE)
