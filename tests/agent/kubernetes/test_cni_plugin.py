"""The CNI plugin, as a program: what it says to runtimes and to agents of every kind. Built with sanitizers."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
from pathlib import Path

import pytest

from agent.kubernetes.cni_wire import ANSWER, MAGIC, MAX_INPUT, VERSIONS, Request
from tests.harness.cni import RESULT, agent, answering, build, finish, run, stanza, start

TRY_LATER = 11
FLAVOURS = {"static": False, "sanitized": True}


@pytest.fixture(scope="module", params=FLAVOURS)
def plugin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cni"), sanitize=FLAVOURS[request.param])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cni.sock"


@pytest.mark.parametrize("version", VERSIONS)
def test_version_is_answered_without_an_agent(plugin: Path, version: str) -> None:
    assert run(plugin, "VERSION", {"cniVersion": version}) == (
        0,
        {"cniVersion": version, "supportedVersions": list(VERSIONS)},
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_the_agent_s_answer_is_the_plugin_s(plugin: Path, path: Path, command: str, version: str) -> None:
    seen: list[Request] = []
    said = stanza(path, version, prevResult=RESULT)
    environment = {"CNI_NETNS": "/run/netns/x", "CNI_ARGS": "K8S_POD_NAME=web;K8S_POD_UID=u", "CNI_PATH": "/opt"}
    with agent(path, answering(json.dumps(RESULT).encode(), seen=seen)):
        assert run(plugin, command, said, {**environment, "OTHER": "kept to itself"}) == (0, RESULT)
    (request,) = seen
    assert json.loads(request.input) == said
    own = {"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
    assert request.environment == {**own, **environment}


def test_an_error_of_the_agent_is_passed_on(plugin: Path, path: Path) -> None:
    error = {"cniVersion": "1.0.0", "code": 100, "msg": "no"}
    with agent(path, answering(json.dumps(error).encode(), code=1)):
        assert run(plugin, "ADD", stanza(path)) == (1, error)


@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_without_an_agent_a_start_fails_and_says_what_is_missing(plugin: Path, path: Path, command: str) -> None:
    code, error = run(plugin, command, stanza(path, "0.4.0", timeout_s=1))
    assert (code, error["code"], error["cniVersion"]) == (1, TRY_LATER, "0.4.0")
    assert str(path) in error["msg"]
    assert "No such file" in error["msg"]
    assert "kubectl get pods" in error["msg"]


@pytest.mark.parametrize("command", ["DEL", "GC", "STATUS"])
def test_without_an_agent_a_node_goes_on(plugin: Path, path: Path, command: str) -> None:
    assert run(plugin, command, stanza(path)) == (0, None)


def test_a_start_waits_for_an_agent_that_comes(plugin: Path, path: Path) -> None:
    asked = threading.Event()
    with agent(path, lambda _: asked.set()):
        process = start(plugin, "ADD", stanza(path, timeout_s=60))
        asked.wait()
    # Now it is there, and no agent is.
    with agent(path, answering(b"{}")):
        assert finish(process) == (0, {})


def _half_header(connection: socket.socket) -> None:
    connection.sendall(MAGIC)


def _half_answer(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(ANSWER.pack(MAGIC, 0, 100) + b"{")


def _garbage(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def _huge(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(ANSWER.pack(MAGIC, 0, MAX_INPUT + 1) + bytes(1 << 16))


def _strange_code(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(ANSWER.pack(MAGIC, 256, 0))


def _at_once_gone(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _hanging(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


BROKEN = [_half_header, _half_answer, _garbage, _huge, _strange_code, _at_once_gone]


@pytest.mark.parametrize("behave", BROKEN)
def test_an_answer_that_breaks_off_is_asked_for_again(plugin: Path, path: Path, behave: object) -> None:
    assert callable(behave)
    with agent(path, behave, answering(b'{"a":1}')):
        assert run(plugin, "ADD", stanza(path)) == (0, {"a": 1})


@pytest.mark.parametrize("behave", [*BROKEN, _hanging])
def test_an_agent_that_never_answers_well_fails_the_start_in_time(plugin: Path, path: Path, behave: object) -> None:
    assert callable(behave)
    with agent(path, behave):
        code, error = run(plugin, "ADD", stanza(path, timeout_s=1))
    assert (code, error["code"]) == (1, TRY_LATER)


@pytest.mark.parametrize("behave", BROKEN)
def test_a_deletion_succeeds_whatever_the_agent_does(plugin: Path, path: Path, behave: object) -> None:
    assert callable(behave)
    with agent(path, behave):
        assert run(plugin, "DEL", stanza(path)) == (0, None)


def test_a_deletion_succeeds_when_the_agent_refuses(plugin: Path, path: Path) -> None:
    with agent(path, answering(b'{"code":100}', code=1)):
        assert run(plugin, "DEL", stanza(path)) == (0, None)


def test_a_large_answer_comes_whole(plugin: Path, path: Path) -> None:
    text = "x" * (MAX_INPUT - 100)
    with agent(path, answering(json.dumps({"a": text}).encode())):
        assert run(plugin, "ADD", stanza(path)) == (0, {"a": text})


def test_input_beyond_the_bound_is_refused(plugin: Path, path: Path) -> None:
    process = start(plugin, "VERSION", b"{}" + b" " * (MAX_INPUT - 2))
    assert finish(process)[0] == 0
    process = start(plugin, "ADD", b" " * (MAX_INPUT + 1))
    code, error = finish(process)
    assert (code, error["code"]) == (1, 5)


@pytest.mark.parametrize("timeout", [0, -1, 601, "soon", 1.5, "9" * 25])
def test_a_timeout_that_is_none_is_refused_but_not_for_a_deletion(plugin: Path, path: Path, timeout: object) -> None:
    said = {**stanza(path), "timeoutSeconds": timeout}
    code, error = run(plugin, "ADD", said)
    assert (code, error["code"]) == (1, 7)
    assert run(plugin, "DEL", said) == (0, None)


def test_a_command_that_is_none_is_refused(plugin: Path, path: Path) -> None:
    code, error = run(plugin, "FORMAT", stanza(path))
    assert (code, error["code"]) == (1, 4)


def test_an_environment_beyond_the_bound_is_refused(plugin: Path, path: Path) -> None:
    code, error = run(plugin, "ADD", stanza(path), {"CNI_ARGS": "x" * (1 << 16)})
    assert (code, error["code"]) == (1, 4)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('{"cniVersion":"0.4.0"}', "0.4.0"),
        (' {\n"a" : [ {"cniVersion":"9"} , "}" ] , "cniVersion"\t: "0.4.0" , "b":1}', "0.4.0"),
        (r'{"a\"cniVersion":"8","\\":"\\","cniVersion":"0.4.0"}', "0.4.0"),
        ('{"a":{"b":{"cniVersion":"9"}},"cniVersion":"0.4.0"}', "0.4.0"),
        ('{"a":-1.5e3,"b":null,"c":true,"d":[],"e":{},"cniVersion":"0.4.0"}', "0.4.0"),
        ('{"a":"cniVersion","b":"0.1"}', "1.1.0"),
        (r'{"cniVersion":"1\",\"x"}', "1.1.0"),
        ('{"cniVersion":["0.4.0"]}', "1.1.0"),
        ('{"cniVersion":"' + "1" * 32 + '"}', "1.1.0"),
        ("[]", "1.1.0"),
        ("", "1.1.0"),
        ('{"cniVersion"', "1.1.0"),
        ('{"a":"\\', "1.1.0"),
    ],
)
def test_only_a_top_level_member_counts(plugin: Path, text: str, version: str) -> None:
    code, answer = run(plugin, "VERSION", text.encode())
    assert (code, answer["cniVersion"]) == (0, version)


def test_damaged_configurations_break_nothing(plugin: Path, path: Path) -> None:
    seed = 20261123
    random_ = random.Random(seed)
    whole = json.dumps(stanza(path, prevResult=RESULT)).encode()
    for _ in range(150):
        text = bytearray(whole)
        for _ in range(random_.randrange(1, 6)):
            at = random_.randrange(len(text))
            text[at : at + random_.randrange(3)] = random_.choice([b'"', b"\\", b"{", b"}", b"\0", b"\xff", b",", b""])
        del text[random_.randrange(1, len(text) + 40) :]
        code, answer = run(plugin, "VERSION", bytes(text))
        assert code == 0 or answer["code"] == 7, (seed, bytes(text))
