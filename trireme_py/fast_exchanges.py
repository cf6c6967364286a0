"""The exchanges of a moment ago that UDP flows go on from, as far as the engine in C may count by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trireme_py import _fastpath
from trireme_py.assertion import CLOCK_SKEW_S
from trireme_py.datagram_flows import Ticket, Warm
from trireme_py.endpoint import Acceptance, Endpoint
from trireme_py.identities import LocalIdentity, Peer
from trireme_py.model import Direction


@dataclass(slots=True)
class _Lent:
    session: _fastpath.Session
    value: Warm | Ticket
    unused_since: int | None = None
    """Monotonic ns."""


class Exchanges:
    """Those of all pods, by the number of their session.

    An exchange outlives its place in Python's tables here as long as a flow of the engine's goes on from it.

    :param token: the engine's token of an identity
    """

    __slots__ = ("_lent", "_next", "_token")

    def __init__(self, token: Callable[[Peer | LocalIdentity], _fastpath.Token]) -> None:
        self._token = token
        self._lent: dict[int, _Lent] = {}
        self._next = 1

    def new_session(self) -> _fastpath.Session:
        """Make what an exchange is counted by."""
        session = _fastpath.Session(self._next)
        self._next += 1
        return session

    def get(self, number: int) -> Warm | Ticket | None:
        """Return the exchange behind a session's number, if the engine may still know it."""
        lent = self._lent.get(number)
        return lent.value if lent else None

    def teach(self, accepted: Acceptance, engine: _fastpath.Endpoint, policy: int, tables: Endpoint) -> bool | None:
        """Teach what flows may go on from.

        Returns whether policy asks nobody who he is there; None if the exchange is gone, and nothing may be taught.
        """
        if accepted.dialled is None:
            return self._teach_ticket(accepted, engine, tables)
        address, port = target = accepted.dialled
        warm = tables.datagrams.warm.get(target)
        anybody = tables.policy.decide(Direction.EGRESS, None, address, accepted.protocol, port).allowed
        may_ask = anybody or tables.policy.may_open(accepted.protocol)
        if warm is None or target in tables.datagrams.silent or not may_ask:
            return None
        peer, own = self._token(warm.peer), self._token(warm.local)
        exchange = (own, peer, warm.ticket, warm.key, *warm.server, warm.client, 0.0, float(warm.peer.not_after))
        engine.teach_warm(address, port, self._lend(warm), exchange, policy, not anybody)
        return anybody

    def _teach_ticket(self, accepted: Acceptance, engine: _fastpath.Endpoint, tables: Endpoint) -> bool | None:
        ticket = tables.datagrams.tickets.get(accepted.ticket)
        if ticket is None:
            return None
        peer, own = self._token(ticket.peer), self._token(ticket.local)
        valid = ticket.peer.not_before - CLOCK_SKEW_S, ticket.peer.not_after + CLOCK_SKEW_S
        exchange = (own, peer, accepted.ticket, ticket.key, *ticket.server, ticket.client, *valid)
        engine.teach_ticket(self._lend(ticket), exchange)
        decision = tables.policy.decide(Direction.INGRESS, None, accepted.address, accepted.protocol, accepted.port)
        return decision.allowed

    def _lend(self, value: Warm | Ticket) -> _fastpath.Session:
        session = session_of(value)
        lent = self._lent.setdefault(session.number, _Lent(session, value))
        lent.unused_since = None
        return session

    def forget_unused(self, mono_ns: int, grace_ns: int) -> None:
        """Forget what the engine has let go of for so long: a parked packet may still name a younger one."""
        for number, lent in list(self._lent.items()):
            if lent.session.in_use():
                lent.unused_since = None
            elif lent.unused_since is None:
                lent.unused_since = mono_ns
            elif mono_ns - lent.unused_since >= grace_ns:
                del self._lent[number]


def session_of(value: Warm | Ticket) -> _fastpath.Session:
    """Return what an exchange is counted by: every one that the fast path makes has a session of the engine's."""
    session = value.counter if isinstance(value, Warm) else value.window
    assert isinstance(session, _fastpath.Session)
    return session
