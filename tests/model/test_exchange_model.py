"""The exchange's model (docs/model/exchange.pml), searched completely by Spin; docs/model/README.md explains it.

Every broken variant is searched in a network in which the correct exchange has been verified, so that what is found is
the variant's doing.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.harness import spin

search = partial(spin.search, Path(__file__).parents[2] / "docs" / "model" / "exchange.pml")

RELAY = ("OFF_PATH", "MASQUERADE")
"""Pod M with its own sockets only, and a network where anybody's source may be translated."""


@pytest.mark.slow  # two million states each
@pytest.mark.parametrize("network", [(), RELAY], ids=["attacker-on-the-path", "relay-with-masquerade"])
def test_exchange_holds_in_every_reachable_state(tmp_path: Path, network: tuple[str, ...]) -> None:
    outcome = search(tmp_path, *network, optimise="-O2")

    assert outcome.violated is None, outcome.report
    assert outcome.complete, outcome.report
    assert outcome.states > 1_000_000, "the model has shrunk: a process is blocked that was not"


@pytest.mark.parametrize(
    "defines",
    [
        ("OFF_PATH", "EXTERNAL"),
        (*RELAY, "EXTERNAL", "ONE_RUN", "VARIANT=REFUSE_EXTERNAL"),
        ("MASQUERADE", "ONE_RUN", "VARIANT=SOURCE_EVIDENCE"),
    ],
    ids="-".join,
)
def test_exchange_holds_where_a_limit_is_closed(tmp_path: Path, defines: tuple[str, ...]) -> None:
    outcome = search(tmp_path, *defines)

    assert outcome.violated is None, outcome.report
    assert outcome.complete, outcome.report


@pytest.mark.parametrize(
    ("variant", "network", "violated"),
    [
        ("NO_SYN_ACK_MAC", (), "agree_on_run"),
        ("NO_SYN_ACK_MAC", ("OFF_PATH",), "agree_on_run"),
        ("NO_ADDRESSES", (), "endpoint_is_the_peers"),
        ("NO_ADDRESSES", ("OFF_PATH",), "endpoint_is_the_peers"),
        ("NO_ADDRESSES", RELAY, "endpoint_is_the_peers"),
        ("NO_CLIENT_NONCE", (), "agree_on_run"),
        ("NO_SERVER_NONCE", (), "agree_on_run"),
        ("NO_ROLE_TAG", (), "agree_on_run"),
        ("UNORDERED_IDS", ("ONE_RUN",), "agree_on_run"),
        ("ACCEPT_AT_SYN", (), "agree_on_run"),
        ("NO_DESTINATION_CHECK", (), "endpoint_is_the_peers"),
        ("NO_DESTINATION_CHECK", RELAY, "endpoint_is_the_peers"),
        ("NO_SOURCE_CHECK", (), "endpoint_is_the_peers"),
        ("NO_PORT_CHECK", (), "endpoint_is_the_peers"),
        ("EVIDENCE_PER_PAIR", (*RELAY, "ONE_RUN"), "endpoint_is_the_peers"),
        ("PROVE_AGAIN", (), "one_accept_per_run"),
        ("KEY_IN_CLEAR", (), "key_is_secret"),
    ],
)
def test_broken_variant_is_found(tmp_path: Path, variant: str, network: tuple[str, ...], violated: str) -> None:
    outcome = search(tmp_path, f"VARIANT={variant}", *network)

    assert outcome.violated == violated, outcome.report


@pytest.mark.parametrize(
    "network",
    [("MASQUERADE", "ONE_RUN"), ("EXTERNAL", "ONE_RUN"), (*RELAY, "EXTERNAL", "ONE_RUN")],
    ids="-".join,
)
def test_known_limit_is_still_one(tmp_path: Path, network: tuple[str, ...]) -> None:
    """README.md lists these as not protected: when one no longer fails, the list is to be changed."""
    outcome = search(tmp_path, *network)

    assert outcome.violated == "endpoint_is_the_peers", outcome.report


@pytest.mark.parametrize(
    ("network", "dialled", "source"),
    [
        ((), "SOCK_S", "SOCK_A"),
        ((), "SOCK_VIP", "SOCK_A"),
        (RELAY, "SOCK_S", "SOCK_RA"),
        (RELAY, "SOCK_VIP", "SOCK_RA"),
        (("OFF_PATH", "EXTERNAL"), "SOCK_EXT", "SOCK_A"),
    ],
)
def test_honest_run_completes(tmp_path: Path, network: tuple[str, ...], dialled: str, source: str) -> None:
    """The model is not vacuous: its claim that no honest run is accepted by both sides is found false."""
    outcome = search(tmp_path, *network, "ONE_RUN", f"HONEST_DIALLED={dialled}", f"HONEST_SOURCE={source}")

    assert outcome.violated is not None, outcome.report
    assert "agree_on_addresses&&endpoint_is_the_peers" in outcome.violated, outcome.report
