"""What the kernel knows of one TCP connection: how fast bytes got to the other end, and whether they still do.

The kernel stamps every segment and its acknowledgement, so it knows the rate however little is sent and whether or not
the sender ever had to wait. Rates of moments in which the application had nothing more to send are lower bounds only.
Only on Linux; the offsets are those of struct tcp_info in its include/uapi/linux/tcp.h, which grows at the end only.
Source: Cardwell et al., "Delivery Rate Estimation", draft-cheng-iccrg-delivery-rate-estimation.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

__all__ = ["Reading", "delivered", "unheard_s"]

_RETRANSMITS, _PROBES, _FLAGS = 2, 3, 7
_LAST_ACK_MS = struct.Struct("<56xI")
_BYTES_ACKED = struct.Struct("<120xQ")
_RATE = struct.Struct("<160xQ")
_ROUND_TRIP_US = struct.Struct("<148xI")
_NEVER = 0xFFFFFFFF
# So often must a segment have been sent again in vain; the pauses between double, from 0.2 s on.
_ASKED = 3
_OPTION = getattr(socket, "TCP_INFO", None)


class Reading(NamedTuple):
    """What one look at a connection gives.

    Attributes:
        nbytes: Bytes that have arrived since the connection was made.
        bytes_per_s: The rate when the kernel last measured it.
        lower_bound: The sender had nothing more to send then: the link may be faster.
        round_trip_s: The shortest there was of late; 0 before the first answer.
    """

    nbytes: int
    bytes_per_s: float
    lower_bound: bool
    round_trip_s: float = 0.0


def delivered(descriptor: int) -> Reading | None:
    """Looks at a connection.

    Args:
        descriptor: Of the socket; it stays open and as it is.

    Returns:
        None where this system does not tell, or the descriptor is no TCP connection (any more).
    """
    counted = _look(descriptor)
    if len(counted) < _RATE.size:
        return None
    nbytes, rate = _BYTES_ACKED.unpack_from(counted)[0], _RATE.unpack_from(counted)[0]
    trip_us = _ROUND_TRIP_US.unpack_from(counted)[0]
    return Reading(nbytes, float(rate), bool(counted[_FLAGS] & 1), 0.0 if trip_us == _NEVER else trip_us * 1e-6)


def unheard_s(descriptor: int) -> float:
    """Tells for how long the other end's system has answered nothing, although it was asked again and again.

    A slow link answers, as each segment gets there; so does a host whose program takes nothing in, to the question
    whether it has room now. So this is neither, but a link that is cut or a host that is gone.

    Args:
        descriptor: Of the socket; it stays open and as it is.

    Returns:
        Seconds; 0 where nothing is overdue, where this system does not tell, or for anything but a TCP connection.
    """
    counted = _look(descriptor)
    if len(counted) < _LAST_ACK_MS.size or max(counted[_RETRANSMITS], counted[_PROBES]) < _ASKED:
        return 0.0
    return float(_LAST_ACK_MS.unpack_from(counted)[0]) / 1000


def _look(descriptor: int) -> bytes:
    if _OPTION is None:
        return b""
    try:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)
    except OSError:
        return b""
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, _OPTION, 256)
    except OSError:
        return b""
    finally:
        connection.detach()
