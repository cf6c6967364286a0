"""The eight mark bits that are ours, and what their values mean.

Bits are counted inside the mask. A *packet* mark is the agent's answer on its way from a verdict to our first rules; a
*connection* mark stays with the connection::

    0x80 | epoch   packet: accepted, save this to the connection;  connection: verified under this policy epoch
    0xc0           packet: of the pod's own node, save this;       connection: the node opened it, and no epoch ends it
    0x40           packet: let this one packet through
    0x41           packet: let it through and clear the connection's mark
    0              not judged

An epoch is a number from 1 to 63 of the pod's own. Epochs are used in a circle; before a value comes round again a
sweep makes sure that no connection carries it still (:func:`free_epoch`).
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Final

from trireme_py.errors import ConfigError, KernelError
from trireme_py.model import Verdict

DEFAULT_MASK: Final = 0xFF0000
"""Clear of the bits that kube-proxy (0xc000) and common network plugins use."""
FIRST_EPOCH: Final = 1
LAST_EPOCH: Final = 63
_WIDTH: Final = 8
_ACCEPT: Final = 0x80
_PASS: Final = 0x40
_CLEAR: Final = 0x01
_NODE: Final = _ACCEPT | _PASS
"""Has the accept bit, so that the rule that saves an answer saves this too, and is no epoch."""


@dataclass(frozen=True, slots=True)
class Marks:
    """The mark values under one mask. Raises :class:`ConfigError` unless the mask is eight adjacent bits of 32."""

    mask: int = DEFAULT_MASK

    def __post_init__(self) -> None:
        shift = (self.mask & -self.mask).bit_length() - 1
        if not 0 < self.mask < 1 << 32 or self.mask >> shift != (1 << _WIDTH) - 1:
            raise ConfigError(f"mark mask {self.mask:#x}: needs eight adjacent bits of a 32-bit mark, like 0xff0000")

    @property
    def _shift(self) -> int:
        return self.mask.bit_length() - _WIDTH

    @property
    def accept_bit(self) -> int:
        return _ACCEPT << self._shift

    @property
    def pass_clear(self) -> int:
        return (_PASS | _CLEAR) << self._shift

    @property
    def node(self) -> int:
        """The mark, packet's and connection's, of what the pod's own node sends."""
        return _NODE << self._shift

    def accepted(self, epoch: int) -> int:
        """Return the mark, packet's or connection's, of a connection verified under ``epoch``."""
        if not FIRST_EPOCH <= epoch <= LAST_EPOCH:
            raise ValueError(f"epoch {epoch}: not from {FIRST_EPOCH} to {LAST_EPOCH}")
        return (_ACCEPT | epoch) << self._shift

    def epoch(self, mark: int) -> int | None:
        """Return the epoch a connection mark carries, None if it does not say "accepted"."""
        value = (mark & self.mask) >> self._shift
        if not value & _ACCEPT or not FIRST_EPOCH <= value & ~_ACCEPT <= LAST_EPOCH:
            return None
        return value & ~_ACCEPT

    def answer(self, verdict: Verdict, mark: int, epoch: int) -> int:
        """Return the packet mark that carries ``verdict`` to our rules; bits of ``mark`` that are not ours stay."""
        if verdict is Verdict.ACCEPT:
            value = self.accepted(epoch)
        elif verdict is Verdict.PASS:
            value = _PASS << self._shift
        elif verdict is Verdict.PASS_CLEAR:
            value = self.pass_clear
        else:
            raise ValueError(f"{verdict} lets nothing through")
        return mark & ~self.mask | value


def next_epoch(epoch: int) -> int:
    """Return the epoch after ``epoch``, in a circle."""
    return FIRST_EPOCH if epoch == LAST_EPOCH else epoch + 1


def newer_epoch(one: int, other: int) -> int:
    """Return the later of two epochs less than half the circle apart."""
    ahead = (one - other) % LAST_EPOCH
    return one if ahead <= LAST_EPOCH // 2 else other


def free_epoch(epoch: int, in_use: Container[int]) -> int:
    """Return the first epoch after ``epoch`` that is not ``in_use``.

    Raises :class:`KernelError` if live connections carry every other epoch: the oldest have to be ended first.
    """
    candidate = next_epoch(epoch)
    while candidate != epoch:
        if candidate not in in_use:
            return candidate
        candidate = next_epoch(candidate)
    raise KernelError(f"live connections carry all {LAST_EPOCH} policy epochs; end the oldest of them first")
