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
    """Which message of the exchange this is. TCP and UDP have types of their own, so that neither's transcript can ever
    stand in for the other's."""

    SYN = 1
    SYN_ACK = 2
    ACK = 3
    HELLO = 4
    ANSWER = 5
    PROOF = 6
    RESUME = 7
    CONFIRM = 8
    AGAIN = 9


# Header, 12 bytes, at the start of each message:
#   offset  size  field
#   0       4     magic
#   4       1     version of this message
#   5       1     type
#   6       1     highest version the sender speaks
#   7       1     flags; zero but for HELLO
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

# HELLO, ANSWER and PROOF are laid out as SYN, SYN-ACK and ACK.

# RESUME, 52 bytes, then a whole HELLO:
#   12      16    ticket: the nonce of the server's answer that it goes on from
#   28      8     counter, never twice with one ticket
#   36      16    MAC
RESUME = Struct("!12s16sQ16s")
RESUME_MAC_OFFSET = 36

# CONFIRM, 88 bytes:
#   12      16    ticket
#   28      8     counter of the RESUME it answers
#   36      16    the server's own address, as it sees it
#   52      16    the client's address, as the server sees it
#   68      2     the server's own port
#   70      2     the client's port, as the server sees it
#   72      16    MAC
CONFIRM = Struct("!12s16sQ16s16sHH16s")
CONFIRM_COUNTER_OFFSET = 28
CONFIRM_ENDS_OFFSET = 36
CONFIRM_MAC_OFFSET = 72

# AGAIN is a header alone: "send your HELLO once more, padded, so that I may answer it".

ASKS_ANSWER = 0x01
"""HELLO flag: the client must know the server before it sends anything."""

# The surplus area of a UDP datagram (RFC 9868): pad to an even offset, OCS, one experimental option in its long form
# (section 11.9): kind, 255, length of the option, ExID, then the message.
UDP_OPTION_EXPERIMENT = 127
UDP_OPTION_LONG = 255
EXPERIMENT_ID = 0xF754
"""Not registered with IANA."""
UDP_OPTION = Struct("!BBHH")

ID_SIZE = 16
NONCE_SIZE = 16
MAC_SIZE = 16
PAIR_KEY_SIZE = 32

# BLAKE2s personalisation strings (RFC 7693 leaves the parameter block's last 8 bytes to the application): one per use,
# so that an output of one can never stand in for another.
PERSON_ID = b"TRM1asid"
PERSON_SYN_ACK = b"TRM1sack"
PERSON_ACK = b"TRM1_ack"
PERSON_RESUME = b"TRM1resu"
PERSON_CONFIRM = b"TRM1conf"

PATH_MTU = 1280
"""The smallest link MTU of IPv6 (RFC 8200, section 5): no packet of the exchange is made larger than this."""
LARGEST_HEADERS = 40 + 60
"""IPv6 header and a TCP header whose option area is full."""
MAX_ASSERTION = PATH_MTU - LARGEST_HEADERS - SYN_ACK.size
"""1084 octets."""

# -- Implementation ---------------------------------------------------------------------------------------------------

MAX_IPV6_EXTENSION_HEADERS = 8
"""No sender uses more; each costs a loop round on hostile input."""
