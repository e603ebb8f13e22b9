"""What the kernel has measured on one TCP connection: how fast bytes got to the other end.

The kernel stamps every segment and its acknowledgement, so it knows the rate however little is sent and whether or not
the sender ever had to wait. Rates of moments in which the application had nothing more to send are lower bounds only.
Only on Linux; the offsets are those of struct tcp_info in its include/uapi/linux/tcp.h, which grows at the end only.
Source: Cardwell et al., "Delivery Rate Estimation", draft-cheng-iccrg-delivery-rate-estimation.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

__all__ = ["Reading", "delivered"]

_FLAGS = 7
_BYTES_ACKED = struct.Struct("<120xQ")
_RATE = struct.Struct("<160xQ")
_OPTION = getattr(socket, "TCP_INFO", None)


class Reading(NamedTuple):
    """What one look at a connection gives.

    Attributes:
        nbytes: Bytes that have arrived since the connection was made.
        bytes_per_s: The rate when the kernel last measured it.
        lower_bound: The sender had nothing more to send then: the link may be faster.
    """

    nbytes: int
    bytes_per_s: float
    lower_bound: bool


def delivered(descriptor: int) -> Reading | None:
    """Looks at a connection.

    Args:
        descriptor: Of the socket; it stays open and as it is.

    Returns:
        None where this system does not tell, or the descriptor is no TCP connection (any more).
    """
    if _OPTION is None:
        return None
    try:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)
    except OSError:
        return None
    try:
        counted = connection.getsockopt(socket.IPPROTO_TCP, _OPTION, 256)
        nbytes, rate = _BYTES_ACKED.unpack_from(counted)[0], _RATE.unpack_from(counted)[0]
        return Reading(nbytes, float(rate), bool(counted[_FLAGS] & 1))
    except (OSError, struct.error):
        return None
    finally:
        connection.detach()
