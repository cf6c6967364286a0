"""A small TCP for the virtual-time world, honest where the exchange can be hurt.

It answers as Linux does: a client ignores the payload of a SYN-ACK, a server that of a SYN (unless it is one that takes
Fast Open data without a cookie), a closed port acknowledges whatever the SYN held, a half-open connection wants its
first ACK exactly in sequence and its resets to acknowledge the SYN-ACK, old data is acknowledged again and never read.
Left out: congestion, flow control, urgent data, options.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from tests.harness.segments import ACK, FIN, RST, SPACE, SYN, Segment

SECOND: Final = 1_000_000_000
SYN_TIMEOUT: Final = SECOND
SYN_RETRIES: Final = 6
SYN_ACK_RETRIES: Final = 5
DATA_TIMEOUT: Final = SECOND // 5
DATA_TIMEOUT_MAX: Final = 5 * SECOND
DATA_RETRIES: Final = 15
TIME_WAIT: Final = 60 * SECOND
WINDOW: Final = 1 << 20
FIRST_PORT: Final = 40_000
LAST_PORT: Final = 43_999
"""Few enough that a storm uses them again."""

Tuple4 = tuple[bytes, int, bytes, int]
"""Own address and port, the other end's address and port."""


class Stage(Enum):
    SYN_SENT = "SYN-SENT"
    SYN_RECEIVED = "SYN-RECEIVED"
    ESTABLISHED = "ESTABLISHED"
    TIME_WAIT = "TIME-WAIT"
    CLOSED = "CLOSED"


@dataclass
class Listener:
    """A port that is listened on."""

    on_accept: Callable[[Connection], None] = lambda _: None
    on_data: Callable[[Connection], None] = lambda _: None
    on_end: Callable[[Connection], None] = lambda connection: connection.close()
    takes_syn_data: bool = False
    """Fast Open without cookies."""
    backlog_full: bool = False


