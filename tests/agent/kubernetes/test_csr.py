"""A node's keys in a cluster: asked for, kept, renewed, replaced; with the real signer at the other end."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.credentials import Replaceable
from agent.enroll import create_authority
from agent.issuing import Issuer
from agent.kubernetes.csr import LIFETIME_S, REQUESTS, NodeKeys
from agent.kubernetes.signer import NODE_NAME, POD_NAME, POD_UID, Signer
from agent.runtime import NODE_KEYS, RuntimeDirectory
from policy.objects import Pod
from tests.harness.api_objects import Objects
from trireme_py.assertion import CLOCK_SKEW_S
from trireme_py.errors import CredentialError, InvalidToken
from trireme_py.identities import Identities
from trireme_py.model import DropReason, Instant

TRUST_DOMAIN = "cluster.local"
AGENT = "system:serviceaccount:trireme-system:trireme-agent"
BEGIN = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
POD = Pod(namespace="shop", name="web-1", labels={"app": "web"})
HOUR, DAY = 3600, 86_400


class Cluster:
    """An authority, its signer, and nodes; the clock stands still unless it is turned."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_s = BEGIN.timestamp()
        self.api = Objects()
        self.bundle = folder / "authority" / "ca.crt"
        self.bundle.parent.mkdir()
        self.signer = self.authority("ca")
        self.trust("ca")

    def clock(self) -> float:
        return self.now_s

    def authority(self, name: str) -> Signer:
        create_authority(self.folder / name, TRUST_DOMAIN, BEGIN - timedelta(days=1), days=3650)
        return Signer(self.api, self.folder / name, AGENT, self.clock)

    def trust(self, *names: str) -> None:
        """Swap the file, as the kubelet swaps a ConfigMap's."""
        self.bundle.write_bytes(b"".join((self.folder / name / "ca.crt").read_bytes() for name in names))

    def keys(self, node: str = "worker-1", draw: Callable[[], float] = lambda: 0.5) -> NodeKeys:
        directory = self.folder / node
        directory.mkdir(mode=0o700, exist_ok=True)
        return NodeKeys(self.api, node, TRUST_DOMAIN, self.bundle, directory, clock=self.clock, draw=draw)

    def step(self, keys: NodeKeys, node: str = "worker-1") -> float:
        """Let the agent on ``node`` do its step."""
        self.api.requester = AGENT, {NODE_NAME: [node], POD_NAME: ["trireme-agent-1"], POD_UID: ["1"]}
        return keys.step()

    def sign(self) -> None:
        for path, raw in list(self.api.objects.items()):
            if path.startswith(REQUESTS):
                self.signer.answer(raw)

    def enrol(self, keys: NodeKeys, node: str = "worker-1") -> NodeKeys:
        """Ask, sign, collect."""
        self.step(keys, node)
        self.sign()
        self.step(keys, node)
        return keys

    def issuer(self, keys: NodeKeys, lifetime_s: int = HOUR) -> Issuer:
        return Issuer(keys.authenticator, lifetime_s, os.urandom, self.clock)

    def believes(self, identities: Identities, assertion_id: bytes, assertion: bytes) -> bool:
        try:
            identities.resolve_untrusted(Instant(0, self.now_s), 1, assertion_id, assertion)
        except InvalidToken as error:
            if error.reason is DropReason.UNKNOWN_SIGNER:
                return False
            raise
        return True

    @property
    def requests(self) -> list[str]:
        return [path.rpartition("/")[2] for path in self.api.objects if path.startswith(REQUESTS)]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def kept(cluster: Cluster, node: str = "worker-1") -> Path:
    return cluster.folder / node / NODE_KEYS


def some_key(keys: NodeKeys) -> Any:
    """What a replaced key shows in."""
    return keys.authenticator._current.certificate.public_key.public_numbers()  # type: ignore[attr-defined]


# -- The first certificate --------------------------------------------------------------------------------------------


def test_a_node_asks_waits_and_vouches_for_its_pods(cluster: Cluster) -> None:
    keys = cluster.keys()
    cluster.step(keys)
    assert len(cluster.requests) == 1
    cluster.step(keys)  # not signed yet
    cluster.sign()
    cluster.step(keys)
    assert len(cluster.requests) == 1
    issued = cluster.issuer(keys).issue(POD)
    other = cluster.enrol(cluster.keys("worker-2"), "worker-2")
    assert cluster.believes(Identities(other.authenticator), issued.identity.id, issued.identity.assertion)


def test_the_key_is_in_one_private_file_and_in_no_request(cluster: Cluster) -> None:
    cluster.enrol(cluster.keys())
    assert kept(cluster).stat().st_mode & 0o7777 == 0o600
    assert [path.name for path in kept(cluster).parent.iterdir()] == [NODE_KEYS]
    assert b"PRIVATE KEY" in kept(cluster).read_bytes()
    assert "PRIVATE KEY" not in repr(cluster.api.objects)


