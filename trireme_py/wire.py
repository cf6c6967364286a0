"""Every constant of the wire format (docs/protocol.md), once.

"Specification" constants cannot change without a new protocol version; "implementation" constants are limits of this
implementation and may be tuned.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

# -- Specification ----------------------------------------------------------------------------------------------------

MAGIC = b"\xf7TRM"
"""First four bytes of every message: not the start of any TLS, HTTP, SSH or Kafka stream."""
VERSION = 1
"""The version this implementation writes, and the highest it reads."""


class MessageType(IntEnum):
    """Which of the three messages of the exchange this is."""

    SYN = 1
    SYN_ACK = 2
    ACK = 3


# Header, 12 bytes, at the start of each message:
#   offset  size  field
#   0       4     magic
#   4       1     version of this message
#   5       1     type
#   6       1     highest version the sender speaks
#   7       1     reserved, zero
#   8       2     length of the whole message in octets
#   10      2     length of the assertion in octets (zero in ACK)
HEADER = Struct("!4sBBBBHH")

# SYN, 44 bytes, then the assertion:
#   12      16    identity id of the client
#   28      16    nonce of the client
SYN = Struct("!12s16s16s")

# SYN-ACK, 96 bytes, then the assertion:
#   12      16    identity id of the server
#   28      16    nonce of the server
#   44      16    the server's own address, as it sees it (IPv4 as ::ffff:a.b.c.d)
#   60      16    the client's address, as the server sees it
#   76      2     the server's own port
#   78      2     the client's port, as the server sees it
#   80      16    MAC
SYN_ACK = Struct("!12s16s16s16s16sHH16s")
SYN_ACK_MAC_OFFSET = 80

# ACK, 28 bytes:
#   12      16    MAC
ACK = Struct("!12s16s")

ID_SIZE = 16
NONCE_SIZE = 16
MAC_SIZE = 16
PAIR_KEY_SIZE = 32

# BLAKE2s personalisation strings (RFC 7693 leaves the parameter block's last 8 bytes to the application): one per use,
# so that an output of one can never stand in for another.
PERSON_ID = b"TRM1asid"
PERSON_SYN_ACK = b"TRM1sack"
PERSON_ACK = b"TRM1_ack"

PATH_MTU = 1280
"""The smallest link MTU of IPv6 (RFC 8200, section 5): no packet of the exchange is made larger than this."""
LARGEST_HEADERS = 40 + 60
"""IPv6 header and a TCP header whose option area is full."""
MAX_ASSERTION = PATH_MTU - LARGEST_HEADERS - SYN_ACK.size
"""1084 octets."""

# -- Implementation ---------------------------------------------------------------------------------------------------

MAX_IPV6_EXTENSION_HEADERS = 8
"""No sender uses more; each costs a loop round on hostile input."""
