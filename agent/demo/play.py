"""The six acts, once for each mode: apply, wait for what must happen, show why, go on."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.demo import story
from agent.demo.ledger import Ledger, Mark, Seat
from agent.demo.screen import Screen
from agent.demo.stage import CLIENT_NODE, POLICY_FILE, SERVER_NODE, Stage
from agent.demo.story import Expectation, Expectations
from trireme_py.errors import TriremeError

ACTS: Final = 6
ACT_TIMEOUT_S: Final = 20.0
"""An act takes two seconds; ten times that is a machine with other things to do."""
MODE_NAMES: Final = {
    "psk": "identities by a pre-shared key (trireme key new)",
    "pki": "identities by node certificates (trireme ca init, node request, ca sign)",
}


LINGER_VISITS: Final = 25
"""Visits of each drinking guest after which an act on a terminal makes room for the next: some four seconds."""


class PlayFailed(TriremeError):
    """Something that should have happened did not."""


@dataclass(frozen=True, slots=True)
class ActResult:
    """One row of the closing table."""

    mode: str
    title: str
    passed: bool
    seconds: float
    beers: str
    """Beers of all visits, for each guest."""


class Play:
    """Runs the acts of one mode on a stage that stands."""

    def __init__(self, mode: str, stage: Stage, ledger: Ledger, screen: Screen) -> None:
        self._mode = mode
        self._stage = stage
        self._ledger = ledger
        self._screen = screen
        self._approved = [seat for seat in stage.seats if seat.guest == story.APPROVED]
        self._other = [seat for seat in stage.seats if seat.guest == story.OTHER]
        self.results: list[ActResult] = []

    def run(self) -> None:
        """Play all acts. Raises :class:`PlayFailed` at the first that ends otherwise than it should."""
        acts: tuple[tuple[str, Callable[[Mark], None]], ...] = (
            ("no policy: both drink", self._no_policy),
            ("a policy for approved guests: the other goes dry", self._policy),
            ("the other is given the label: it drinks again", self._labels),
            ("the policy is deleted: both drink", self._deleted),
            ("nothing may leave but DNS to the resolver, and beer: both work", self._names),
            ("an impostor takes the resolver's address: refused", self._impostor),
        )
        for number, (title, act) in enumerate(acts, 1):
            self._screen.act(number, title[0].upper() + title[1:])
            began, mark = time.monotonic(), self._ledger.mark()
            passed = False
            try:
                act(mark)
                passed = True
            finally:
                scores = [self._score(mark, guest, self._stage.seats) for guest in story.GUESTS]
                scores += [self._score(mark, "DNS", self._stage.queries)] if number > 4 else []
                beers = ", ".join(scores)
                self.results.append(ActResult(self._mode, f"{number} {title}", passed, time.monotonic() - began, beers))

    def _score(self, since: Mark, who: str, seats: Sequence[Seat]) -> str:
        of_one = [seat for seat in seats if who in (seat.guest, "DNS")]
        asks = [ask for seat in of_one for ask in self._ledger.asks(since, seat)]
        return f"{who} {sum(bool(ask.answer) for ask in asks)}/{len(asks)}"

    # -- the acts ------------------------------------------------------------------------------------------------------

    def _no_policy(self, mark: Mark) -> None:
        self._stage.seat_guests()
        expect = Expectations(self._ledger, mark)
        everybody = self._stage.seats
        self._require(
            expect.drink(everybody),
            expect.judged(everybody, "proven, allowed, no policy selects the tap", story.allowed_without_policy),
            expect.one_address(everybody),
        )
        self._linger(mark, everybody)

    def _policy(self, mark: Mark) -> None:
        self._stage.apply_policies(story.POLICIES)
        self._screen.applied(f"written to {POLICY_FILE} of both nodes", story.POLICIES)
        expect = Expectations(self._ledger, mark)
        allowed = story.as_role("approved", story.allowed_by_rule)
        denied = story.as_role("regular", story.denied_for_its_label)
        self._require(
            expect.drink(self._approved),
            expect.go_dry(self._other),
            expect.judged(self._approved, "role=approved, proven, allowed by ingress[0] of approved-guests", allowed),
            expect.judged(self._other, "role=regular, denied, and told which rule came closest", denied),
        )
        self._show(expect, self._approved[0], allowed)
        self._show(expect, self._other[0], denied)
        self._require(Expectations(self._ledger, self._ledger.mark()).never_reach_the_tap(self._other))
        self._linger(mark, self._approved)

    def _labels(self, mark: Mark) -> None:
        labels = story.LABELS[story.APPROVED]
        self._stage.set_labels(story.OTHER, labels)
        where = f"written to pod-{story.OTHER}.yaml of node {CLIENT_NODE}; node {SERVER_NODE} is told nothing"
        self._screen.applied(where, story.labels_excerpt(story.OTHER, labels))
        expect = Expectations(self._ledger, mark)
        allowed = story.as_role("approved", story.allowed_by_rule)
        self._require(
            expect.drink(self._stage.seats),
            expect.judged(self._other, "role=approved, proven, allowed by ingress[0] of approved-guests", allowed),
        )
        self._show(expect, self._other[0], allowed)
        self._linger(mark, self._stage.seats)

    def _deleted(self, mark: Mark) -> None:
        labels = story.LABELS[story.OTHER]
        self._stage.delete_policies()
        self._stage.set_labels(story.OTHER, labels)
        where = f"{POLICY_FILE} removed from both nodes, and the label taken back"
        self._screen.applied(where, story.labels_excerpt(story.OTHER, labels))
        expect = Expectations(self._ledger, mark)
        allowed = story.as_role("regular", story.allowed_without_policy)
        self._require(
            expect.drink(self._stage.seats),
            expect.judged(self._other, "role=regular, proven, allowed, no policy selects the tap", allowed),
        )
        self._linger(mark, self._stage.seats)

    def _names(self, mark: Mark) -> None:
        queries = self._stage.queries
        self._stage.apply_policies(story.EGRESS_POLICIES)
        self._screen.applied(f"written to {POLICY_FILE} of both nodes", story.EGRESS_POLICIES)
        expect = Expectations(self._ledger, mark)
        self._require(expect.leave_for_beer(story.GUESTS))
        self._stage.seat_queries()
        allowed = story.allowed_as_resolver
        self._require(
            expect.find(queries),
            expect.drink(self._stage.seats),
            expect.judged(queries, "the resolver, proven, allowed by egress[0] of guests-may-go", allowed),
        )
        self._show(expect, queries[0], allowed)
        self._linger(mark, queries)

    def _impostor(self, mark: Mark) -> None:
        queries = self._stage.queries
        self._stage.take_over()
        dns = self._stage.dns
        self._screen.note(
            f"  the Service {dns.ipv4} and {dns.ipv6} leads to the pod {story.IMPOSTOR} now; it answers, too"
        )
        expect = Expectations(self._ledger, mark)
        denied = story.denied_as_impostor
        self._require(
            expect.find_nothing(queries),
            expect.drink(self._stage.seats),
            expect.judged(queries, "the impostor, proven, denied, and told whom the rule names", denied),
            expect.never_reach(story.IMPOSTOR, queries),
        )
        self._show(expect, queries[0], denied)
        self._linger(mark, queries)

    # -- helpers -------------------------------------------------------------------------------------------------------

    def _require(self, *expectations: Expectation) -> None:
        """Wait until all hold at the same time, and show each. Raises :class:`PlayFailed` naming those that do not."""
        held = self._ledger.wait_until(lambda: all(one.holds() for one in expectations), ACT_TIMEOUT_S)
        outcomes = [(one, held or one.holds()) for one in expectations]
        for one, holds in outcomes:
            self._screen.checked(one.text, holds)
        if not held:
            missing = [one.text for one, holds in outcomes if not holds]
            broken = self._ledger.broken
            reasons = [*broken, *(f"expected within {ACT_TIMEOUT_S:.0f} s: {text}" for text in missing)]
            raise PlayFailed("\n".join(reasons or ["the expectations held, but never all at the same time"]))

    def _linger(self, since: Mark, seats: Sequence[Seat]) -> None:
        """Give people time to look, if there are any: until each of ``seats`` came often enough since ``since``."""
        if self._screen.live:
            self._ledger.wait_until(
                lambda: all(len(self._ledger.asks(since, seat)) >= LINGER_VISITS for seat in seats), ACT_TIMEOUT_S
            )

    def _show(self, expect: Expectations, seat: Seat, right: story.Judge) -> None:
        record = expect.example(seat, right)
        if record is not None:
            self._screen.verdict(record)


def perform(modes: Sequence[str], families: tuple[int, ...], screen: Screen) -> bool:
    """Play every mode over the given address families; tell whether all was as it should be.

    Logs and configuration of a run that failed stay where the screen says; all else is removed.
    """
    results: list[ActResult] = []
    for mode in modes:
        passed = _perform_one(mode, families, screen, results)
        if not passed:
            break
    rows = [
        [
            result.mode.upper(),
            result.title,
            "ok" if result.passed else "FAILED",
            f"{result.seconds:.1f} s",
            result.beers,
        ]
        for result in results
    ]
    screen.summary(["MODE", "ACT", "RESULT", "TOOK", "ANSWERS OF VISITS"], rows)
    right, planned = sum(result.passed for result in results), ACTS * len(modes)
    screen.note(f"\n  {right} of {planned} acts went as they should")
    return right == planned


def _perform_one(mode: str, families: tuple[int, ...], screen: Screen, results: list[ActResult]) -> bool:
    names = " and ".join(f"IPv{family}" for family in families)
    screen.title(f"Beer of the day over {names}, {MODE_NAMES[mode]}")
    folder = Path(tempfile.mkdtemp(prefix=f"trireme-demo-{mode}-"))
    ledger = Ledger(screen)
    stage = Stage(mode, families, folder, ledger)
    play: Play | None = None
    try:
        with stage:
            screen.note(_cast(stage))
            play = Play(mode, stage, ledger, screen)
            with screen:
                play.run()
    except TriremeError as error:
        screen.failure(f"\n{error}")
        for node in stage.nodes.values():
            screen.failure(f"\nthe last lines of {node.log}:\n{node.log_tail()}")
        screen.failure(f"\nlogs, flow logs and configuration are kept in {folder}")
        return False
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        results += play.results if play is not None else []
    shutil.rmtree(folder, ignore_errors=True)
    return True


def _cast(stage: Stage) -> str:
    service, dns = stage.service, stage.dns
    return (
        f"  {story.TAP:<9} pod on node {SERVER_NODE}, behind the Service {service.ipv4} and {service.ipv6} (DNAT)\n"
        f"  {story.APPROVED:<9} pod on node {CLIENT_NODE}, role=approved\n"
        f"  {story.OTHER:<9} pod on node {CLIENT_NODE}, role=regular\n"
        f"  {story.RESOLVER:<9} pod on node {SERVER_NODE}, DNS, behind the Service {dns.ipv4} and {dns.ipv6} (DNAT)\n"
        f"  {story.IMPOSTOR:<9} pod on node {SERVER_NODE}, which answers DNS as well\n"
        "  Between them a router that masquerades both guests, so servers see one and the same address for both,\n"
        "  and that drops what conntrack calls INVALID."
    )
