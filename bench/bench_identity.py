"""What identity costs: assertions made and verified, pair keys agreed on. Run: python bench/bench_identity.py"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

sys.path.insert(0, str(Path(__file__).parents[1]))

from trireme_py.assertion import Claims
from trireme_py.auth import Authenticator
from trireme_py.auth_pki import PkiAuthenticator
from trireme_py.auth_psk import PskAuthenticator
from trireme_py.certificate import NodeCertificate, issue_certificate
from trireme_py.labels import SALT_SIZE
from trireme_py.model import NamedPort, PlainLabels
from trireme_py.pairing import AgreementKey

ROUNDS = 300
TRUST_DOMAIN = "cluster.local"
NOW = 1_800_000_000


def microseconds(call: Callable[[], object]) -> float:
    """Median time of one call: a shared machine makes the mean meaningless."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return sorted(times)[ROUNDS // 2] / 1000


def pki() -> PkiAuthenticator:
    authority, node = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    certificate = NodeCertificate(TRUST_DOMAIN, "worker-1", NOW - 1000, NOW + 10_000, node.public_key())
    return PkiAuthenticator(node, issue_certificate(authority, certificate), [authority.public_key()], TRUST_DOMAIN)


def claims(labels: int, key: AgreementKey) -> Claims:
    items = {f"app.kubernetes.io/p-{index:03}": f"{index:06}-value" for index in range(labels)}
    ports = (NamedPort("http", 6, 8080),)
    pod = "frontend-7d9f8c6b5-x2x4z"
    return Claims(
        TRUST_DOMAIN, "shop", "frontend", pod, PlainLabels(items), ports, NOW, NOW + 3600, key.public
    )  # fmt: skip


def main() -> None:
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; median of {ROUNDS}, in µs"
    )
    key, peer = AgreementKey.generate(os.urandom), AgreementKey.generate(os.urandom)
    psk = PskAuthenticator(os.urandom(32), TRUST_DOMAIN)
    node = pki()
    makers: list[tuple[str, Authenticator]] = [("psk", psk), ("pki", node)]
    for name, authenticator in makers:
        for labels in (5, 30):
            wanted = claims(labels, key)
            assertion = authenticator.issue(wanted, os.urandom(SALT_SIZE))
            issue = microseconds(lambda a=authenticator, w=wanted: a.issue(w, bytes(SALT_SIZE)))  # type: ignore[misc]
            verify = microseconds(lambda a=authenticator, x=assertion: a.verify_untrusted(x, NOW))  # type: ignore[misc]
            print(f"{name}  {labels:2} labels  {len(assertion):4} octets  issue {issue:6.0f}  verify {verify:6.0f}")
    assertion = node.issue(claims(5, key), bytes(SALT_SIZE))

    def first_of_its_node() -> None:
        node._known.clear()
        node.verify_untrusted(assertion, NOW)

    print(f"pki  first assertion of a node: verify {microseconds(first_of_its_node):.0f}")
    pair = microseconds(lambda: key.pair_key(peer.public, bytes(16), bytes(16), TRUST_DOMAIN, b""))
    print(f"pair key {pair:.0f}")


if __name__ == "__main__":
    main()
