"""Identities for the local pods: claims from the Pod object, signed for one lifetime, under a key of that lifetime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from policy.objects import Pod
from trireme_py.assertion import Claims, identity_id
from trireme_py.auth import Authenticator
from trireme_py.identities import LocalIdentity
from trireme_py.labels import SALT_SIZE
from trireme_py.model import PlainLabels
from trireme_py.pairing import AgreementKey


@dataclass(frozen=True, slots=True)
class Issued:
    """An identity, and when to replace it."""

    identity: LocalIdentity
    subject: tuple[object, ...]
    """What was claimed; an identity of another subject is due at once."""
    renew_at: float
    """Seconds since the Unix epoch: half of the lifetime, so that a failure to renew leaves as long to mend it."""
    generation: int = 0
    """Of the keys that vouch for it."""


def subject_of(pod: Pod) -> tuple[object, ...]:
    """Return everything of ``pod`` that its identity claims."""
    return pod.namespace, pod.name, pod.service_account, tuple(sorted(pod.labels.items())), pod.named_ports


class Issuer:
    """Issues assertions; draws entropy and reads the time through what it is given."""

    def __init__(
        self, authenticator: Authenticator, lifetime_s: int, entropy: Callable[[int], bytes], clock: Callable[[], float]
    ) -> None:
        self._authenticator = authenticator
        self._lifetime_s = lifetime_s
        self._entropy = entropy
        self._clock = clock
        self._generation = 0

    def renew_all(self) -> None:
        """Other keys are in use: let every identity that was issued under the earlier ones be due. From any thread."""
        self._generation += 1

    def due(self, issued: Issued | None, pod: Pod) -> bool:
        """Tell whether ``pod`` needs a new identity.

        It has none, claims something else, has other keys than those in use, or half its time is over.
        """
        return (
            issued is None
            or issued.subject != subject_of(pod)
            or issued.generation != self._generation
            or self._clock() >= issued.renew_at
        )

    def issue(self, pod: Pod) -> Issued:
        """Return a fresh identity. Raises TriremeError if this pod cannot have one."""
        now, generation = self._clock(), self._generation  # read first: keys replaced meanwhile make it due again
        key = AgreementKey.generate(self._entropy)
        claims = Claims(
            trust_domain=self._authenticator.trust_domain,
            namespace=pod.namespace,
            service_account=pod.service_account,
            pod=pod.name,
            labels=PlainLabels(dict(pod.labels)),
            named_ports=pod.named_ports,
            not_before=int(now),  # readers forgive a skewed clock (assertion.CLOCK_SKEW_S)
            not_after=int(now) + self._lifetime_s,
            agreement_key=key.public,
        )
        assertion = self._authenticator.issue(claims, self._entropy(SALT_SIZE))
        # Reading it back shows what peers will see: in PKI mode it ends no later than the node's certificate.
        verified = self._authenticator.verify_untrusted(assertion, now)
        identity = LocalIdentity(identity_id(assertion), assertion, key, verified.not_after)
        return Issued(identity, subject_of(pod), now + (verified.not_after - now) / 2, generation)
