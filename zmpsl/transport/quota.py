"""How much an owner may send: bytes under way, and bytes and messages per second. No socket in here, and no clock.

Credits tell a sender what it may send; this looks whether it keeps to them, for who does not could fill the receiver's
memory. Bytes and messages per second are counted by a token bucket: it fills at the rate that is allowed, holds what
may come within `BURST_S` at once, and never less than all credit, for honest owners send that much without waiting.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from zmpsl.errors import RemoteProtocolError

__all__ = ["Bucket", "Quota", "QuotaError"]

BURST_S = 10.0


class QuotaError(RemoteProtocolError):
    """An owner has sent more than it may; nothing more of it is taken under this plan.

    Args:
        text: What, and the numbers.
        owner: Which one.
        first: It has just gone too far; nobody was told yet.
    """

    def __init__(self, text: str, owner: int, first: bool) -> None:
        super().__init__(text)
        self.owner, self.first = owner, first


@dataclass
class Bucket:
    """Tokens that come at a rate, up to so many.

    Attributes:
        per_s: Tokens that come per second.
        most: Tokens that it holds; it is full at first.
        left: Tokens in it when it was last looked at.
        at: When that was, in seconds.
    """

    per_s: float
    most: float
    left: float = field(init=False)
    at: float = float("inf")

    def __post_init__(self) -> None:
        self.left = self.most

    def take(self, tokens: float, now: float) -> bool:
        """Takes tokens out; False, and none taken, where there are not so many."""
        self.left = min(self.most, self.left + max(0.0, now - self.at) * self.per_s)
        self.at = now
        if tokens > self.left:
            return False
        self.left -= tokens
        return True


@dataclass
class _Owner:
    """What one owner has sent."""

    buckets: dict[str, Bucket]
    held: int = 0
    over: str = ""


class Quota:
    """What each owner may send to one role under one plan.

    Args:
        credit_bytes: Most bytes of an owner's tensors that are here and not used up yet; a larger one may be alone.
        bytes_per_s: As they travel, with headers; None for any.
        messages_per_s: None for any.
    """

    def __init__(
        self, credit_bytes: int = 1 << 62, bytes_per_s: float | None = None, messages_per_s: float | None = None
    ) -> None:
        self._credit_bytes = credit_bytes
        self._rates = {
            "bytes": (bytes_per_s, max(float(credit_bytes), BURST_S * (bytes_per_s or 0.0))),
            "messages": (messages_per_s, BURST_S * (messages_per_s or 0.0)),
        }
        self._owners: dict[int, _Owner] = {}

    def come(self, owner: int, nbytes: int, now: float) -> None:
        """Counts a message of an owner.

        Raises:
            QuotaError: It is one too many, or one before it was.
        """
        known = self._of(owner)
        for what, tokens in (("bytes", nbytes), ("messages", 1)):
            bucket = known.buckets.get(what)
            if not known.over and bucket is not None and not bucket.take(tokens, now):
                self._refuse(
                    owner,
                    f"has sent more than {bucket.most:,.0f} {what} at once and {bucket.per_s:,.0f} per second after "
                    f"that (guard.{what}_per_s)",
                )
        self._check(owner, known)

    def hold(self, owner: int, nbytes: int) -> None:
        """Counts a whole tensor of an owner, which is here from now on.

        Raises:
            QuotaError: There is no credit for it.
        """
        known = self._of(owner)
        self._check(owner, known)
        if known.held and known.held + nbytes > self._credit_bytes:
            self._refuse(
                owner,
                f"has sent {nbytes:,} bytes while {known.held:,} of its bytes were here, which is more than its credit "
                f"of {self._credit_bytes:,} bytes (network.credit_bytes)",
            )
        known.held += nbytes

    def used(self, owner: int, nbytes: int) -> None:
        """A tensor of an owner has been used up, or dropped."""
        known = self._of(owner)
        known.held = max(0, known.held - nbytes)

    def _of(self, owner: int) -> _Owner:
        found = self._owners.get(owner)
        if found is None:
            buckets = {what: Bucket(rate, most) for what, (rate, most) in self._rates.items() if rate is not None}
            found = self._owners[owner] = _Owner(buckets)
        return found

    def _refuse(self, owner: int, text: str) -> None:
        self._owners[owner].over = f"owner {owner} {text}"
        raise QuotaError(self._owners[owner].over, owner, True)

    @staticmethod
    def _check(owner: int, known: _Owner) -> None:
        if known.over:
            raise QuotaError(known.over, owner, False)