def test_waiting_ends_with_the_certificate(cluster: Cluster) -> None:
    keys = cluster.keys()

    class Stop(threading.Event):
        """Waiting is the moment in which the signer answers."""

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout
            cluster.sign()
            return False

    cluster.api.requester = AGENT, {NODE_NAME: ["worker-1"], POD_NAME: ["a"], POD_UID: ["1"]}
    keys.wait(Stop())
    assert keys.not_after == cluster.now_s + LIFETIME_S


def test_an_agent_that_is_stopped_while_it_waits(cluster: Cluster) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(CredentialError, match="node worker-1 had no certificate yet; see: kubectl get csr"):
        cluster.keys().wait(stop)


def test_a_request_that_was_denied_is_said_and_tried_again_later(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    keys = cluster.keys("worker-1")
    cluster.step(keys, "worker-2")  # the API server knows better
    cluster.sign()
    with caplog.at_level(logging.ERROR):
        cluster.step(keys, "worker-2")
    said = str(caplog.records[-1].__dict__)
    assert "Denied, OtherNode" in said
    assert "kubectl describe csr trireme-worker-1-" in said
    cluster.step(keys)
    assert len(cluster.requests) == 1
    cluster.now_s += 30
    cluster.enrol(keys)
    assert keys.not_after


def test_a_request_that_was_cleaned_away_is_made_again(cluster: Cluster) -> None:
    keys = cluster.keys()
    cluster.step(keys)
    cluster.api.objects.clear()
    cluster.step(keys)
    cluster.now_s += 30
    cluster.enrol(keys)
    assert keys.not_after


def test_an_api_server_that_goes_away_while_the_signer_works(cluster: Cluster) -> None:
    keys = cluster.keys()
    cluster.step(keys)
    cluster.api.down = True
    cluster.step(keys)
    cluster.api.down = False
    cluster.sign()
    cluster.step(keys)
    assert len(cluster.requests) == 1
    assert keys.not_after


def test_a_signer_with_another_authority_than_the_one_that_is_trusted(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.signer = cluster.authority("other")
    keys = cluster.keys()
    cluster.step(keys)
    cluster.sign()
    with caplog.at_level(logging.ERROR):
        cluster.step(keys)
    assert f"is not signed by the authority in {cluster.bundle}" in str(caplog.records[-1].__dict__)
    assert not keys.not_after


# -- Kept over a restart ----------------------------------------------------------------------------------------------


def test_a_restart_needs_neither_signer_nor_api_server(cluster: Cluster) -> None:
    key = some_key(cluster.enrol(cluster.keys()))
    cluster.api.down = True
    again = cluster.keys()
    again.wait(threading.Event())
    assert some_key(again) == key


def test_a_kept_certificate_that_ran_out_is_not_used(cluster: Cluster) -> None:
    before = some_key(cluster.enrol(cluster.keys()))
    cluster.now_s += LIFETIME_S
    again = cluster.keys()
    cluster.step(again)
    assert not again.not_after
    cluster.sign()
    cluster.step(again)
    assert some_key(again) != before


def test_a_kept_key_that_others_can_read_is_not_used(cluster: Cluster) -> None:
    cluster.enrol(cluster.keys())
    kept(cluster).chmod(0o640)
    again = cluster.keys()
    cluster.step(again)
    assert not again.not_after
    assert len(cluster.requests) == 2


def test_cleaning_up_leaves_no_key_behind(cluster: Cluster) -> None:
    cluster.enrol(cluster.keys())
    assert RuntimeDirectory(kept(cluster).parent).remove()
    assert not kept(cluster).parent.exists()


# -- Renewal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
def test_a_certificate_is_renewed_after_two_thirds_of_its_life(cluster: Cluster, draw: float) -> None:
    keys = cluster.enrol(cluster.keys(draw=lambda: draw))
    for part, asked in ((0.66, 1), (0.73, 2)):
        cluster.now_s = BEGIN.timestamp() + LIFETIME_S * part
        cluster.step(keys)
        assert len(cluster.requests) == asked


def test_renewal_changes_the_key_and_tells(cluster: Cluster) -> None:
    keys = cluster.enrol(cluster.keys())
    told: list[float] = []
    keys.on_replaced = lambda: told.append(keys.not_after)
    before = some_key(keys)
    cluster.now_s += 5 * DAY
    cluster.enrol(keys)
    assert some_key(keys) != before
    assert told == [BEGIN.timestamp() + 5 * DAY + LIFETIME_S]
    assert keys.changes == 1
    again = cluster.keys()
    again.wait(threading.Event())
    assert some_key(again) == some_key(keys)


def test_peers_go_on_with_what_the_old_certificate_signed(cluster: Cluster) -> None:
    """Both ways: what this node issued before, and what others issue under certificates older than ours."""
    keys = cluster.enrol(cluster.keys())
    peer = cluster.enrol(cluster.keys("worker-2"), "worker-2")
    cluster.now_s += 5 * DAY
    old = cluster.issuer(keys).issue(POD)
    theirs = cluster.issuer(peer).issue(POD)
    cluster.enrol(keys)
    known, stranger = Identities(peer.authenticator), Identities(peer.authenticator)
    assert cluster.believes(known, old.identity.id, old.identity.assertion)
    cluster.now_s += HOUR / 2
    assert cluster.believes(known, old.identity.id, old.identity.assertion)
    assert cluster.believes(stranger, old.identity.id, old.identity.assertion)
    assert cluster.believes(Identities(keys.authenticator), theirs.identity.id, theirs.identity.assertion)


def test_identities_are_issued_anew_under_the_new_key(cluster: Cluster) -> None:
    keys = cluster.enrol(cluster.keys())
    issuer = cluster.issuer(keys)
    keys.on_replaced = issuer.renew_all
    cluster.now_s += 5 * DAY
    issued = issuer.issue(POD)
    assert not issuer.due(issued, POD)
    cluster.enrol(keys)
    assert issuer.due(issued, POD)
    fresh = issuer.issue(POD)
    assert not issuer.due(fresh, POD)
    assert fresh.identity.assertion != issued.identity.assertion


def test_without_an_api_server_the_certificate_serves_to_its_end(cluster: Cluster) -> None:
    keys = cluster.enrol(cluster.keys())
    cluster.api.down = True
    end = keys.not_after
    while cluster.now_s < end - HOUR:
        cluster.step(keys)
        cluster.now_s += HOUR
    issued = cluster.issuer(keys).issue(POD)
    assert issued.identity.not_after <= end + CLOCK_SKEW_S
    cluster.api.down = False
    cluster.enrol(keys)
    assert keys.not_after > end


def test_an_outage_is_asked_about_ever_more_seldom(cluster: Cluster) -> None:
    keys = cluster.enrol(cluster.keys())
    cluster.now_s += 5 * DAY
    cluster.api.denied = frozenset({"POST"})
    before = len(cluster.api.calls)
    end = cluster.now_s + 4 * HOUR
    while cluster.now_s < end:
        cluster.now_s += cluster.step(keys)
    assert len(cluster.api.calls) - before < 4 * 6 + 8  # each 15 minutes at last, and at least every second of them


# -- Authorities ------------------------------------------------------------------------------------------------------


def test_the_authority_is_changed_without_a_refusal(cluster: Cluster) -> None:
    one = cluster.enrol(cluster.keys("worker-1"), "worker-1")
    two = cluster.enrol(cluster.keys("worker-2"), "worker-2")

    def both_believe() -> bool:
        """The agents forget nothing here: each is asked as by a pod that it never met."""
        issued = [(cluster.issuer(keys).issue(POD).identity, peer) for keys, peer in ((one, two), (two, one))]
        return all(
            cluster.believes(Identities(peer.authenticator), identity.id, identity.assertion)
            for identity, peer in issued
        )

    new = cluster.authority("new")
    cluster.trust("ca", "new")
    for keys, node in ((one, "worker-1"), (two, "worker-2")):
        cluster.step(keys, node)
        assert both_believe()
    cluster.signer = new
    cluster.now_s += 5 * DAY
    for keys, node in ((one, "worker-1"), (two, "worker-2")):
        cluster.enrol(keys, node)
        assert both_believe()
    cluster.trust("new")
    for keys, node in ((one, "worker-1"), (two, "worker-2")):
        cluster.step(keys, node)
        assert both_believe()
    assert len(cluster.requests) == 4


def test_an_authority_that_is_trusted_no_longer(cluster: Cluster) -> None:
    """After a theft: nobody is believed by it any more, and every node asks for a certificate at once."""
    keys = cluster.enrol(cluster.keys())
    old = cluster.issuer(keys).issue(POD).identity
    cluster.signer = cluster.authority("new")
    cluster.trust("new")
    cluster.enrol(keys)
    assert not cluster.believes(Identities(keys.authenticator), old.id, old.assertion)
    fresh = cluster.issuer(keys).issue(POD).identity
    assert cluster.believes(Identities(keys.authenticator), fresh.id, fresh.assertion)


def test_a_file_of_authorities_that_is_none_changes_nothing(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    keys = cluster.enrol(cluster.keys())
    issued = cluster.issuer(keys).issue(POD).identity
    good = cluster.bundle.read_bytes()
    for wrong in (b"", b"nothing"):
        cluster.bundle.write_bytes(wrong)
        with caplog.at_level(logging.WARNING):
            cluster.step(keys)
        assert "holds no certificate" in str(caplog.records[-1].__dict__)
        assert cluster.believes(Identities(keys.authenticator), issued.id, issued.assertion)
    cluster.bundle.write_bytes(good)
    cluster.step(keys)
    assert len(cluster.requests) == 1


def test_a_replacement_for_another_trust_domain_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    keys = cluster.enrol(cluster.keys())

    class Other:
        trust_domain = "other.example"

    with pytest.raises(CredentialError, match=r"trust domain other\.example, not cluster\.local"):
        keys.authenticator.replace(Other())  # type: ignore[arg-type]
    assert isinstance(keys.authenticator, Replaceable)
