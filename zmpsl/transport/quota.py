"""How much an owner may send: bytes under way, and bytes and messages per second. No socket in here, and no clock.

Credits tell a sender what it may send; this looks whether it keeps to them, for who does not could fill the receiver's
memory. Bytes and messages per second are counted by a token bucket: it fills at the rate that is allowed, holds what
may come within `BURST_S` at once, and never less than all credit, for honest owners send that much without waiting. The
rate is the job's or that of the owner's key in the allow-list, whichever is less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zmpsl.errors import RemoteProtocolError
from zmpsl.plan import Rates

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
        rule: What says so.
        left: Tokens in it when it was last looked at.
        at: When that was, in seconds.
    """

    per_s: float
    most: float
    rule: str = ""
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
        self._of_job = Rates(bytes_per_s, messages_per_s)
        self._of_keys: Mapping[int, Rates] = {}
        self._owners: dict[int, _Owner] = {}

    def limit(self, rates: Mapping[int, Rates]) -> None:
        """Replaces what the owners' keys may send, beside what the job says of all; what was counted still counts."""
        self._of_keys = rates
        for owner, known in self._owners.items():
            before, known.buckets = known.buckets, self._buckets(owner)
            for what, bucket in known.buckets.items():
                if what in before:
                    bucket.left, bucket.at = min(bucket.left, before[what].left), before[what].at

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
                    f"has sent more than {bucket.most:,.10g} {what} at once and {bucket.per_s:,.10g} per second after "
                    f"that ({bucket.rule})",
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
            found = self._owners[owner] = _Owner(self._buckets(owner))
        return found

    def _buckets(self, owner: int) -> dict[str, Bucket]:
        """Gives full buckets for what is limited, at the stricter of the two rates."""
        job, key, buckets = self._of_job, self._of_keys.get(owner, Rates()), {}
        for what, least in (("bytes", float(self._credit_bytes)), ("messages", 1.0)):
            name = f"{what}_per_s"
            said = [(getattr(job, name), f"guard.{name}"), (getattr(key, name), f"{name} of its key, zmpsl keys list")]
            found = [(rate, rule) for rate, rule in said if rate is not None]
            if found:
                rate, rule = min(found)
                buckets[what] = Bucket(rate, max(least, BURST_S * rate), rule)
        return buckets

    def _refuse(self, owner: int, text: str) -> None:
        self._owners[owner].over = f"owner {owner} {text}"
        raise QuotaError(self._owners[owner].over, owner, True)

    @staticmethod
    def _check(owner: int, known: _Owner) -> None:
        if known.over:
            raise QuotaError(known.over, owner, False)
