"""One role at work, without sockets: arrived tasks wait here by urgency, outboxes and credits are kept here.

A driver brings in what arrived (`take`), asks for the next piece of work (`next_work`) and carries out its actions:
zmpsl.loops.member with sockets, zmpsl.launch.memory without.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Iterator
from itertools import count

from zmpsl.errors import RemoteProtocolError
from zmpsl.job.codec import Spec, packs, parse_spec
from zmpsl.job.schema import Codec as CodecSettings
from zmpsl.kernels import KERNELS, NOT_NATIVE
from zmpsl.messages import Accuse
from zmpsl.plan import AGGREGATOR, node_name, owner_name
from zmpsl.roles.actions import Action, Connect, Say, Send
from zmpsl.roles.member import Member
from zmpsl.security import sender_of
from zmpsl.stats import LinkStats
from zmpsl.transport.address import leaves_host
from zmpsl.transport.damage import DamagedError
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.packing import Packer, Tally, Unpacker
from zmpsl.transport.quota import Quota, QuotaError
from zmpsl.transport.task import Op, Task
from zmpsl.transport.tcp_info import Reading
from zmpsl.transport.wire import HEADER_BYTES, OWNER_SENDER, Header

__all__ = ["URGENCY", "Station", "codec_for"]

log = logging.getLogger("zmpsl")

# Backward first: it frees activations and keeps the owner's next step from waiting.
# CLOSE no later than FORWARD: it frees a replica another owner may wait for.
URGENCY = {Op.BACKWARD: 0, Op.FORWARD: 1, Op.CLOSE: 1, Op.EVALUATE: 1, Op.GLOBAL: 1, Op.PART: 2}


def codec_for(settings: CodecSettings, me: str, peer: str) -> Callable[[Op], Spec]:
    """Gives the codec of each kind of task on the link from `me` to `peer`."""
    by_kind = {
        Op.FORWARD: settings.activations, Op.EVALUATE: settings.activations, Op.BACKWARD: settings.gradients,
        Op.PART: settings.parts, Op.GLOBAL: settings.parts,
    }  # fmt: skip
    ends = [[name, name.split("-")[0]] if name.startswith("owner") else [name] for name in (me, peer)]
    special = [settings.links[f"{a}>{b}"] for a in ends[0] for b in ends[1] if f"{a}>{b}" in settings.links]
    return lambda op: parse_spec(special[0] if special else by_kind.get(op, "none"))


class Station:
    """A member with what waits for it and what waits to leave it.

    Attributes:
        outboxes: By place name of the peer.
        packers: The same, how their tensors are packed.
        unpack: Unpacks what arrives.
        quota: What owners may send to us.
        clock: The time in seconds, for that.
        strays: Tasks that were whole but not for us, and were dropped.
    """

    def __init__(self, member: Member) -> None:
        self.member = member
        self.outboxes: dict[str, Outbox] = {}
        self.packers: dict[str, Packer] = {}
        self._tallies: dict[str, Tally] = {}
        self.unpack = Unpacker(member.known_mask)
        self.quota = Quota()
        self.clock = time.monotonic
        self.strays = 0
        self._waiting: list[tuple[int, int, Task]] = []
        self._parked: list[tuple[int, int, Task]] = []  # there is no room for them now
        self._order = count()
        self._far: frozenset[str] = frozenset()  # peers whose address is none of this host alone
        member.links = self.traffic  # type: ignore[method-assign]
        member.restrict = lambda rates: self.quota.limit(rates)  # type: ignore[method-assign]

    def disconnect(self) -> None:
        """Forgets peers and all that waits; what is under way on the links is lost."""
        self.outboxes.clear()
        self.packers.clear()
        self.clear()

    def connect(self, action: Connect) -> None:
        """Makes an outbox for every peer of the plan."""
        if packs(action.plan.job.codec) and not KERNELS.native:
            log.warning(NOT_NATIVE)
        job, keys = action.plan.job, {peer.name: peer.public for peer in action.plan.peers}
        self.quota = Quota(job.network.credit_bytes, job.guard.bytes_per_s, job.guard.messages_per_s)
        self.quota.limit(action.plan.rates)
        self._far = frozenset(name for name, endpoint in action.peers.items() if leaves_host(endpoint))
        for name in action.peers:
            me = self.member.place
            packer = Packer(f"{me}>{name}", codec_for(job.codec, me, name))
            # Connected anew: what was counted before still counts, what was measured or left to make up does not.
            packer.tally = self._tallies.setdefault(name, packer.tally)
            self.packers[name] = packer
            authentic = bool(keys[name])  # CURVE lets no changed byte through
            sealed = job.network.checksum == "always" or (job.network.checksum == "auto" and not authentic)
            outbox = Outbox(action.sender, packer, job.network.credit_bytes, sealed=sealed)
            outbox.plan = action.plan.version
            self.outboxes[name] = outbox

    def send(self, action: Send) -> None:
        """Queues a task for a peer."""
        self.outboxes[action.to].push(self.packers[action.to].queued(action.task))

    def measured(self, peer: str, look: Callable[[], Reading | None]) -> None:
        """Measures the link to a peer, where it leads to another host, or a codec is chosen by it.

        `look` gives what the kernel knows of it.
        """
        packer = self.packers[peer]
        if (packer.adaptive or peer in self._far) and (reading := look()) is not None:
            packer.rate.read(*reading)

    def traffic(self) -> dict[str, LinkStats]:
        """Gives what was sent on each kind of link since the start, `node-0>owner` being those to all owners."""
        me, links = _kind(self.member.place), dict[str, LinkStats]()
        for peer, tally in self._tallies.items():
            packer, name = self.packers.get(peer), f"{me}>{_kind(peer)}"
            sent = LinkStats(
                raw_bytes=tally.raw_bytes,
                packed_bytes=tally.packed_bytes,
                encode_s=tally.encode_s,
                codecs=dict(tally.codecs),
                chosen="" if packer is None else packer.chosen,
                bytes_per_s=0.0 if packer is None else packer.rate.bytes_per_s or 0.0,
                latency_s=0.0 if packer is None else packer.rate.latency_s,
            )
            links[name] = links[name].plus(sent) if name in links else sent
        for sender, seconds in self.unpack.seconds.items():
            name = f"{_SENDERS.get(sender) or node_name(sender - 1)}>{me}"
            links[name] = links.get(name, LinkStats()).plus(LinkStats(decode_s=seconds))
        return links

    def take(self, header: Header, task: Task | None) -> str | None:
        """Takes in a message.

        Args:
            header: Of the message; the credit in it counts at once.
            task: The task, when this message made it whole.

        Returns:
            Place name of the peer whose outbox got credit, if one did.

        Raises:
            RemoteProtocolError: The task or credit is not for us; it is dropped and counted.
            QuotaError: Its owner has sent more than it may; the same holds.
        """
        by_owner = header.task.sender == OWNER_SENDER
        try:
            if by_owner:
                self._count(header)
            granted = self._grant(header) if header.credit else None
            if task is not None and task.op is not Op.CREDIT:
                self.member.admit(task)
                self.member.inspect(task)
                if by_owner:
                    self.quota.hold(task.owner, task.nbytes)
                heapq.heappush(self._waiting, (URGENCY[task.op], next(self._order), task))
        except RemoteProtocolError:
            self.strays += 1
            if task is not None:
                self._used_up(task)  # dropped is used up too: else its owner could never send again
            raise
        return granted

    def lost(self, error: RemoteProtocolError) -> Iterator[Action]:
        """Tells the manager why a message was not used, where it has to know.

        One that was changed on the way is lost, if anybody waits for it: the round begins again. With keys nothing can
        be changed on the way; then it was sent like that, and whoever does it is blamed for it. An owner that sends
        more than it may is accused.
        """
        if isinstance(error, QuotaError) and error.first:
            yield Say(Accuse(place=owner_name(error.owner), text=str(error)))
        plan = self.member.plan
        if not isinstance(error, DamagedError) or plan is None or error.task.plan != plan.version:
            return
        peer = next((peer for peer in plan.peers if peer.name == sender_of(error.task)), None)
        if peer is not None and not peer.public and peer.name in self.outboxes and plan.takes_part(error.task.owner):
            yield from self.member.broken(peer.name, f"{self.member.place} got damaged bytes: {peer.name}, {error}")

    def next_work(self) -> Iterator[Action] | None:
        """Gives the most urgent piece of work, None when there is nothing to do now."""
        self._park()
        if self._waiting:
            return self._handle(heapq.heappop(self._waiting)[2])
        return self.member.idle() if self.member.wants_work() else None

    def has_work(self) -> bool:
        """Tells whether `next_work` would give something."""
        self._park()
        return bool(self._waiting) or self.member.wants_work()

    def owes(self) -> bool:
        """Tells whether credit is owed to a peer."""
        return any(outbox.owes for outbox in self.outboxes.values())

    def give_back_credit(self) -> list[str]:
        """Returns all credit that is owed, for when there is nothing else to do; gives the peers it goes to."""
        for outbox in self.outboxes.values():
            outbox.give_back_all()
        return [name for name, outbox in self.outboxes.items() if outbox]

    def clear(self) -> None:
        """Drops what waits."""
        self._waiting.clear()
        self._parked.clear()

    def _park(self) -> None:
        """Parks what there is no room for; its sender gets no credit back meanwhile, so this is bounded."""
        if self._parked and self.member.more_room():
            self._unpark()
        while self._waiting and not self.member.has_room(self._waiting[0][2]):
            self._parked.append(heapq.heappop(self._waiting))

    def _handle(self, task: Task) -> Iterator[Action]:
        try:
            self.member.admit(task)  # again: the round may have ended while it waited, and then it has come twice
        except RemoteProtocolError:
            self.strays += 1
            self._done(task)
            return
        try:
            yield from self.member.handle(task)
        except RemoteProtocolError as error:
            # Something before it was lost, on a connection that is there again. No task is repeated: the round is.
            self.strays += 1
            yield from self.member.broken(sender_of(task), str(error))
            return
        if task.op is Op.CLOSE:
            self._unpark()
        self._done(task)

    def _count(self, header: Header) -> None:
        """Holds a message of an owner of the plan against what it may send."""
        plan, task = self.member.plan, header.task
        if plan is not None and task.plan == plan.version and plan.takes_part(task.owner):
            self.quota.come(task.owner, HEADER_BYTES + header.size, self.clock())

    def _done(self, task: Task) -> None:
        if task.sender == OWNER_SENDER:
            self.quota.used(task.owner, task.nbytes)
        self._used_up(task)

    def _unpark(self) -> None:
        for parked in self._parked:
            heapq.heappush(self._waiting, parked)
        self._parked.clear()

    def _used_up(self, task: Task) -> None:
        """Notes that the sender of a task gets its credit back."""
        outbox, plan = self.outboxes.get(sender_of(task)), self.member.plan
        if outbox is not None and plan is not None and task.plan == plan.version and plan.takes_part(task.owner):
            outbox.owe(task.owner, task.nbytes)

    def _grant(self, header: Header) -> str:
        task, plan = header.task, self.member.plan
        name = sender_of(task)
        if name not in self.outboxes or plan is None or task.plan != plan.version or not plan.takes_part(task.owner):
            raise RemoteProtocolError(f"{task}: credit from somebody who is no neighbour")
        self.outboxes[name].grant(task.owner, header.credit)
        return name


_SENDERS = {OWNER_SENDER: "owner", 0: AGGREGATOR}


def _kind(place: str) -> str:
    """Names the place without the number of an owner."""
    return "owner" if place.startswith("owner") else place
