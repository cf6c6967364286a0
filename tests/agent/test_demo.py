"""The demo's parts that need no kernel; tests/kernel/test_demo.py plays it."""

from __future__ import annotations

import io
import re
import threading
from datetime import date, timedelta
from ipaddress import ip_address

import msgspec
import pytest
import yaml
from rich.console import Console
from scapy.layers.dns import DNS, DNSQR

from agent.demo import resolver, story
from agent.demo.beers import BEERS, beer_of_the_day
from agent.demo.ledger import Ask, Ledger, Seat
from agent.demo.screen import Screen
from agent.demo.story import Expectations
from agent.flowlog import EndRecord, FlowRecord, PeerRecord

APPROVED = Seat(story.APPROVED, 4)
OTHER = Seat(story.OTHER, 4)
QUERY = Seat(story.OTHER, 4, resolves=True)
BEER = "Rauchbier (Bamberg)"


def make_ledger() -> Ledger:
    return Ledger(Screen(plain=True, console=Console(file=io.StringIO())))


def ask(ledger: Ledger, seat: Seat, *beers: str) -> None:
    for beer in beers:
        ledger.asked(Ask(seat, beer, "" if beer else "timed out"))


def verdict(
    guest: str = story.OTHER,
    *,
    allow: bool = False,
    reason: str = "no_match",
    policy: str = "",
    rule: int | None = None,
    nearest: str = "",
    proven: bool = True,
    source: str = "10.77.1.1",
) -> FlowRecord:
    return FlowRecord(
        v=1,
        time="2026-11-22T12:00:00.000000Z",
        pod="beer/tap",
        direction="ingress",
        verdict="allow" if allow else "deny",
        reason=reason,
        protocol="TCP",
        source=EndRecord(source, 40000),
        destination=EndRecord("10.77.1.2", 8080),
        policy=policy,
        rule=rule,
        nearest=nearest,
        peer=PeerRecord("beer", guest, guest, {}, proven),
    )


def test_every_day_has_its_beer_and_a_month_repeats_none() -> None:
    start = date(2026, 1, 1)
    days = [beer_of_the_day(start + timedelta(days=n)) for n in range(len(BEERS))]
    assert len(set(days)) == len(BEERS) >= 31
    assert days[0] == beer_of_the_day(start)


