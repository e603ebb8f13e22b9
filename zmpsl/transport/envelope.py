"""Control messages in their frames: a number tells of what was lost, a checksum of what was changed on the way.

    message     msgpack
    number      uint32: messages to this peer so far
    checksum    uint64: XXH3-64 of all before it

Numbers are little-endian. ZeroMQ loses messages without a word when a connection breaks, and a flipped bit in a frame's
own flags makes libzmq take a message for one of its commands, and drop it. Both sides of the control plane speak at
least twice a second, so the next number tells. No message is sent again: the member joins again, and that has always
led to the round being begun again.
"""

from __future__ import annotations

from collections import OrderedDict

from xxhash import xxh3_64_digest

from zmpsl.errors import RemoteProtocolError

__all__ = ["Counts", "LostError", "Numbers", "unwrap", "wrap"]

NUMBER, CHECKSUM = 4, 8
WHOLE = 1 << 32
# More peers than a manager can have members; who has not been spoken to for longest is forgotten first.
MOST_PEERS = 1 << 18


class LostError(RemoteProtocolError):
    """A control message was changed on the way; nothing of it was used, and it is lost."""


def wrap(body: bytes, number: int) -> bytes:
    """Gives a message's frame.

    Args:
        body: The message.
        number: How many went to this peer before it.
    """
    whole = body + (number % WHOLE).to_bytes(NUMBER, "little")
    return whole + xxh3_64_digest(whole)[::-1]


def unwrap(frame: bytes) -> tuple[memoryview, int]:
    """Gives the message in a frame, and its number.

    Raises:
        LostError: It is not as it was sent, or none of ours.
    """
    body = len(frame) - NUMBER - CHECKSUM
    if body < 0 or xxh3_64_digest(memoryview(frame)[:-CHECKSUM])[::-1] != frame[-CHECKSUM:]:
        raise LostError(f"a control message of {len(frame)} bytes whose checksum does not match")
    return memoryview(frame)[:body], int.from_bytes(frame[body:-CHECKSUM], "little")


class Numbers:
    """The numbers of the messages to and from one peer.

    Attributes:
        sent: How many went to it.
        expected: Number of the one that must come next, None where anything may.
    """

    __slots__ = ("expected", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.expected: int | None = None

    def heard(self, number: int, *, anew: bool) -> bool:
        """Takes the number of a message that has come; tells whether one before it is missing.

        Args:
            number: Of the message.
            anew: It begins anew, whatever came before: nothing can be missing.
        """
        missing = not anew and self.expected is not None and number != self.expected
        self.expected = (number + 1) % WHOLE
        return missing

    def damaged(self) -> int:
        """Counts a message that could not be read; gives the number it had, or one above all when nobody can tell."""
        if self.expected is None:
            return WHOLE - 1
        number, self.expected = self.expected, (self.expected + 1) % WHOLE
        return number


class Counts:
    """The numbers of many peers; not of more than `MOST_PEERS`."""

    def __init__(self) -> None:
        self._peers: OrderedDict[bytes, Numbers] = OrderedDict()

    def of(self, who: bytes) -> Numbers:
        """Gives the numbers of a peer."""
        found = self._peers.get(who)
        if found is None:
            found = self._peers[who] = Numbers()
            if len(self._peers) > MOST_PEERS:
                self._peers.popitem(last=False)
        self._peers.move_to_end(who)
        return found
