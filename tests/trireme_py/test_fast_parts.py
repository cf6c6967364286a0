"""The parts of the engine in C against independent implementations: hashes, the packet view, checksums, allocations."""

from __future__ import annotations

import json
import random
import re
import subprocess
from hashlib import blake2s
from pathlib import Path
from struct import pack

import pytest

from bench.bench_handshake import build
from tests.harness.mutations import mutations, truncations
from tests.harness.segments import ACK, PSH, SYN, icmp, ip, packed, repaired, tcp, udp
from trireme_py import _fastpath, replay, wire
from trireme_py.datagram_flows import FLOW_NS, HELLO_INTERVAL_NS, HELLOS, WARM_NS, DatagramTables
from trireme_py.endpoint import HALF_OPEN_NS
from trireme_py.errors import BadPacket
from trireme_py.model import DropReason, Protocol, Reason
from trireme_py.packet import has_fast_open, parse_packet_untrusted, tcp_checksum_is_right
from trireme_py.wire import PERSON_ACK, PERSON_CONFIRM, PERSON_RESUME, PERSON_SYN_ACK

SOURCES = Path(__file__).parents[2] / "trireme_py" / "fastpath"
V4 = (packed("10.1.0.2"), 40_000), (packed("10.1.0.3"), 80)
V6 = (packed("fd00:1::2"), 40_000), (packed("fd00:1::3"), 80)
REASONS = list(DropReason)


def test_mac_is_keyed_and_personalised_blake2s() -> None:
    rng = random.Random(1)
    for size in range(260):
        key, data = rng.randbytes(32), rng.randbytes(size)
        for role, person in enumerate((PERSON_SYN_ACK, PERSON_ACK, PERSON_RESUME, PERSON_CONFIRM)):
            assert _fastpath.mac(key, role, data) == blake2s(data, digest_size=16, key=key, person=person).digest()


@pytest.mark.parametrize(
    ("size", "digest"), [(0, "310e0edd47db6f72"), (1, "fd67dc93c539f874"), (15, "e545be4961ca29a1")]
)
def test_siphash_vectors(size: int, digest: str) -> None:
    """From the reference implementation and the appendix of the paper (Aumasson and Bernstein, 2012)."""
    assert _fastpath.siphash(bytes(range(16)), bytes(range(size))) == int.from_bytes(bytes.fromhex(digest), "little")


def packets() -> list[bytes]:
    """One of each kind that is parsed in its own way."""
    fast_open = b"\x02\x04\x05\xb4\x22\x02\x01\x01", b"\x02\x04\x05\xb4\xfe\x04\xf9\x89", b"\x01\x22\x00\x00"
    made = []
    for one, other in (V4, V6):
        made += [tcp(one, other, 7, 0, SYN, options=options) for options in (b"", *fast_open)]
        made += [tcp(one, other, 7, 9, ACK | PSH, bytes(range(size))) for size in (0, 1, 99)]
        made += [udp(one, other, b"question"), ip(one[0], other[0], 132, bytes(12)), ip(one[0], other[0], 99, b"")]
        made.append(icmp(one[0], other[0], 3 if len(one[0]) == 4 else 1, body=made[0]))
    segment = tcp(*V6, 7, 0, SYN)[40:]
    for chain in (
        pack("!BB6x", 60, 0) + pack("!BB6x", 43, 0) + pack("!BB6x", 44, 0) + pack("!BBHI", 6, 0, 0, 7),
        pack("!BB6x", 6, 0),
        pack("!BB6x", 44, 0) + pack("!BBHI", 6, 0, 8, 7),
        pack("!BB14x", 51, 1) + pack("!BB10x", 6, 1),
        pack("!BB6x", 0, 0) * 9 + pack("!BB6x", 6, 0),
    ):
        made.append(ip(V6[0][0], V6[1][0], 0, chain + segment))
    options = tcp(*V4, 7, 0, SYN, b"data")
    made.append(repaired(b"\x46" + options[1:20] + b"\x01\x01\x01\x00" + options[20:]))
    return made


def python_s_view(data: bytes) -> object:
    try:
        packet = parse_packet_untrusted(data)
    except BadPacket as bad:
        return REASONS.index(bad.reason)
    tcp_of_it = packet.protocol == Protocol.TCP
    return (
        len(packet.data), packet.length, packet.version, packet.protocol, packet.source, packet.destination,
        packet.transport, packet.source_port or 0, packet.destination_port or 0, packet.sequence,
        packet.acknowledgement, packet.flags, packet.body, tcp_of_it and tcp_checksum_is_right(packet),
        tcp_of_it and has_fast_open(packet),
    )  # fmt: skip


