from __future__ import annotations

import re
from hashlib import blake2s
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.assertions import AGREEMENT, CLAIMS, NOW, SALT, claims, pki_authenticator, psk_authenticator
from tests.harness.assertions import realistic_labels as labels_of
from trireme_py import cose, wire
from trireme_py.assertion import (
    CLOCK_SKEW_S,
    MAX_LIFETIME_S,
    Claims,
    check_validity,
    encode_claims,
    identity_id,
    read_claims_untrusted,
)
from trireme_py.errors import ConfigError, InvalidToken
from trireme_py.labels import HashedLabels
from trireme_py.model import DropReason, NamedPort, PlainLabels

ROOT = Path(__file__).parents[2]
NO_LIMIT = 100_000


def payload(**changes: Any) -> dict[int, Any]:
    """The claims as they go over the wire, decoded into plain containers, some of them replaced."""
    decoded: dict[int, Any] = {
        1: "psk",
        2: "spiffe://cluster.local/ns/shop/sa/frontend",
        4: NOW + 3000,
        5: NOW - 600,
        8: {1: {1: 1, -1: 4, -2: AGREEMENT.public}},
        -65537: ["frontend-7d9f8c6b5-x2x4z", {"tier": "web"}, [["http", 6, 8080]]],
    }
    for name, value in changes.items():
        decoded[{"iss": 1, "sub": 2, "exp": 4, "nbf": 5, "cnf": 8, "pod": -65537}[name]] = value
    return {key: value for key, value in decoded.items() if value is not None}


# -- Round trips ------------------------------------------------------------------------------------------------------

DNS_LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
LABEL_NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,20}[A-Za-z0-9])?", fullmatch=True)
LABEL_KEYS = st.one_of(LABEL_NAMES, st.builds("{}/{}".format, DNS_LABELS, LABEL_NAMES))
LABELS = st.dictionaries(LABEL_KEYS, st.one_of(st.just(""), LABEL_NAMES), max_size=8)
PORTS = st.builds(
    NamedPort,
    st.from_regex(r"[a-z]([a-z0-9]{0,10})", fullmatch=True),
    st.sampled_from([6, 17, 132]),
    st.integers(1, 65535),
)
CLAIM_SETS = st.builds(
    Claims,
    trust_domain=st.from_regex(r"[a-z0-9._-]{1,20}", fullmatch=True),
    namespace=DNS_LABELS,
    service_account=st.builds("{}.{}".format, DNS_LABELS, DNS_LABELS),
    pod=DNS_LABELS,
    labels=st.builds(PlainLabels, LABELS),
    named_ports=st.lists(PORTS, max_size=4).map(tuple),
    not_before=st.just(NOW),
    not_after=st.integers(NOW + 1, NOW + MAX_LIFETIME_S),
    agreement_key=st.binary(min_size=32, max_size=32),
)


@given(CLAIM_SETS)
@settings(max_examples=200)
def test_claims_come_back_as_they_were(given_claims: Claims) -> None:
    encoded = encode_claims(given_claims, "psk", SALT, wire.MAX_ASSERTION)
    read = read_claims_untrusted(encoded, "psk")
    if isinstance(read.labels, PlainLabels):
        assert read == given_claims
    assert encode_claims(given_claims, "psk", SALT, wire.MAX_ASSERTION) == encoded


@given(CLAIM_SETS)
@settings(max_examples=100)
def test_hashed_labels_are_read_back(given_claims: Claims) -> None:
    plain = encode_claims(given_claims, "node", SALT, NO_LIMIT)
    try:
        hashed = encode_claims(given_claims, "node", SALT, len(plain) - 1)
    except ConfigError:  # hashes of a few short labels are longer than the labels
        return
    read = read_claims_untrusted(hashed, "node")
    assert isinstance(read.labels, HashedLabels)
    for key, value in given_claims.labels.describe().items():
        assert read.labels.has_value(key, value)


