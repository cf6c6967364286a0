"""The exception tree.

::

    TriremeError
    ├── BadPacket(reason)        the network is wrong: ends in one counted drop, never further
    ├── InvalidToken(reason)     an identity assertion is wrong: likewise
    ├── CredentialError          our own keys or certificates are wrong: a start-up error
    ├── ConfigError              our own configuration is wrong: names file, line and field
    └── KernelError              the kernel, or a tool in front of it, refused: names the command

``BadPacket`` and ``InvalidToken`` carry a :class:`~trireme_py.model.DropReason`, which is the counter's name.
"""

from __future__ import annotations

from trireme_py.model import DropReason


class TriremeError(Exception):
    """Base of every exception this project raises on purpose."""


class BadPacket(TriremeError):
    """A packet from the network cannot be used."""

    def __init__(self, reason: DropReason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.reason = reason


class InvalidToken(TriremeError):
    """An identity assertion cannot be believed."""

    def __init__(self, reason: DropReason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.reason = reason


class CredentialError(TriremeError):
    """A key or certificate of our own cannot be used. The text names the file and the command that mends it."""


class ConfigError(TriremeError):
    """Configuration or a policy object cannot be used. The text names the file, the line and the field."""


class KernelError(TriremeError):
    """The kernel or a tool in front of it refused what was asked. The text names what was tried."""
