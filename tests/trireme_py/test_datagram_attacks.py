"""Ways to be taken for somebody else on UDP, to read what is not meant for one, or to be used as an amplifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from tests.harness.mutations import bit_flips, mutations
from tests.harness.resolver import PORT, Resolver, meddle, serve
from tests.harness.segments import packed, udp
from tests.harness.shop import CLIENT
from tests.harness.standin_policy import only_from, only_to
from tests.harness.surplus import is_udp, is_valid, kind_of_datagram, read_udp, translated
from trireme_py import wire
from trireme_py.errors import BadPacket
from trireme_py.model import DropReason
from trireme_py.packet import parse_packet_untrusted
from trireme_py.surplus import Datagram, read_datagram_untrusted, with_message

MESSAGES = ("HELLO", "ANSWER", "PROOF", "RESUME", "CONFIRM")
SERVICE = packed("10.96.0.10")


def opened(data: bytes) -> Datagram:
    return read_datagram_untrusted(parse_packet_untrusted(data))


def rebuilt(data: bytes, *, payload: bytes | None = None, message: bytes | None = None) -> bytes:
    """A captured datagram with something else in it and its sums right, sealed or not as it was."""
    one = opened(data)
    assert one.message is not None
    return with_message(
        parse_packet_untrusted(data), one.payload if payload is None else payload, message or one.message,
        sealed=one.sealed,
    )  # fmt: skip


def warm(isolated: str = "both") -> Resolver:
    """A pair that has proved itself, with one more flow from RESUME on behind it."""
    scene = Resolver(isolated)
    assert scene.ask(b"cold") >= 0
    assert scene.ask(b"warm", sport=40_001) >= 0
    return scene


@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize("isolated", ["client", "server", "both"])
@pytest.mark.parametrize("after", [0, 5, 60])
def test_nothing_that_is_played_again_is_delivered_a_second_time(isolated: str, kind: str, after: int) -> None:
    """At once, in the middle of the window, and long after it."""
    scene = warm(isolated)
    assert scene.ask(b"on", sport=40_001) >= 0
    scene.world.run(after)
    everything = [data for data in scene.world.captured if kind_of_datagram(data) == kind]
    assert everything or kind in ("HELLO", "ANSWER")
    before = (len(scene.server.heard), len(scene.client.heard))
    for data in everything:
        scene.world.inject(data)
        scene.world.run(2)
    fresh = [one.payload for one in scene.server.heard[before[0] :]]
    if kind in ("HELLO", "PROOF") and after < 10:
        # They are for the flow, and whoever is on the path may repeat a datagram of an accepted flow anyway.
        assert len(fresh) <= len(everything)
    else:
        assert fresh == []
    assert scene.client.heard[before[1] :] == [] or kind == "CONFIRM" or fresh
    assert scene.server.held == {}
    assert scene.ask(b"honest", sport=40_009) >= 0


def test_a_resume_is_taken_once() -> None:
    scene = warm()
    resume = scene.captured("RESUME")
    for _ in range(5):
        scene.world.inject(resume)
    scene.world.run(1)
    assert scene.server.drops[DropReason.REPLAYED] == 5
    assert scene.asked() == [b"cold", b"warm"]


def test_a_resume_from_another_port_is_the_same_resume() -> None:
    scene = warm()
    here = scene.client.address()
    scene.world.inject(translated(scene.captured("RESUME"), source=(here, 50_000)))
    scene.world.run(1)
    assert scene.server.drops[DropReason.REPLAYED] == 1
    assert scene.asked() == [b"cold", b"warm"]


def test_a_resume_that_never_arrived_may_come_late_and_only_once() -> None:
    scene = warm()
    kept: list[bytes] = []

    def keep(data: bytes) -> Iterable[bytes]:
        kept.append(data)
        return ()

    meddle(scene.world, "RESUME", keep)
    scene.client.say(scene.server, b"delayed", sport=40_002)
    scene.world.run(3)
    for _ in range(3):
        scene.world.inject(kept[0])
        scene.world.run(1)
    assert scene.asked().count(b"delayed") == 1
    scene.server.heard.clear()
    meddle(scene.world, "RESUME", keep)
    scene.ask(b"warm again", sport=40_003)
    scene.client.say(scene.server, b"too late", sport=40_004)
    meddle(scene.world, "RESUME", keep)
    scene.client.say(scene.server, b"much too late", sport=40_005)
    scene.world.run(60)
    scene.world.inject(kept[-1])
    scene.world.run(5)
    assert b"much too late" not in scene.asked()


@pytest.mark.parametrize("isolated", ["client", "server", "both"])
def test_a_resume_carries_its_own_payload_and_no_other(isolated: str) -> None:
    scene = warm(isolated)
    for altered in (b"alter", b"ques", b"question\0", b""):
        meddle(scene.world, "RESUME", lambda data, altered=altered: (rebuilt(data, payload=altered),))  # type: ignore[misc]
        scene.client.say(scene.server, b"question", sport=40_002)
        scene.world.run(0.1)
    assert scene.server.drops[DropReason.BAD_MAC] == 4
    assert scene.asked() == [b"cold", b"warm"]
    assert scene.ask(sport=40_003) >= 0


SIZES = {"HELLO": 44, "ANSWER": 96, "PROOF": 28, "RESUME": 96, "CONFIRM": 88}


@pytest.mark.parametrize("kind", MESSAGES)
def test_flipped_bits_of_a_message(kind: str) -> None:
    """The sums are made right again. What arrives is what was sent, once at most, and an answer whose confirmation is
    not right never arrives."""
    scene = warm()
    scene.ask(b"on", sport=40_001)

    def damage(position: int, data: bytes) -> Iterable[bytes]:
        message = bytearray(opened(data).message or b"")
        message[position // 8] ^= 1 << position % 8
        return (rebuilt(data, message=bytes(message)),)

    recovered = 0
    positions = range(0, SIZES[kind] * 8, 7)
    for sport, position in enumerate(positions, 41_000):
        if kind in ("HELLO", "ANSWER", "PROOF"):
            scene.client.endpoint.datagrams.warm.clear()
        elif not scene.client.endpoint.datagrams.warm:
            scene.ask(b"warm", sport=sport - 20_000)
        meddle(scene.world, kind, lambda data, position=position: damage(position, data))  # type: ignore[misc]
        before = (len(scene.server.heard), len(scene.client.heard))
        scene.client.say(scene.server, b"victim", sport=sport)
        scene.world.run(0.3)
        heard = [one.payload for one in scene.server.heard[before[0] :]]
        assert heard in ([b"victim"], [])
        answered = [one.payload for one in scene.client.heard[before[1] :]]
        assert answered in ([b"re:victim"], [])
        recovered += bool(answered)
        if kind == "CONFIRM":
            assert not answered
        if kind in ("HELLO", "ANSWER"):
            assert answered  # they are repeated
    refused = scene.client.drops + scene.server.drops
    bad = sum(refused[reason] for reason in (DropReason.BAD_MAC, DropReason.MALFORMED_MESSAGE, DropReason.VERSION))
    assert bad >= len(positions) // 2 if kind in ("PROOF", "CONFIRM", "RESUME") else bad > 0
    if kind == "PROOF":  # its datagram went with it, but for a message that was none of ours any more
        assert recovered <= len(range(0, 32, 7))
    assert scene.ask(b"honest", sport=39_000) >= 0


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_that_is_sent_back_to_its_sender(kind: str) -> None:
    scene = warm()
    scene.ask(b"on", sport=40_001)
    before = (len(scene.client.heard), len(scene.server.heard))
    for data in [data for data in scene.world.captured if kind_of_datagram(data) == kind]:
        one = read_udp(data)
        scene.world.inject(translated(data, (one.destination, one.dport), (one.source, one.sport)))
    scene.world.run(3)
    assert (len(scene.client.heard), len(scene.server.heard)) == before
    assert scene.ask(b"honest", sport=40_009) >= 0


def test_a_forged_answer_and_a_forged_confirmation() -> None:
    """Mallory, genuine as herself, answers in the server's name: with her own assertion, and with the server's."""
    scene = Resolver("both")
    mallory = scene.mallory(only_from(CLIENT))
    serve(mallory)
    scene.client.set_policy(only_to(mallory.name))
    scene.client.say(mallory, b"to mallory")
    scene.world.run(1)
    hers = opened(scene.captured("ANSWER")).message
    scene.client.set_policy(only_to(scene.server.name))
    assert hers is not None
    meddle(scene.world, "ANSWER", lambda data: (rebuilt(data, message=hers),))
    assert scene.ask(b"to the server", sport=40_001, seconds=0.06) == -1
    assert scene.client.drops[DropReason.BAD_MAC] == 1
    assert scene.asked() == []
    scene.world.run(1)
    assert scene.ask(b"cold", sport=40_002) >= 0
    for number in range(50):
        forged = bytes(wire.CONFIRM.size - 12 - number) + bytes((number,)) * number
        header = (opened(scene.captured("ANSWER")).message or b"")[:5] + b"\x08\x01\0\0\x58\0\0"
        meddle(scene.world, "CONFIRM", lambda data, m=header + forged: (rebuilt(data, message=m),))  # type: ignore[misc]
        scene.client.heard.clear()
        scene.client.say(scene.server, b"warm", sport=40_100 + number)
        scene.world.run(0.05)
        assert scene.client.heard == []


def test_a_proof_of_another_flow() -> None:
    """One run of the client proves one flow: neither the proof of another port nor that of an earlier run will do."""
    scene = warm()
    scene.ask(b"on", sport=40_001)
    proofs = [opened(data).message for data in scene.world.captured if kind_of_datagram(data) == "PROOF"]
    assert len(proofs) == 2
    for number, proof in enumerate(proofs):
        scene.client.endpoint.datagrams.warm.clear()
        meddle(scene.world, "PROOF", lambda data, proof=proof: (rebuilt(data, message=proof),))  # type: ignore[misc]
        count = len(scene.server.heard)
        scene.client.say(scene.server, b"victim", sport=40_010 + number)
        scene.world.run(0.05)
        assert len(scene.server.heard) == count
    assert scene.server.drops[DropReason.BAD_MAC] == 2


def test_one_run_of_the_client_proves_one_flow_of_the_server() -> None:
    """Somebody on the path copies a HELLO under another port and hands its ANSWER to the client."""
    scene = Resolver("both")
    here = scene.client.address()
    answers: list[bytes] = []

    def on_wire(data: bytes) -> Iterable[bytes]:
        kind = kind_of_datagram(data)
        if kind == "HELLO":
            return (data, translated(data, source=(here, 50_000)))
        if kind == "ANSWER" and read_udp(data).dport == 50_000:
            answers.append(translated(data, destination=(here, 40_000)))
            return ()
        return (data,)

    scene.world.on_wire = on_wire
    assert scene.ask(b"question") >= 0
    proofs = scene.kinds().count("PROOF")
    for answer in answers:
        scene.world.inject(answer)
    scene.world.run(0.5)
    assert scene.kinds().count("PROOF") == proofs
    assert scene.client.drops[DropReason.UNEXPECTED] >= 1
    # and the copy in front: the client proves for that one, and the flow of its own port is not proven with it
    proof = scene.captured("PROOF")
    scene.world.inject(translated(proof, source=(here, 50_000)))
    scene.world.run(1)
    assert scene.asked() == [b"question"]
    assert scene.server.held == {}


@pytest.mark.parametrize("isolated", ["client", "server", "both"])
def test_a_relay_that_answers_for_the_server(isolated: str) -> None:
    """Mallory takes what the client sends her, sends it on to the server as her own, and hands back the answers."""
    scene = Resolver(isolated)
    mallory = scene.mallory(agent=False)
    here, there, hers = scene.client.address(), scene.server.address(), mallory.address()

    def on_wire(data: bytes) -> Iterable[bytes]:
        one = read_udp(data)
        if one.destination == hers and one.source == here:
            return (translated(data, (hers, one.sport), (there, one.dport)),)
        if one.destination == hers and one.source == there:
            return (translated(data, (hers, one.sport), (here, one.dport)),)
        return (data,)

    scene.world.on_wire = on_wire
    for sport in (40_000, 40_001):
        scene.client.say(hers, b"for mallory's eyes", sport=sport)
        scene.world.run(1)
    assert scene.asked() == []
    assert scene.answered() == []
    if isolated != "server":
        assert scene.client.drops[DropReason.RELAYED] > 0
        assert mallory.heard == []
        # And with a ticket: what was proven with the server serves nobody else.
    scene.ask(b"cold", sport=40_002)
    scene.client.say(hers, b"for mallory's eyes", sport=40_003)
    scene.world.run(1)
    assert scene.asked() == [b"cold"]


@pytest.mark.parametrize("isolated", ["client", "both"])
def test_a_relay_behind_a_service(isolated: str) -> None:
    """The Service leads to the server, then to Mallory, who passes on what she gets. The client's node sees where its
    flow leads, and refuses; what Mallory hands on with RESUME comes from her address, which has no ticket."""
    scene = Resolver(isolated)
    mallory = scene.mallory(agent=False)
    there, hers = scene.server.address(), mallory.address()
    scene.world.router.services[SERVICE, PORT] = [(there, PORT)]
    scene.client.say(SERVICE, b"one")
    scene.world.run(1)
    assert scene.answered() == [b"re:one"]
    scene.world.router.services[SERVICE, PORT] = [(hers, PORT)]

    def relay(data: bytes) -> None:
        one = read_udp(data)
        if one.source == there:
            scene.world.inject(translated(data, (hers, PORT), (scene.client.address(), one.dport)))
        else:
            scene.world.inject(translated(data, (hers, one.sport), (there, PORT)))

    mallory.deliver = relay  # type: ignore[method-assign]
    for sport in range(40_001, 40_010):
        scene.client.say(SERVICE, b"two", sport=sport)
        scene.world.run(1)
    assert scene.asked() == [b"one"]
    assert scene.answered() == [b"re:one"]
    assert scene.client.drops[DropReason.RELAYED] > 0


def test_octets_told_to_an_address_that_has_proved_nothing() -> None:
    """Whatever it sends, and however often: never more than came from it, flow by flow and all together."""
    scene = warm("server")
    scene.ask(b"on", sport=40_001)
    hello, resume, proof = (scene.captured(kind) for kind in ("HELLO", "RESUME", "PROOF"))
    heard: Counter[tuple[bytes, int]] = Counter()
    told: Counter[tuple[bytes, int]] = Counter()
    here, there = scene.client.address(), scene.server.address()
    scene.client.arrive = lambda data: None  # type: ignore[method-assign]  # the victim is not the sender

    def on_wire(data: bytes) -> Iterable[bytes]:
        one = read_udp(data)
        if one.source == there:
            told[one.destination, one.dport] += len(data)
        return (data,)

    scene.world.on_wire = on_wire

    def attack(data: bytes) -> None:
        if is_udp(data) and is_valid(data):
            one = read_udp(data)
            heard[one.source, one.sport] += len(data)
            scene.server.arrive(data)
            scene.world.run(0.01)
            assert told[one.source, one.sport] <= heard[one.source, one.sport]

    scene.world.run(20)
    for number, original in enumerate((hello, resume, proof)):
        for sport in range(41_000 + 1_000 * number, 41_040 + 1_000 * number):
            for _ in range(6):
                attack(translated(original, source=(here, sport)))
                attack(udp((here, sport), (there, PORT), b"x" * (sport % 40)))
                attack(rebuilt(translated(original, source=(here, sport)), payload=b""))
    assert sum(told.values()) > 0
    assert sum(told.values()) <= sum(heard.values())
    for mutated in mutations(opened(hello).message or b"", 500, seed=2):
        attack(rebuilt(translated(hello, source=(here, 45_000)), message=mutated))


@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize("isolated", ["none", "client", "server", "both"])
def test_a_pod_does_not_speak_for_its_agent(isolated: str, kind: str) -> None:
    """Not even by repeating what its agent has sent from its own address."""
    source = warm("both")
    source.ask(b"on", sport=40_001)
    data = source.captured(kind)
    scene = Resolver(isolated)
    pod = scene.client if read_udp(data).source == scene.client.address() else scene.server
    pod.leave(data)
    assert pod.drops == {DropReason.UNEXPECTED: 1}
    assert not scene.world.captured


def test_a_pod_does_not_get_data_out_in_a_message() -> None:
    """On a flow that is accepted, too: a datagram with a surplus always comes to the agent."""
    scene = Resolver("none")
    for _ in range(3):
        scene.ask()
    count = len(scene.world.captured)
    hello = Resolver("client")
    hello.client.say(hello.server)
    scene.client.leave(hello.captured("HELLO"))
    assert len(scene.world.captured) == count
    assert scene.client.drops[DropReason.UNEXPECTED] == 1


def test_malformed_messages_meet_both_ends() -> None:
    """Nothing is delivered to an isolated pod that nobody has proven, nothing stays behind, and honest peers go on."""
    scene = warm()
    scene.ask(b"on", sport=40_001)
    scene.world.run(40)
    for pod in (scene.client, scene.server):
        pod.marks.accepted.clear()
        pod.forget_accepted()  # an accepted flow's own datagrams need no proof any more
    heard = len(scene.server.heard)
    scene.world.on_wire = lambda data: ()  # answers to it go nowhere
    originals = [next(d for d in scene.world.captured if kind_of_datagram(d) == kind) for kind in MESSAGES]
    for number, data in enumerate(originals):
        pod = scene.server if read_udp(data).source == scene.client.address() else scene.client
        genuine = opened(data).message or b""
        for mutated in mutations(genuine, 4_000, seed=number):
            try:
                bad = rebuilt(data, message=mutated, payload=b"evil")
            except BadPacket:
                continue
            if len(bad) < 65_000:
                pod.arrive(bad)
        scene.world.run(2)
    scene.world.on_wire = lambda data: (data,)
    scene.world.run(40)
    assert scene.server.heard[heard:] == []
    assert scene.client.held == scene.server.held == {}
    assert scene.ask(b"honest", sport=40_009) >= 0


def test_an_again_from_anybody_costs_a_few_hellos() -> None:
    scene = Resolver("client", server_agent=False)
    scene.client.say(scene.server, b"secret")
    again = wire.HEADER.pack(wire.MAGIC, 1, 9, 1, 0, 12, 0)
    back = udp((scene.server.address(), PORT), (scene.client.address(), 40_000))
    for _ in range(50):
        scene.world.inject(with_message(parse_packet_untrusted(back), b"", again, sealed=True))
    scene.world.run(2)
    assert scene.kinds().count("HELLO") <= 4
    assert scene.server.heard == []


def test_bits_of_the_ticket_name_no_other_ticket() -> None:
    scene = warm()
    resume = opened(scene.captured("RESUME")).message or b""
    count = len(scene.asked())
    for flipped in bit_flips(resume[12:28]):
        scene.world.inject(rebuilt(scene.captured("RESUME"), message=resume[:12] + flipped + resume[28:]))
        scene.world.run(0.001)
    scene.world.run(3)
    assert len(scene.asked()) == count
    assert scene.server.held == {}