def test_the_pod_s_name_goes_before_a_label_does() -> None:
    roomy = claims(labels=labels_of(60))
    shortest = next(limit for limit in range(800, NO_LIMIT) if _fits(roomy, limit))
    read = read_claims_untrusted(encode_claims(roomy, "psk", SALT, shortest), "psk")
    assert read.pod == ""
    assert all(read.labels.has_value(key, value) for key, value in roomy.labels.describe().items())
    assert read.named_ports == roomy.named_ports


def _fits(wanted: Claims, limit: int) -> bool:
    try:
        encode_claims(wanted, "psk", SALT, limit)
    except ConfigError:
        return False
    return True


def test_too_many_labels_are_our_own_error_and_name_the_pod() -> None:
    with pytest.raises(ConfigError, match=r"pod shop/frontend-7d9f8c6b5-x2x4z: 80 labels .* remove labels"):
        encode_claims(claims(labels=labels_of(80)), "psk", SALT, wire.MAX_ASSERTION)


def test_the_identity_id_is_personalised_blake2s() -> None:
    assert identity_id(b"assertion") == blake2s(b"assertion", digest_size=16, person=b"TRM1asid").digest()


# -- Bounds -----------------------------------------------------------------------------------------------------------

LONG = {"dns label": "a" * 64, "subdomain": ".".join(["a" * 63] * 4), "label": "a" * 64, "port": "a" * 16}

