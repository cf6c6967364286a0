from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable

import pytest

from agent.issuing import Issuer
from policy.objects import Pod
from trireme_py.auth_psk import PskAuthenticator
from trireme_py.errors import ConfigError
from trireme_py.model import NamedPort, Protocol

START = 1_795_000_000.0
POD = Pod(
    namespace="shop",
    name="db",
    service_account="keeper",
    labels={"app": "db"},
    named_ports=(NamedPort("sql", Protocol.TCP, 5432),),
)


def entropy() -> Callable[[int], bytes]:
    numbers = itertools.count()
    return lambda size: hashlib.shake_128(next(numbers).to_bytes(8, "big")).digest(size)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def authenticator() -> PskAuthenticator:
    return PskAuthenticator(bytes(range(32)), "example.org")


def test_the_assertion_claims_what_the_pod_is(authenticator: PskAuthenticator) -> None:
    issued = Issuer(authenticator, 3600, entropy(), Clock()).issue(POD)
    verified = authenticator.verify_untrusted(issued.identity.assertion, START)
    assert verified.identity.spiffe_id == "spiffe://example.org/ns/shop/sa/keeper"
    assert verified.identity.pod == "db"
    assert dict(verified.identity.labels.describe()) == {"app": "db"}
    assert verified.identity.named_ports == POD.named_ports
    assert verified.identity.id == issued.identity.id
    assert verified.agreement_key == issued.identity.key.public
    assert issued.identity.not_after == START + 3600


def test_it_is_due_at_half_its_life_or_when_the_pod_says_something_else(authenticator: PskAuthenticator) -> None:
    clock = Clock()
    issuer = Issuer(authenticator, 3600, entropy(), clock)
    assert issuer.due(None, POD)
    issued = issuer.issue(POD)
    assert not issuer.due(issued, POD)
    assert not issuer.due(issued, Pod(namespace="shop", name="db", service_account="keeper", labels={"app": "db"},
                                      named_ports=POD.named_ports, annotations={"note": "is not claimed"}))  # fmt: skip
    for changed in (
        Pod(namespace="shop", name="db", service_account="keeper", labels={"app": "web"}, named_ports=POD.named_ports),
        Pod(namespace="shop", name="db", service_account="other", labels={"app": "db"}, named_ports=POD.named_ports),
        Pod(namespace="shop", name="db", service_account="keeper", labels={"app": "db"}),
    ):
        assert issuer.due(issued, changed)
    clock.now = START + 1799
    assert not issuer.due(issued, POD)
    clock.now = START + 1800
    assert issuer.due(issued, POD)


def test_each_has_a_key_of_its_own(authenticator: PskAuthenticator) -> None:
    issuer = Issuer(authenticator, 3600, entropy(), Clock())
    one, other = issuer.issue(POD), issuer.issue(POD)
    assert one.identity.key.public != other.identity.key.public
    assert one.identity.id != other.identity.id


def test_a_pod_that_cannot_be_named_is_refused_by_name(authenticator: PskAuthenticator) -> None:
    odd = Pod(namespace="shop", name="db", labels={"app": "not a label value!"})
    with pytest.raises(ConfigError, match="shop/db"):
        Issuer(authenticator, 3600, entropy(), Clock()).issue(odd)


def test_the_longest_lifetime_is_believed(authenticator: PskAuthenticator) -> None:
    issued = Issuer(authenticator, 24 * 3600, entropy(), Clock()).issue(POD)
    assert issued.identity.not_after == START + 24 * 3600
