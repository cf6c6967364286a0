"""The watch against a real HTTP server that speaks its protocol, well and badly; the real API server: tests/cluster."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agent.kubernetes.api import Access, ApiServer
from agent.kubernetes.reflector import PAGE, Reflector, Timing
from agent.kubernetes.resources import Resource, watched
from policy.objects import Node
from tests.harness.api_stand_in import (
    PATIENCE_S,
    ApiStandIn,
    Fault,
    Handler,
    body,
    hang,
    line,
    status,
    stream,
    wait_until,
)
from tests.harness.watch_state import State

NODES, NAMESPACES, CLUSTER_POLICIES, POLICIES, PODS = watched("node-1")
QUICK = Timing(away=(0.001, 0.01), refused=(0.001, 0.01), not_served=0.01)
SPEC: dict[str, object] = {"podSelector": {}}


@contextmanager
def watching(
    server: ApiStandIn, resource: Resource = POLICIES, timing: Timing = QUICK
) -> Iterator[tuple[State, Reflector]]:
    state = State()
    reflector = Reflector(ApiServer(Access("127.0.0.1", server.port, tls=False)), resource, state.inbox, timing)
    reflector.start()
    try:
        yield state, reflector
    finally:
        reflector.stop()
        state.inbox.close()


@pytest.fixture
def server() -> Iterator[ApiStandIn]:
    with ApiStandIn("namespaces", "networkpolicies", "pods") as server:
        yield server


def policy(server: ApiStandIn, name: str) -> str:
    server.put("networkpolicies", name, namespace="shop", spec=SPEC)
    return f"NetworkPolicy/shop/{name}"


def test_what_is_there_is_listed_and_what_changes_is_told(server: ApiStandIn) -> None:
    a = policy(server, "a")
    with watching(server) as (state, reflector):
        state.wait_for(a)
        assert state.objects[a].item is not None
        b = policy(server, "b")
        state.wait_for(a, b)
        server.delete("networkpolicies", "a", namespace="shop")
        state.wait_for(b)
        assert (state.lists, reflector.reading.events, reflector.trouble) == (1, 2, "")
        first, second = server.requests
        assert (first.watch, second.watch, second.query["allowWatchBookmarks"]) == (False, True, "true")
        assert 240 <= int(second.query["timeoutSeconds"]) <= 480


def test_pods_of_the_own_node_alone_and_labels_alone_of_namespaces_are_asked_for(server: ApiStandIn) -> None:
    for resource in (PODS, NAMESPACES):
        with watching(server, resource):
            server.wait_for(lambda server, name=resource.name: server.count(name, watch=True))  # type: ignore[misc]
    of_pods = [one for one in server.requests if one.resource == "pods"]
    assert {one.query["fieldSelector"] for one in of_pods} == {"spec.nodeName=node-1"}
    listed, watched_ = [one.headers["Accept"] for one in server.requests if one.resource == "namespaces"]
    assert listed.startswith("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,")
    assert watched_.startswith("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,")


def test_a_node_is_its_labels_and_addresses(server: ApiStandIn) -> None:
    server.collections["nodes"] = server.collections["pods"]
    addresses = [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "node-1"}]
    server.put("nodes", "node-1", metadata={"labels": {"zone": "a"}}, status={"addresses": addresses, "images": []})
    with watching(server, NODES) as (state, _):
        state.wait_for("Node/node-1")
    known = state.objects["Node/node-1"]
    assert known.item == Node(name="node-1", labels={"zone": "a"}, addresses=(b"\x0a\x00\x00\x01",))
    assert b"images" not in known.document


def test_a_list_comes_in_pages_and_counts_as_one(server: ApiStandIn) -> None:
    keys = [policy(server, f"p{number}") for number in range(2 * PAGE + 1)]
    with watching(server) as (state, _):
        state.wait_for(*keys)
        assert state.lists == 1
    assert server.count("networkpolicies", watch=False) == 3


def test_a_server_that_knows_no_pages_gives_everything_at_once(server: ApiStandIn) -> None:
    keys = [policy(server, f"p{number}") for number in range(5 * PAGE)]
    server.paged = False
    with watching(server) as (state, _):
        state.wait_for(*keys)
    assert server.count("networkpolicies", watch=False) == 1


def test_after_the_end_of_a_watch_it_goes_on_where_it_was(server: ApiStandIn) -> None:
    a = policy(server, "a")
    with watching(server) as (state, reflector):
        state.wait_for(a)
        server.wait_for(lambda server: server.watchers("networkpolicies"))
        b = policy(server, "b")
        state.wait_for(a, b)
        version = server.version
        server.end("networkpolicies")
        server.wait_for(lambda server: server.count("networkpolicies", watch=True) == 2)
        assert server.requests[-1].query["resourceVersion"] == str(version)
        c = policy(server, "c")
        state.wait_for(a, b, c)
        assert (state.lists, reflector.reading.restarts["eof"]) == (1, 1)


def test_a_bookmark_moves_the_place_where_it_goes_on_and_is_a_sign_of_life(server: ApiStandIn) -> None:
    with watching(server) as (state, reflector):
        state.wait_for()
        server.wait_for(lambda server: server.watchers("networkpolicies"))
        before = reflector.reading.last_event
        server.bookmark("networkpolicies")
        server.end("networkpolicies")
        server.wait_for(lambda server: server.count("networkpolicies", watch=True) == 2)
        assert server.requests[-1].query["resourceVersion"] == str(server.version)
        assert reflector.reading.last_event > before
        assert (state.lists, reflector.reading.events) == (1, 0)


def test_a_forgotten_version_is_listed_anew_and_what_went_meanwhile_is_gone(server: ApiStandIn) -> None:
    a, b = policy(server, "a"), policy(server, "b")
    with watching(server) as (state, reflector):
        state.wait_for(a, b)
        server.wait_for(lambda server: server.watchers("networkpolicies"))
        server.fault("networkpolicies", status(503), status(410))
        server.end("networkpolicies")
        server.wait_for(
            lambda server: server.watchers("networkpolicies") and server.count(POLICIES.name, watch=False) == 2
        )
        server.end("networkpolicies")
        server.fault("networkpolicies", status(503))
        server.delete("networkpolicies", "a", namespace="shop")
        server.forget("networkpolicies")
        state.wait_for(b)
        assert reflector.reading.restarts["gone"] == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (stream(b'{"type": "ADDED", "obj'), "eof"),
        (stream(b'{"type": "ADDED", "obj', end=True), "eof"),
        (stream(b"<html>\n"), "garbage"),
        (stream(b'{"type": "ADDED"}\n'), "garbage"),
        (stream(b'{"type": "STRANGE", "object": {"metadata": {}}}\n'), "garbage"),
        (stream(line("ERROR", {"code": 500, "message": "etcd is away"})), "refused"),
        (status(401), "refused"),
        (status(403), "refused"),
        (status(429, Retry_After="0"), "refused"),
        (status(500), "refused"),
        (body(b""), "eof"),
        (lambda handler: handler.wfile.write(b"SSH-2.0-OpenSSH\r\n"), "garbage"),
        (lambda handler: handler.abort(), "eof"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_after_whatever_goes_wrong_with_a_watch_everything_is_told(
    server: ApiStandIn, fault: Fault, reason: str
) -> None:
    a = policy(server, "a")
    with watching(server) as (state, reflector):
        state.wait_for(a)
        server.wait_for(lambda server: server.watchers("networkpolicies"))
        server.fault("networkpolicies", fault)
        server.end("networkpolicies")
        # eof is also how the watch before it ended.
        server.wait_for(
            lambda server: server.watchers("networkpolicies") and server.count(POLICIES.name, watch=True) >= 3
        )
        b = policy(server, "b")
        state.wait_for(a, b)
        assert reflector.reading.restarts[reason] == (2 if reason == "eof" else 1)
        assert reflector.trouble == ""


@pytest.mark.parametrize("fault", [status(403), status(500), body(b"{"), body(b"[]"), lambda handler: handler.abort()])
def test_after_whatever_goes_wrong_with_a_list_nothing_is_taken_back(server: ApiStandIn, fault: Fault) -> None:
    a = policy(server, "a")
    with watching(server) as (state, _):
        state.wait_for(a)
        server.wait_for(lambda server: server.watchers("networkpolicies"))
        refusal = threading.Event()

        def last(handler: Handler) -> None:
            refusal.set()
            fault(handler)

        server.fault("networkpolicies", status(410), fault, last)
        server.end("networkpolicies")
        assert refusal.wait(PATIENCE_S)
        b = policy(server, "b")
        state.wait_for(a, b)
        assert state.lists == 2


def test_lines_before_something_unreadable_count_and_what_stays_unreadable_is_listed(server: ApiStandIn) -> None:
    a = policy(server, "a")
    with watching(server) as (state, reflector):
        state.wait_for(a)
        server.wait_for(lambda server: server.watchers("networkpolicies"))
        item = {"metadata": {"name": "b", "namespace": "shop", "resourceVersion": "7"}, "spec": SPEC}
        broken = stream(line("ADDED", item), b"\x00\n")
        server.fault("networkpolicies", broken, broken, broken)
        server.end("networkpolicies")
        state.wait_for(a, "NetworkPolicy/shop/b")
        server.wait_for(lambda server: server.count(POLICIES.name, watch=False) == 2)
        state.wait_for(a)
        assert reflector.reading.restarts["garbage"] == 3


def test_an_object_that_cannot_be_read_is_one_problem_and_the_others_count(server: ApiStandIn) -> None:
    a = policy(server, "a")
    server.put("networkpolicies", "b", namespace="shop", spec={"podSelectr": {}})
    server.put("networkpolicies", "c", namespace="shop", metadata={"name": 7})
    with watching(server) as (state, _):
        state.wait_for(a, "NetworkPolicy/shop/b", "NetworkPolicy/shop/7")
        assert [len(known.problems) for _, known in sorted(state.objects.items())] == [1, 0, 1]
        # The policy that is not understood still isolates; see policy/README.md.
        assert state.objects["NetworkPolicy/shop/b"].item is not None
        assert state.objects["NetworkPolicy/shop/7"].item is None


@pytest.mark.parametrize("begun", [False, True])
def test_a_server_that_says_nothing_more_is_left(
    server: ApiStandIn, begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.kubernetes.api.ANSWER_TIMEOUT_S", 0.1)
    a = policy(server, "a")
    over = threading.Event()
    server.fault("networkpolicies", lambda handler: handler.list(server.collections["networkpolicies"]))
    server.fault("networkpolicies", hang(over, begun=begun))
    try:
        with watching(server, timing=Timing(away=(0.001, 0.01), refused=(0.001, 0.01), silence=0.1)) as (
            state,
            reflector,
        ):
            state.wait_for(a)
            server.wait_for(lambda server: server.watchers("networkpolicies"))
            b = policy(server, "b")
            state.wait_for(a, b)
            assert reflector.reading.restarts["timeout" if begun else "network"] >= 1
    finally:
        over.set()


def test_a_server_that_is_away_is_asked_again_and_again_and_then_goes_on(server: ApiStandIn) -> None:
    a = policy(server, "a")
    with watching(server) as (state, reflector):
        state.wait_for(a)
        server.wait_for(lambda server: server.watchers("networkpolicies"))
        server.__exit__(None, None, None)
        attempts = reflector.reading.restarts
        assert wait_until(lambda: attempts["network"] >= 3)
        assert reflector.trouble == "Connection refused"
        state.take()
        assert set(state.objects) == {a}, "what is known stays"
        with ApiStandIn("networkpolicies", port=server.port) as again:
            again.version = server.version
            again.forget("networkpolicies")
            b = policy(again, "b")
            state.wait_for(b)
            assert reflector.trouble == ""


def test_a_collection_that_is_not_served_is_looked_for_and_believed_gone_only_twice_in_a_row() -> None:
    with ApiStandIn() as server, watching(server, CLUSTER_POLICIES) as (state, reflector):
        state.wait_for()
        assert reflector.trouble == ""
        served = ApiStandIn("clusternetworkpolicies")
        spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}
        served.put("clusternetworkpolicies", "a", spec=spec)
        server.collections = served.collections
        state.wait_for("ClusterNetworkPolicy/a")
        server.wait_for(lambda server: server.watchers("clusternetworkpolicies"))
        # One answer of 404 may be that of a server that is starting.
        server.fault("clusternetworkpolicies", status(404))
        server.end("clusternetworkpolicies")
        assert wait_until(lambda: state.inbox.sizes == [0, 1, 1])
        server.wait_for(lambda server: server.watchers("clusternetworkpolicies"))
        server.fault("clusternetworkpolicies", status(404), status(404))
        server.end("clusternetworkpolicies")
        assert wait_until(lambda: state.inbox.sizes == [0, 1, 1, 0, 1])


def test_it_stops_while_it_waits_for_whatever(server: ApiStandIn) -> None:
    over = threading.Event()
    try:
        for fault in (None, hang(over), hang(over, begun=True), status(500)):
            if fault is not None:
                server.fault("networkpolicies", fault)
            seen = len(server.requests)
            with watching(server, timing=Timing()):
                server.wait_for(lambda server, seen=seen: len(server.requests) > seen)  # type: ignore[misc]
    finally:
        over.set()