BAD_PAYLOADS: dict[str, object] = {
    "no map": [1],
    "empty": {},
    "other issuer": payload(iss="node"),
    "no issuer": payload(iss=None),
    "issuer is a number": payload(iss=1),
    "no subject": payload(sub=None),
    "subject is bytes": payload(sub=b"spiffe://cluster.local/ns/shop/sa/frontend"),
    "subject is no SPIFFE id": payload(sub="https://cluster.local/ns/shop/sa/frontend"),
    "subject without namespace": payload(sub="spiffe://cluster.local/ns//sa/frontend"),
    "subject without trust domain": payload(sub="spiffe:///ns/shop/sa/frontend"),
    "subject with a part too many": payload(sub="spiffe://cluster.local/ns/shop/sa/frontend/x"),
    "subject with a part too few": payload(sub="spiffe://cluster.local/ns/shop/sa"),
    "subject with other words": payload(sub="spiffe://cluster.local/xx/shop/sa/frontend"),
    "upper-case trust domain": payload(sub="spiffe://Cluster.local/ns/shop/sa/frontend"),
    "trust domain with a port": payload(sub="spiffe://cluster.local:1/ns/shop/sa/frontend"),
    "trust domain too long": payload(sub=f"spiffe://{'a' * 256}/ns/shop/sa/frontend"),
    "namespace too long": payload(sub=f"spiffe://cluster.local/ns/{LONG['dns label']}/sa/frontend"),
    "namespace with a dot": payload(sub="spiffe://cluster.local/ns/a.b/sa/frontend"),
    "namespace with a line feed": payload(sub="spiffe://cluster.local/ns/shop\n/sa/frontend"),
    "service account too long": payload(sub=f"spiffe://cluster.local/ns/shop/sa/{LONG['subdomain']}"),
    "service account upper-case": payload(sub="spiffe://cluster.local/ns/shop/sa/Frontend"),
    "no expiry": payload(exp=None),
    "no beginning": payload(nbf=None),
    "expiry is a text": payload(exp="tomorrow"),
    "expiry is a boolean": payload(exp=True),
    "beginning before 1970": payload(nbf=-1),
    "expiry beyond reason": payload(exp=1 << 40),
    "ends as it begins": payload(exp=NOW - 600),
    "ends before it begins": payload(exp=NOW - 601),
    "holds for more than a day": payload(exp=NOW - 600 + MAX_LIFETIME_S + 1),
    "no key": payload(cnf=None),
    "key is bytes": payload(cnf=AGREEMENT.public),
    "key of another confirmation method": payload(cnf={3: b"kid"}),
    "two confirmation methods": payload(cnf={1: {1: 1, -1: 4, -2: AGREEMENT.public}, 3: b"kid"}),
    "key of another type": payload(cnf={1: {1: 2, -1: 4, -2: AGREEMENT.public}}),
    "key of another curve": payload(cnf={1: {1: 1, -1: 6, -2: AGREEMENT.public}}),
    "key with a private part": payload(cnf={1: {1: 1, -1: 4, -2: AGREEMENT.public, -4: bytes(32)}}),
    "key too short": payload(cnf={1: {1: 1, -1: 4, -2: bytes(31)}}),
    "key too long": payload(cnf={1: {1: 1, -1: 4, -2: bytes(33)}}),
    "key is a text": payload(cnf={1: {1: 1, -1: 4, -2: "k" * 32}}),
    "no pod claim": payload(pod=None),
    "pod claim is a map": payload(pod={}),
    "pod claim of two": payload(pod=["web", {}]),
    "pod claim of four": payload(pod=["web", {}, [], 0]),
    "pod name is bytes": payload(pod=[b"web", {}, []]),
    "pod name upper-case": payload(pod=["Web", {}, []]),
    "pod name too long": payload(pod=[LONG["subdomain"], {}, []]),
    "pod name with an escape": payload(pod=["web\x1b[2J", {}, []]),
    "labels are a list": payload(pod=["web", [], []]),
    "label key is a number": payload(pod=["web", {1: "x"}, []]),
    "label value is a number": payload(pod=["web", {"a": 1}, []]),
    "label key empty": payload(pod=["web", {"": "x"}, []]),
    "label key with empty prefix": payload(pod=["web", {"/a": "x"}, []]),
    "label key with two slashes": payload(pod=["web", {"a/b/c": "x"}, []]),
    "label name too long": payload(pod=["web", {LONG["label"]: "x"}, []]),
    "label prefix too long": payload(pod=["web", {f"{LONG['subdomain']}/a": "x"}, []]),
    "label prefix upper-case": payload(pod=["web", {"A.b/c": "x"}, []]),
    "label value too long": payload(pod=["web", {"a": LONG["label"]}, []]),
    "label value ends in a dash": payload(pod=["web", {"a": "x-"}, []]),
    "label value not ASCII": payload(pod=["web", {"a": "ä"}, []]),
    "hashed labels cut off": payload(pod=["web", bytes(9), []]),
    "ports are a map": payload(pod=["web", {}, {}]),
    "port is a number": payload(pod=["web", {}, [80]]),
    "port of two": payload(pod=["web", {}, [["http", 6]]]),
    "port name empty": payload(pod=["web", {}, [["", 6, 80]]]),
    "port name without a letter": payload(pod=["web", {}, [["80", 6, 80]]]),
    "port name with two dashes": payload(pod=["web", {}, [["a--b", 6, 80]]]),
    "port name too long": payload(pod=["web", {}, [[LONG["port"], 6, 80]]]),
    "port protocol unknown": payload(pod=["web", {}, [["http", 1, 80]]]),
    "port protocol is a boolean": payload(pod=["web", {}, [["http", True, 80]]]),
    "port number zero": payload(pod=["web", {}, [["http", 6, 0]]]),
    "port number too large": payload(pod=["web", {}, [["http", 6, 65536]]]),
    "port number is a text": payload(pod=["web", {}, [["http", 6, "80"]]]),
}


def test_the_payload_these_cases_start_from_is_taken() -> None:
    read = read_claims_untrusted(cose.dumps(payload()), "psk")
    assert (read.namespace, read.service_account, read.pod) == ("shop", "frontend", "frontend-7d9f8c6b5-x2x4z")
    read_claims_untrusted(cose.dumps(payload() | {99: "of a later version"}), "psk")