def test_what_is_applied_are_the_objects_it_says() -> None:
    deny, allow = yaml.safe_load_all(story.POLICIES)
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    wanted = allow["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    assert wanted.items() <= story.LABELS[story.APPROVED].items()
    assert not wanted.items() <= story.LABELS[story.OTHER].items()
    assert f"NetworkPolicy/{allow['metadata']['namespace']}/{allow['metadata']['name']}" == story.POLICY
    egress = yaml.safe_load(story.EGRESS_POLICIES)
    first, second = (rule["to"][0]["podSelector"]["matchLabels"] for rule in egress["spec"]["egress"])
    assert (first, second) == (story.LABELS[story.RESOLVER], story.LABELS[story.TAP])
    assert f"NetworkPolicy/{egress['metadata']['namespace']}/{egress['metadata']['name']}" == story.EGRESS_POLICY
    assert egress["spec"]["podSelector"]["matchLabels"].items() <= story.LABELS[story.OTHER].items()
    assert yaml.safe_load(story.namespace_yaml())["metadata"]["name"] == story.NAMESPACE


def test_drinking_is_beers_in_a_row_after_the_act_began() -> None:
    ledger = make_ledger()
    ask(ledger, APPROVED, BEER, BEER, BEER)
    expectation = Expectations(ledger, ledger.mark()).drink([APPROVED])
    assert not expectation.holds()
    ask(ledger, APPROVED, BEER, BEER, "", BEER, BEER)
    assert not expectation.holds()
    ask(ledger, OTHER, BEER, BEER, BEER)
    assert not expectation.holds()
    ask(ledger, APPROVED, BEER)
    assert expectation.holds()


def test_going_dry_is_the_last_visits_without_a_beer() -> None:
    ledger = make_ledger()
    expectation = Expectations(ledger, ledger.mark()).go_dry([OTHER])
    assert not expectation.holds()
    ask(ledger, OTHER, BEER, "", BEER, "")
    assert not expectation.holds()
    ask(ledger, OTHER, "")
    assert expectation.holds()


def test_one_request_at_the_tap_is_one_too_many() -> None:
    """The guest may have seen nothing although its request arrived: that is not what a policy promises."""
    ledger = make_ledger()
    expectation = Expectations(ledger, ledger.mark()).never_reach_the_tap([OTHER])
    ask(ledger, OTHER, "", "")
    assert expectation.holds()
    ledger.served(OTHER)
    assert not expectation.holds()


@pytest.mark.parametrize(
    ("record", "right"),
    [
        (verdict(allow=True, reason="no_isolation"), story.allowed_without_policy),
        (verdict(allow=True, reason="policy", policy=story.POLICY, rule=0), story.allowed_by_rule),
        (verdict(nearest="approved-guests rule 1 needs role=approved (has role=regular)"), story.denied_for_its_label),
    ],
)
def test_each_act_accepts_its_own_verdict_only(record: FlowRecord, right: object) -> None:
    judges = (story.allowed_without_policy, story.allowed_by_rule, story.denied_for_its_label)
    assert [judge for judge in judges if judge(record)] == [right]


def test_an_unproven_identity_is_never_a_right_allow() -> None:
    assert not story.allowed_without_policy(verdict(allow=True, reason="no_isolation", proven=False))
    assert not story.allowed_by_rule(verdict(allow=True, reason="policy", policy=story.POLICY, rule=0, proven=False))


def test_a_verdict_counts_for_its_guest_and_family_only() -> None:
    records = [verdict(), verdict(story.APPROVED), verdict(source="fd77:1::1")]
    assert story.verdicts_about(records, OTHER) == records[:1]
    assert story.verdicts_about(records, Seat(story.OTHER, 6)) == records[2:]


def query_verdict(server: str, *, allow: bool, **changes: object) -> FlowRecord:
    """What the guest's own agent says about a query that ``server`` would have got."""
    record = FlowRecord(
        v=1,
        time="2026-11-22T12:00:00.000000Z",
        pod="beer/other",
        direction="egress",
        verdict="allow" if allow else "deny",
        reason="policy" if allow else "no_match",
        protocol="UDP",
        source=EndRecord("10.77.2.2", 40000),
        destination=EndRecord("10.78.0.2", 53),
        policy=story.EGRESS_POLICY if allow else "",
        rule=0 if allow else None,
        nearest="" if allow else "NetworkPolicy/beer/guests-may-go egress[0] to[0] needs app=resolver",
        peer=PeerRecord("beer", server, server, {}, True),
    )
    return msgspec.structs.replace(record, **changes)


def test_a_query_is_right_only_with_the_resolver_and_wrong_only_with_the_impostor() -> None:
    right = query_verdict(story.RESOLVER, allow=True)
    wrong = query_verdict(story.IMPOSTOR, allow=False)
    judges = (story.allowed_as_resolver, story.denied_as_impostor)
    assert [[judge(record) for judge in judges] for record in (right, wrong)] == [[True, False], [False, True]]
    unproven = PeerRecord("beer", story.RESOLVER, story.RESOLVER, {}, False)
    for changes in ({"policy": story.POLICY}, {"rule": 1}, {"peer": unproven}, {"peer": None}):
        assert not story.allowed_as_resolver(query_verdict(story.RESOLVER, allow=True, **changes))
    assert not story.denied_as_impostor(query_verdict(story.IMPOSTOR, allow=False, reason="unidentified"))
    assert not story.denied_as_impostor(query_verdict(story.RESOLVER, allow=False))


def test_a_query_is_judged_by_the_guest_s_own_agent() -> None:
    records = [
        query_verdict(story.RESOLVER, allow=True),
        query_verdict(story.RESOLVER, allow=True, pod="beer/resolver", direction="ingress"),
        query_verdict(story.RESOLVER, allow=True, protocol="TCP"),
        query_verdict(story.RESOLVER, allow=True, destination=EndRecord("fd78::2", 53)),
        verdict(),
    ]
    assert story.verdicts_about(records, QUERY) == records[:1]


def test_one_query_at_the_impostor_is_one_too_many() -> None:
    ledger = make_ledger()
    ledger.resolved(story.IMPOSTOR)
    expectation = Expectations(ledger, ledger.mark()).never_reach(story.IMPOSTOR, [QUERY])
    ask(ledger, QUERY, "", "")
    ledger.resolved(story.RESOLVER)
    assert expectation.holds()
    ledger.resolved(story.IMPOSTOR)
    assert not expectation.holds()


@pytest.mark.parametrize(("family", "text"), [(4, "10.78.0.1"), (6, "fd78::1")])
def test_the_resolver_knows_the_tap_and_nothing_else(family: int, text: str) -> None:
    addresses: dict[int, resolver.Address] = {family: ip_address(text)}
    query = resolver.encode_query(7, family)
    answer = resolver.encode_answer(query, addresses)
    assert resolver.decode_answer(answer, 7, family) == addresses[family]
    read = DNS(answer)
    assert (read.qd[0].qname, read.an[0].rdata, read.rcode) == (b"tap.beer.example.", text, 0)
    for number, other in ((8, family), (7, 10 - family)):
        with pytest.raises(ValueError, match="not the answer"):
            resolver.decode_answer(answer, number, other)
    unknown = bytes(DNS(id=7, rd=1, qd=DNSQR(qname="bar.beer.example", qtype=1)))
    assert DNS(resolver.encode_answer(unknown, addresses)).rcode == 3
    for nonsense in (b"", query[:11], answer, bytes(600)):
        with pytest.raises(ValueError, match="not a query"):
            resolver.encode_answer(nonsense, addresses)


def test_waiting_ends_with_the_event_that_was_waited_for() -> None:
    ledger = make_ledger()
    expectation = Expectations(ledger, ledger.mark()).drink([OTHER])
    writer = threading.Thread(target=ask, args=(ledger, OTHER, BEER, BEER, BEER))
    writer.start()
    assert ledger.wait_until(expectation.holds, 60)
    writer.join()


def test_waiting_ends_at_once_when_an_agent_died() -> None:
    ledger = make_ledger()
    ledger.broke("the agent of node server ended with exit code 1")
    assert not ledger.wait_until(lambda: False, 3600)
    assert ledger.broken == ("the agent of node server ended with exit code 1",)


def test_plain_output_is_lines_that_say_what_changed() -> None:
    out = io.StringIO()
    screen = Screen(plain=True, console=Console(file=out, width=200))
    with screen:
        screen.act(2, "A policy [for approved guests]")
        screen.applied("written to policies.yaml", story.POLICIES)
        for beer in (BEER, BEER, "", ""):
            screen.asked(Ask(OTHER, beer, "" if beer else "timed out"))
        screen.verdict(verdict(nearest="approved-guests rule 1 needs role=approved (has role=regular)"))
        screen.checked("the other goes dry", True)
        screen.checked("the other drinks", False)
    text = out.getvalue()
    assert "\x1b" not in text
    assert "Act 2  A policy [for approved guests]" in text
    assert text.count(f"drinks {BEER}") == text.count("gets nothing: timed out") == 1
    assert "podSelector: {matchLabels: {role: approved}}" in text
    assert "needs role=approved (has role=regular)" in text
    assert re.search(r"ok +the other goes dry", text)
    assert re.search(r"FAILED +the other drinks", text)


def test_a_terminal_shows_every_guest_while_it_is_live() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    with Screen(plain=False, console=console) as screen:
        screen.asked(Ask(APPROVED, BEER))
        screen.asked(Ask(OTHER, "", "timed out"))
        screen.judged(verdict())
        console.print(screen._table())
    text = out.getvalue()
    assert re.search(rf"approved +IPv4 +{re.escape(BEER)} +1 ", text)
    assert re.search(r"other +IPv4 +dry +1 ", text)
    assert "DENY" in text