@dataclass(eq=False)
class Connection:
    """One end of one connection."""

    host: Host
    key: Tuple4
    stage: Stage
    iss: int
    listener: Listener | None = None
    irs: int = 0
    received: bytearray = field(default_factory=bytearray)
    sent: bytearray = field(default_factory=bytearray)
    """Everything the application has written."""
    acknowledged: int = 0
    """Octets of ``sent`` that the other end has; the FIN counts as one more."""
    transmitted: int = 0
    closing: bool = False
    ended: bool = False
    """The other end has closed its side."""
    early: dict[int, Segment] = field(default_factory=dict)
    retries: int = 0
    timer: int = 0
    """Generation of the running timer; another one supersedes it."""
    outcome: str = ""
    opened: bool = False
    """Whether the handshake was ever completed."""
    """connected, refused, reset or timeout."""
    on_data: Callable[[Connection], None] = lambda _: None
    mss: int = 1000
    fresh: bool = True
    """The first segment after the SYN-ACK is still to be sent."""

    # -- the application ----------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self.sent += data
        if self.stage is Stage.ESTABLISHED:
            self._transmit()

    def close(self) -> None:
        self.closing = True
        if self.stage is Stage.ESTABLISHED:
            self._transmit()

    @property
    def next_received(self) -> int:
        """The sequence number expected next."""
        return (self.irs + 1 + len(self.received) + self.ended) % SPACE

    @property
    def next_sent(self) -> int:
        return (self.iss + 1 + self.transmitted) % SPACE

    def is_older_than(self, segment: Segment) -> bool:
        return (segment.sequence - self.next_received) % SPACE < SPACE // 2

    # -- timers -------------------------------------------------------------------------------------------------------

    def start_timer(self, delay: int, action: Callable[[], None]) -> None:
        self.timer += 1
        generation = self.timer

        def due() -> None:
            if self.timer == generation:
                action()

        self.host.after(delay, due)

    def syn_timer(self) -> None:
        if self.retries > SYN_RETRIES:
            self.end("timeout")
            return
        self.emit(SYN, sequence=self.iss)
        self.retries += 1
        self.start_timer(SYN_TIMEOUT << (self.retries - 1), self.syn_timer)

    def syn_ack_timer(self) -> None:
        if self.retries > SYN_ACK_RETRIES:
            self.end("timeout")
            return
        self.emit(SYN | ACK, sequence=self.iss)
        self.retries += 1
        self.start_timer(SYN_TIMEOUT << (self.retries - 1), self.syn_ack_timer)

    def _data_timer(self) -> None:
        if self.retries >= DATA_RETRIES:
            self.end("timeout")
            return
        self.retries += 1
        self._segment(self.acknowledged)
        self.start_timer(min(DATA_TIMEOUT << self.retries, DATA_TIMEOUT_MAX), self._data_timer)

    # -- out ----------------------------------------------------------------------------------------------------------

    def emit(self, flags: int, payload: bytes = b"", sequence: int | None = None) -> None:
        own, port, other, other_port = self.key
        acknowledgement = self.next_received if flags & ACK else 0
        number = self.next_sent if sequence is None else sequence
        self.host.output(Segment(own, port, other, other_port, number, acknowledgement, flags, payload))

    def _segment(self, start: int) -> None:
        """Send what begins ``start`` octets into our data: a segment, the FIN, or both."""
        payload = bytes(self.sent[start : start + self.mss])
        last = self.closing and start + len(payload) == len(self.sent)
        self.transmitted = max(self.transmitted, start + len(payload) + last)
        self.fresh = False
        self.emit(ACK | (FIN if last else 0), payload, sequence=(self.iss + 1 + start) % SPACE)

    def _transmit(self) -> None:
        """Send everything that has not been sent; the first segment after a SYN-ACK may carry data, as Linux' does."""
        end = len(self.sent) + self.closing
        if self.fresh and self.transmitted == end:
            self.fresh = False
            self.emit(ACK)
        while self.transmitted < end:
            self._segment(self.transmitted)
        if self.acknowledged < self.transmitted:
            self.start_timer(DATA_TIMEOUT, self._data_timer)

    # -- in -----------------------------------------------------------------------------------------------------------

    def receive(self, segment: Segment) -> None:
        match self.stage:
            case Stage.SYN_SENT:
                self._in_syn_sent(segment)
            case Stage.SYN_RECEIVED:
                self._in_syn_received(segment)
            case Stage.ESTABLISHED | Stage.TIME_WAIT:
                self._in_established(segment)
            case Stage.CLOSED:
                raise AssertionError("a closed connection is in no table")

    def _in_syn_sent(self, segment: Segment) -> None:
        flags = segment.flags
        if flags & ACK and segment.acknowledgement != (self.iss + 1) % SPACE:
            if not flags & RST:
                self.emit(RST, sequence=segment.acknowledgement)
            return
        if flags & RST:
            if flags & ACK:
                self.end("refused")
            return
        if flags & SYN and flags & ACK:
            self.irs = segment.sequence
            self._established()
            self._transmit()

    def _in_syn_received(self, segment: Segment) -> None:
        """As tcp_check_req() in net/ipv4/tcp_minisocks.c, in its order."""
        flags = segment.flags
        if flags & SYN and not flags & ACK and segment.sequence == self.irs:
            self.emit(SYN | ACK, sequence=self.iss)
            return
        if flags & ACK and segment.acknowledgement != (self.iss + 1) % SPACE:
            if not flags & RST:
                self.emit(RST, sequence=segment.acknowledgement)
            return
        ahead = (segment.sequence - self.next_received) % SPACE
        beyond = (segment.sequence + segment.length - self.next_received) % SPACE
        if ahead and not (0 < beyond < WINDOW):
            if not flags & RST:
                self.emit(ACK)
            return
        if flags & (RST | SYN):
            self.end("reset")
            return
        assert self.listener is not None
        if not flags & ACK or self.listener.backlog_full:
            return
        self._established()
        self.fresh = False
        self.listener.on_accept(self)
        self._in_established(segment)

    def _established(self) -> None:
        self.stage = Stage.ESTABLISHED
        self.outcome = "connected"
        self.opened = True
        self.retries = 0
        self.timer += 1

    def _in_established(self, segment: Segment) -> None:
        flags = segment.flags
        offset = (segment.sequence - self.next_received + SPACE // 2) % SPACE - SPACE // 2
        if flags & RST:
            if offset == 0:
                self.end("reset")
            elif 0 < offset < WINDOW:
                self.emit(ACK)  # RFC 5961, section 3.2
            return
        if flags & SYN:
            self.emit(ACK)  # RFC 5961, section 4.2
            return
        if offset + segment.length < 0 or (offset < 0 and offset + segment.length <= 0) or offset > WINDOW:
            self.emit(ACK)
            return
        if not flags & ACK:
            return
        got = (segment.acknowledgement - self.iss - 1) % SPACE
        if got > self.transmitted:
            if got < SPACE // 2:
                self.emit(ACK)
                return
            got = 0
        if got > self.acknowledged:
            self.acknowledged, self.retries = got, 0
            self.timer += 1
            if self.acknowledged < self.transmitted:
                self.start_timer(DATA_TIMEOUT, self._data_timer)
        if segment.length:
            self._read(segment, offset)
        self._finish()

    def _read(self, segment: Segment, offset: int) -> None:
        self.early[segment.sequence] = segment
        progress = True
        grew = False
        while progress:
            progress = False
            for sequence, waiting in list(self.early.items()):
                skip = (self.next_received - sequence + SPACE // 2) % SPACE - SPACE // 2
                if skip < 0:
                    continue
                del self.early[sequence]
                data = waiting.payload[skip:]
                if self.ended or skip > waiting.length:
                    continue
                self.received += data
                grew = grew or bool(data)
                progress = True
                if waiting.flags & FIN and skip <= len(waiting.payload):
                    self.ended = True
        self.emit(ACK)
        if self.listener is not None:
            if grew:
                self.listener.on_data(self)
            if self.ended and not self.closing:
                self.listener.on_end(self)
        elif grew:
            self.on_data(self)

    def _finish(self) -> None:
        done = self.closing and self.acknowledged == len(self.sent) + 1
        if not (done and self.ended) or self.stage is not Stage.ESTABLISHED:
            return
        if self.listener is None:
            self.stage = Stage.TIME_WAIT
            self.start_timer(TIME_WAIT, lambda: self.end("connected"))
        else:
            self.end("connected")

    def end(self, outcome: str) -> None:
        self.outcome = outcome
        self.stage = Stage.CLOSED
        self.timer += 1
        self.host.connections.pop(self.key, None)
        self.host.over.append(self)


class Host:
    """The TCP of one network namespace."""

    def __init__(
        self,
        after: Callable[[int, Callable[[], None]], None],
        send: Callable[[bytes], None],
        initial_number: Callable[[], int],
    ) -> None:
        self.after = after
        self._send = send
        self.initial_number = initial_number
        self.listeners: dict[int, Listener] = {}
        self.connections: dict[Tuple4, Connection] = {}
        self.over: list[Connection] = []
        self._next_port = FIRST_PORT

    def listen(self, port: int, **options: object) -> Listener:
        listener = self.listeners[port] = Listener(**options)  # type: ignore[arg-type]
        return listener

    def connect(
        self,
        own: bytes,
        other: bytes,
        other_port: int,
        data: bytes = b"",
        *,
        close: bool = False,
        port: int | None = None,
    ) -> Connection:
        """Open a connection; ``data`` is written before it is open, so that the first ACK carries it."""
        if port is None:
            port = self._free_port(own, other, other_port)
        key = (own, port, other, other_port)
        assert key not in self.connections or self.connections[key].stage is Stage.TIME_WAIT
        connection = Connection(self, key, Stage.SYN_SENT, self.initial_number())
        connection.sent += data
        connection.closing = close
        self.connections[key] = connection
        connection.syn_timer()
        return connection

    def _free_port(self, own: bytes, other: bytes, other_port: int) -> int:
        while True:
            port = self._next_port
            self._next_port = port + 1 if port < LAST_PORT else FIRST_PORT
            if (own, port, other, other_port) not in self.connections:
                return port

    def output(self, segment: Segment) -> None:
        self._send(segment.build())

    def receive(self, segment: Segment) -> None:
        key = (segment.destination, segment.dport, segment.source, segment.sport)
        connection = self.connections.get(key)
        opening = segment.flags & (SYN | ACK | RST) == SYN
        waiting = connection is not None and connection.stage is Stage.TIME_WAIT
        if connection is not None and waiting and opening and connection.is_older_than(segment):
            connection.end("connected")  # RFC 6191: a newer SYN may take the tuple over
            connection = None
        if connection is not None:
            connection.receive(segment)
            return
        listener = self.listeners.get(segment.dport)
        if opening and listener is not None:
            self._accept(key, segment, listener)
        elif not segment.flags & RST:
            self._refuse(segment)

    def _accept(self, key: Tuple4, segment: Segment, listener: Listener) -> None:
        connection = Connection(self, key, Stage.SYN_RECEIVED, self.initial_number(), listener, segment.sequence)
        self.connections[key] = connection
        if listener.takes_syn_data:
            connection.received += segment.payload
            if segment.payload:
                listener.on_data(connection)
        connection.syn_ack_timer()

    def _refuse(self, segment: Segment) -> None:
        """RFC 9293, section 3.10.7.1."""
        back = (segment.destination, segment.dport, segment.source, segment.sport)
        if segment.flags & ACK:
            self.output(Segment(*back, segment.acknowledgement, 0, RST, b""))
        else:
            self.output(Segment(*back, 0, (segment.sequence + segment.length) % SPACE, RST | ACK, b""))
