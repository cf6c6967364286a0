"""The model of datagrams that prove themselves (docs/model/resume.pml), searched completely by Spin."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.harness import spin

search = partial(spin.search, Path(__file__).parents[2] / "docs" / "model" / "resume.pml")

RELAY = ("OFF_PATH", "MASQUERADE")
"""Pod M with its own sockets only, and a network where anybody's source may be translated."""


@pytest.mark.parametrize(
    "network",
    [("ANSWERS",), ("OFF_PATH", "ANSWERS"), RELAY, (*RELAY, "VARIANT=NO_SOURCE_CHECK")],
    ids=["attacker-on-the-path", "relay", "relay-with-masquerade", "without-the-source-check"],
)
def test_it_holds_in_every_reachable_state(tmp_path: Path, network: tuple[str, ...]) -> None:
    outcome = search(tmp_path, *network)

    assert outcome.violated is None, outcome.report
    assert outcome.complete, outcome.report
    assert outcome.states > 900, "the model has shrunk: a process is blocked that was not"


@pytest.mark.parametrize(
    ("variant", "network", "violated"),
    [
        ("NO_PAYLOAD", (), "payload_is_the_clients"),
        ("NO_PAYLOAD", RELAY, "payload_is_the_clients"),
        ("NO_WINDOW", (), "delivered_once"),
        ("NO_WINDOW", ("OFF_PATH",), "delivered_once"),
        ("NO_CLIENT_ADDRESS", ("OFF_PATH", "ANSWERS"), "answer_goes_to_the_client"),
        ("MARK_ON_RESUME", RELAY, "endpoint_is_the_peers"),
        ("NO_CONFIRM", (), "agree_on_datagram"),
        ("NO_CONFIRM", RELAY, "agree_on_datagram"),
        ("NO_DATAGRAM", (), "agree_on_datagram"),
        ("NO_DESTINATION_CHECK", (), "endpoint_is_the_peers"),
        ("NO_DESTINATION_CHECK", RELAY, "endpoint_is_the_peers"),
        ("NO_ENDS_IN_PROOF", (), "agree_on_datagram"),
        ("NO_ENDS_IN_PROOF", RELAY, "endpoint_is_the_peers"),
        ("NO_PORT_IN_PROOF", RELAY, "endpoint_is_the_peers"),
    ],
)
def test_broken_variant_is_found(tmp_path: Path, variant: str, network: tuple[str, ...], violated: str) -> None:
    outcome = search(tmp_path, f"VARIANT={variant}", *network)

    assert outcome.violated == violated, outcome.report


@pytest.mark.parametrize(
    ("network", "violated"),
    [
        (("MASQUERADE",), "endpoint_is_the_peers"),
        ((*RELAY, "ANSWERS"), "answer_goes_to_the_client"),
        (("OFF_PATH", "MOVES"), "plain_goes_to_the_server"),
    ],
    ids=["on-the-path-with-masquerade", "answers-behind-a-masquerade", "a-service-that-moves"],
)
def test_known_limit_is_still_one(tmp_path: Path, network: tuple[str, ...], violated: str) -> None:
    """README.md lists these as not protected: when one no longer fails, the list is to be changed."""
    outcome = search(tmp_path, *network)

    assert outcome.violated == violated, outcome.report


@pytest.mark.parametrize(
    ("network", "socket"),
    [((), "SOCK_A"), (("OFF_PATH",), "SOCK_A1"), (RELAY, "SOCK_R"), (RELAY, "SOCK_A")],
)
def test_honest_flow_is_marked(tmp_path: Path, network: tuple[str, ...], socket: str) -> None:
    """The model is not vacuous: its claim that no honest flow is ever marked is found false."""
    outcome = search(tmp_path, *network, f"HONEST={socket}")

    assert outcome.violated is not None, outcome.report
    assert "endpoint_is_the_peers&&agree_on_datagram" in outcome.violated, outcome.report