@pytest.mark.parametrize("broken", BAD_PAYLOADS.values(), ids=BAD_PAYLOADS.keys())
def test_claims_out_of_bounds_are_refused(broken: object) -> None:
    with pytest.raises(InvalidToken) as caught:
        read_claims_untrusted(cose.dumps(broken), "psk")
    assert caught.value.reason is DropReason.MALFORMED_ASSERTION


@pytest.mark.parametrize(
    "changes",
    [
        {"namespace": "Shop"},
        {"service_account": ""},
        {"pod": "a_b"},
        {"labels": PlainLabels({"a b": "c"})},
        {"labels": HashedLabels(SALT, frozenset(), frozenset())},
        {"named_ports": (NamedPort("http", 6, 0),)},
        {"not_after": NOW - 600},
        {"not_after": NOW + 2 * MAX_LIFETIME_S},
        {"agreement_key": b"short"},
    ],
    ids=str,
)
def test_what_would_not_be_read_is_not_written(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^pod [Ss]hop/"):
        encode_claims(claims(**changes), "psk", SALT, wire.MAX_ASSERTION)


# -- Validity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wall_s", "reason"),
    [
        (1000 - CLOCK_SKEW_S - 0.1, DropReason.NOT_YET_VALID),
        (1000 - CLOCK_SKEW_S, None),
        (1500, None),
        (2000 + CLOCK_SKEW_S - 0.1, None),
        (2000 + CLOCK_SKEW_S, DropReason.EXPIRED),
        (float("inf"), DropReason.EXPIRED),
        (float("-inf"), DropReason.NOT_YET_VALID),
    ],
)
def test_validity_forgives_a_minute(wall_s: float, reason: DropReason | None) -> None:
    if reason is None:
        check_validity(1000, 2000, wall_s)
        return
    with pytest.raises(InvalidToken) as caught:
        check_validity(1000, 2000, wall_s)
    assert caught.value.reason is reason


# -- Size -------------------------------------------------------------------------------------------------------------


def sizes(mode: str, count: int) -> tuple[int, int]:
    """Octets of a whole assertion with ``count`` realistic labels, in clear and hashed, whatever the limit."""
    wanted = claims(labels=labels_of(count))
    authenticator = psk_authenticator() if mode == "psk" else pki_authenticator()
    small = authenticator.issue(CLAIMS, SALT)
    issuer = authenticator.verify_untrusted(small, NOW).issuer
    around = (
        len(small) - len(encode_claims(CLAIMS, issuer, SALT, NO_LIMIT)) + 1
    )  # the payload's length grows by one octet
    plain = len(encode_claims(wanted, issuer, SALT, NO_LIMIT))
    return around + plain, around + len(encode_claims(wanted, issuer, SALT, plain - 1))


def documented_sizes() -> dict[tuple[str, int], tuple[int, int]]:
    text = (ROOT / "docs/identity.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (psk|pki) \| (\d+) \| ([\d,]+) \| ([\d,]+) \|", text, re.MULTILINE)
    return {
        (mode, int(count)): (int(plain.replace(",", "")), int(hashed.replace(",", "")))
        for mode, count, plain, hashed in rows
    }


@pytest.mark.parametrize("count", [10, 30, 60])
@pytest.mark.parametrize("mode", ["psk", "pki"])
def test_the_size_budget_is_what_the_document_says(mode: str, count: int) -> None:
    assert documented_sizes()[mode, count] == sizes(mode, count)


def test_the_labels_that_must_fit_do() -> None:
    assert all(len(key) + len(value) == 35 for key, value in labels_of(60).items.items())
    for authenticator, count in ((psk_authenticator(), 60), (pki_authenticator(), 30)):
        assertion = authenticator.issue(claims(labels=labels_of(count)), SALT)
        assert len(assertion) <= wire.MAX_ASSERTION
        verified = authenticator.verify_untrusted(assertion, NOW)
        assert verified.identity.pod == CLAIMS.pod
        assert all(verified.identity.labels.has_value(*item) for item in labels_of(count).items.items())
