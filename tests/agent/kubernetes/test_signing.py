"""The signer's desk: what waits for an answer, what is tried again; and the commands around it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from agent.cli import main
from agent.enroll import generate_key, request_pem
from agent.kubernetes.calls import call
from agent.kubernetes.csr import REQUESTS, signing_request
from agent.kubernetes.inbox import Batch
from agent.kubernetes.resources import Known
from agent.kubernetes.signer import Signer
from agent.kubernetes.signing import Desk
from tests.agent.kubernetes.test_signer import AGENT, NOW, Site
from tests.harness.api_objects import Object

RESOURCE = "certificatesigningrequests"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def desk_of(site: Site) -> Desk:
    return Desk(Signer(site.api, site.directory, AGENT, NOW.timestamp))


def known(raw: Object) -> Known:
    return Known(raw["metadata"]["name"], None, (), msgspec.json.encode(raw))


def listed(*requests: Object) -> Batch:
    return Batch(lists={RESOURCE: {one["metadata"]["name"]: known(one) for one in requests}})


def changed(*requests: Object) -> Batch:
    return Batch(changes={RESOURCE: {one["metadata"]["name"]: known(one) for one in requests}})


def ask(site: Site) -> Object:
    body = msgspec.to_builtins(signing_request("worker-1", request_pem(generate_key(), "worker-1")))
    return call(site.api, "POST", REQUESTS, dict[str, Any], body)


def signed(site: Site, *requests: Object) -> list[bool]:
    return ["certificate" in site.now(one)["status"] for one in requests]


def test_what_was_there_before_and_what_comes_is_answered(site: Site) -> None:
    desk, before, later = desk_of(site), ask(site), ask(site)
    desk.take(listed(before))
    assert signed(site, before, later) == [True, False]
    desk.take(changed(later))
    assert signed(site, before, later) == [True, True]


def test_what_could_not_be_answered_is_tried_again(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    desk, requests = desk_of(site), [ask(site), ask(site)]
    site.api.down = True
    waits = [desk.take(batch) for batch in (listed(*requests), Batch(), Batch(), Batch())]
    assert waits == sorted(waits)
    assert 0 < waits[0] <= 1
    site.api.down = False
    desk.take(Batch())
    assert signed(site, *requests) == [True, True]


def test_a_request_that_went_meanwhile_is_not_tried_again(site: Site) -> None:
    desk, raw = desk_of(site), ask(site)
    site.api.down = True
    desk.take(listed(raw))
    site.api.down = False
    before = len(site.api.calls)
    desk.take(Batch(changes={RESOURCE: {raw["metadata"]["name"]: None}}))
    assert len(site.api.calls) == before


def test_a_request_that_cannot_be_read_holds_nobody_up(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    desk, raw = desk_of(site), ask(site)
    broken = {"metadata": {"name": "broken"}, "spec": {"signerName": 7}}
    with caplog.at_level(logging.ERROR):
        desk.take(listed(broken, raw))
    assert signed(site, raw) == [True]
    assert [record.getMessage() for record in caplog.records] == ["request cannot be read"]


# -- Commands ---------------------------------------------------------------------------------------------------------


def trireme(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.output


def test_the_signer_says_what_it_needs(tmp_path: Path) -> None:
    status, said = trireme("signer", "--ca", tmp_path)
    assert status == 2
    assert "this is no pod; run it with: --kubeconfig FILE" in said
    status, said = trireme("signer", "--ca", tmp_path, "--kubeconfig", tmp_path / "none")
    assert status == 2
    assert f"{tmp_path / 'none'}: No such file" in said
    status, said = trireme("install", "finish", "--kubeconfig", tmp_path / "none")
    assert status == 2
    assert "this is no pod; run it with: -n NAMESPACE" in said


@pytest.mark.parametrize("agent", ["trireme-agent", "a/b/c", "/agent", "trireme-system/"])
def test_an_agent_s_account_is_a_namespace_and_a_name(site: Site, agent: str) -> None:
    status, said = trireme("signer", "--ca", site.directory, "--agent", agent, "--kubeconfig", kubeconfig(site))
    assert status == 2
    assert f"--agent: {agent!r} is not NAMESPACE/NAME, such as trireme-system/trireme-agent" in said


def test_a_signer_without_an_authority_does_not_start(site: Site) -> None:
    for path in site.directory.iterdir():
        path.unlink()
    status, said = trireme("signer", "--ca", site.directory, "--agent", "a/b", "--kubeconfig", kubeconfig(site))
    assert status == 2
    assert f"trireme signer: {site.directory / 'ca.crt'}: no such file; run: trireme ca init" in said


def test_the_installation_cannot_be_finished_where_nobody_answers(site: Site) -> None:
    status, said = trireme("install", "finish", "-n", "trireme-system", "--kubeconfig", kubeconfig(site))
    assert status == 2
    assert said.startswith("trireme install finish: ")


def kubeconfig(site: Site) -> Path:
    """One of an API server that nobody runs (port 9, discard)."""
    path = site.directory.parent / "kubeconfig"
    path.write_text(
        "current-context: a\n"
        "contexts: [{name: a, context: {cluster: a, user: a}}]\n"
        "clusters: [{name: a, cluster: {server: 'http://127.0.0.1:9'}}]\n"
        "users: [{name: a, user: {}}]\n"
    )
    return path
