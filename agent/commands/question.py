"""What ``trireme policy explain`` is asked: FROM, TO:PORT and --protocol, each with advice of its own if wrong."""

from __future__ import annotations

from policy.evaluate import Evaluator, UnknownEndpoint
from policy.expectations import split_target
from policy.ports import describe_flow
from policy.validate import PROTOCOLS
from policy.verdicts import PORTS, PROTOCOL_NUMBERS, InputError


def read_question(
    evaluator: Evaluator, source: str, target: str, protocol: str, pods: str
) -> tuple[str, int, int | str | None]:
    """Return the destination, the protocol's number and the port; ``pods`` is the command that lists the pods.

    Raises InputError.
    """
    number = PROTOCOL_NUMBERS.get(protocol.upper())
    if number is None:
        raise InputError(f"--protocol {protocol}: is not one of {', '.join(PROTOCOL_NUMBERS)}")
    destination, port = _target(target, int(number))
    _check_source(evaluator, source, pods)
    try:
        evaluator.endpoint(destination)
    except UnknownEndpoint as error:
        suffix = "" if port is None else f":{port}"
        raise InputError(f"TO: {error}; write namespace/pod{suffix} or address{suffix}; {_see(pods)}") from error
    return destination, int(number), port


def _check_source(evaluator: Evaluator, source: str, pods: str) -> None:
    try:
        evaluator.endpoint(source)
    except UnknownEndpoint as error:
        try:
            name, port = split_target(source)
        except InputError:
            name, port = source, None
        if port is not None or source.startswith("["):
            raise InputError(f"FROM: {source} has a port or brackets, and FROM takes neither; write {name}") from error
        raise InputError(f"FROM: {error}; write namespace/pod or an address; {_see(pods)}") from error


def _target(text: str, protocol: int) -> tuple[str, int | str | None]:
    try:
        name, port = split_target(text)
    except InputError as error:
        raise InputError(f"TO: {error}") from error
    flow = describe_flow(protocol, None)
    if protocol not in PROTOCOLS.values():
        if port is not None:
            raise InputError(f"TO: {text} names a port, and {flow} has none; write {name}")
        return name, None
    if port is None:
        way = "IPv6 wants '[2001:db8::1]:80'" if ":" in name else f"write {name}:80"
        raise InputError(f"TO: {text} names no port, and {flow} needs one; {way}")
    if isinstance(port, int) and port not in PORTS:
        raise InputError(f"TO: {text}: {port} is not a port; write one from {PORTS[0]} to {PORTS[-1]}")
    return name, port


def _see(pods: str) -> str:
    return f"see the pods there are: {pods}"