def test_both_parsers_see_the_same_in_any_octets() -> None:
    seen = set()
    for number, data in enumerate(packets()):
        variants = [data, data + b"padding", *truncations(data)]
        for mutated in mutations(data, 1500, number):
            variants += [mutated, repaired(mutated)]
        for variant in variants:
            view = python_s_view(variant)
            c = _fastpath.parse(variant)
            if isinstance(c, tuple):
                c = (*c[:-2], bool(c[-2]), bool(c[-1]))
            # An IPv6 address that stands for an IPv4 one is shown as that; the engine answers no such packet.
            if isinstance(view, tuple) and view[2] == 6 and any(map(is_mapped, view[4:6])):
                continue
            assert c == view, variant.hex()
            seen.add(view if isinstance(view, int) else "packet")
    assert seen == {REASONS.index(DropReason.MALFORMED_PACKET), REASONS.index(DropReason.FRAGMENT), "packet"}


def is_mapped(address: bytes) -> bool:
    return address.startswith(bytes(10) + b"\xff\xff")


def test_checksums_left_to_the_network_card_are_filled_in() -> None:
    for data in packets():
        whole = parse_packet_untrusted(data) if isinstance(_fastpath.parse(data), tuple) else None
        if whole is None or whole.protocol not in (Protocol.TCP, Protocol.UDP):
            assert _fastpath.complete_sum(data) == data
            continue
        at = whole.transport + (16 if whole.protocol == Protocol.TCP else 6)
        assert _fastpath.complete_sum(data[:at] + b"\x12\x34" + data[at + 2 :]) == data


def test_constants_are_the_python_core_s() -> None:
    """Numbers that both sides have to agree on without sharing a file."""
    engine = (SOURCES / "engine.h").read_text(encoding="utf-8")
    body = re.search(r"enum tr_reason \{(.*?)\};", engine, re.DOTALL)
    assert body
    assert re.findall(r"TR_(\w+),", body[1]) == [reason.name for reason in DropReason]
    assert f"TR_MAX_ASSERTION = {wire.MAX_ASSERTION}," in engine
    assert f"TR_PATH_MTU = {wire.PATH_MTU}," in engine
    assert f"TR_VERDICT_REASONS = {len(Reason)}, " in engine
    state = (SOURCES / "state.h").read_text(encoding="utf-8")
    assert f"TR_HALF_OPEN_NS (UINT64_C({HALF_OPEN_NS // 10**9}) * 1000000000)" in state
    packet = (SOURCES / "packet.h").read_text(encoding="utf-8")
    assert f"TR_MAX_IPV6_EXTENSION_HEADERS = {wire.MAX_IPV6_EXTENSION_HEADERS} " in packet
    message = (SOURCES / "message.h").read_text(encoding="utf-8")
    sizes = f"TR_SYN_FIXED = {wire.SYN.size}, TR_SYN_ACK_FIXED = {wire.SYN_ACK.size}, TR_SYN_ACK_MAC = "
    assert f"{sizes}{wire.SYN_ACK_MAC_OFFSET}, TR_PROOF = {wire.ACK.size} " in message
    confirm = f"TR_CONFIRM_COUNTER = {wire.CONFIRM_COUNTER_OFFSET}, TR_CONFIRM_ENDS = {wire.CONFIRM_ENDS_OFFSET}, "
    sizes = f"TR_RESUME_FIXED = {wire.RESUME.size}, TR_RESUME_MAC = {wire.RESUME_MAC_OFFSET}, TR_CONFIRM = "
    assert f"{sizes}{wire.CONFIRM.size}, {confirm}TR_CONFIRM_MAC = {wire.CONFIRM_MAC_OFFSET} " in message
    assert f"TR_ASKS_ANSWER = {wire.ASKS_ANSWER} " in message
    for kind in re.findall(r"TR_MESSAGE_(\w+) = (\d)", message):
        assert wire.MessageType[kind[0]] == int(kind[1])
    assert f"TR_WINDOW = {replay.WINDOW} " in state
    for name, nanoseconds in (
        ("FLOW", FLOW_NS),
        ("TICKET", WARM_NS),
        ("WARM", DatagramTables().warm.ttl_ns),
        ("RESUMING", HELLO_INTERVAL_NS * HELLOS),
    ):
        assert f"#define TR_{name}_MS {nanoseconds // 10**6}\n" in state
    surplus = (SOURCES / "surplus.c").read_text(encoding="utf-8")
    option = f"KIND = {wire.UDP_OPTION_EXPERIMENT}, LONG = {wire.UDP_OPTION_LONG}, EXPERIMENT = {wire.EXPERIMENT_ID:#x}"
    assert f"OPTION = {wire.UDP_OPTION.size}, {option}, LEAST_MESSAGE = {wire.HEADER.size}, SEAL = 0x5a5a " in surplus


def test_a_handshake_allocates_nothing(tmp_path: Path) -> None:
    """Counted by a wrapper around malloc, and libcrypto's own; the program is the benchmark."""
    said = json.loads(subprocess.run([build(tmp_path), "2000"], capture_output=True, check=True).stdout)
    assert (said["handshakes"], said["allocations"]) == (2000, 0)
