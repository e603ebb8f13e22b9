"""Who may say what: binds messages to the keys they come with. Guard at the manager, Border at every other role.

A connection is let in by its key (zmpsl.transport.curve). What is said over it is then held against the same key: a
member may take only its role and place, and speak on the data plane only in the name of the places it holds.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from zmpsl.errors import JobError, JoinError, RemoteProtocolError
from zmpsl.keys import Allowed, read_allowed
from zmpsl.messages import Join, Submit, ToManager
from zmpsl.plan import AGGREGATOR, Plan, Rates, node_name, owner_name
from zmpsl.transport.curve import CONTROL, DATA, Gate
from zmpsl.transport.task import Task
from zmpsl.transport.wire import OWNER_SENDER

__all__ = ["MAX_REJECTED", "Border", "Guard", "sender_of"]

log = logging.getLogger("zmpsl")

# So many messages that no honest member sends; whoever sends more is sent away.
MAX_REJECTED = 100
# Strangers that are told of by key; beyond, they are only refused.
MAX_TOLD = 1000


class Guard:
    """The manager's side: the allow-list, and what each key may say.

    Args:
        path: The allow-list.
        gate: Told which keys may connect.

    Raises:
        JobError: The list is missing or damaged.
    """

    def __init__(self, path: Path, gate: Gate) -> None:
        self._path = path
        self._gate = gate
        self._stamp = self._look()
        self._members = read_allowed(path).by_key()
        self._told: set[str] = set()
        gate.allow(CONTROL, frozenset(self._members), final=True)

    @property
    def rates(self) -> dict[str, Rates]:
        """What keys may send, of those that have limits."""
        found = {key: Rates(member.bytes_per_s, member.messages_per_s) for key, member in self._members.items()}
        return {key: rates for key, rates in found.items() if rates != Rates()}

    def check(self, user: str, holder: str, message: ToManager, held: Iterable[str]) -> ToManager:
        """Checks a message; gives it with the key it came with.

        Nothing is kept of who speaks: a connection may give itself any name, and what it says without a place is not
        heard. What counts is the name that a member has joined under.

        Args:
            user: The key of the connection.
            holder: The key of the member that has joined under the connection's name, empty where none has.
            message: What was said.
            held: The keys of all others that hold a place, once per place; only looked at when somebody joins.

        Raises:
            RemoteProtocolError: The key has been revoked, or it is another's name.
            JoinError: The key is not for that role or place, or holds as many as it may.
        """
        member = self._members.get(user)
        if member is None:
            raise RemoteProtocolError(f"{type(message).__name__} with key {user[:8]}..., which is not in {self._path}")
        if holder not in ("", user):
            raise RemoteProtocolError(f"{member.name} says {type(message).__name__} in the name of another connection")
        if isinstance(message, Submit) and member.role not in ("operator", "owner"):
            raise JoinError(f"the key of {member.name} is for role {member.role}; jobs are submitted by operators")
        return self._check_join(member, message, held) if isinstance(message, Join) else message

    def refresh(self) -> list[tuple[str, str]]:
        """Reads the list again when its file has changed.

        Returns:
            Key and name of those that are no longer on it, or not for the same role.

        Raises:
            JobError: It is missing or damaged; the list is as before.
        """
        stamp = self._look()
        if stamp == self._stamp:
            return []
        self._stamp = stamp
        before, self._members = self._members, read_allowed(self._path).by_key()
        self._gate.allow(CONTROL, frozenset(self._members), final=True)
        return [
            (key, member.name)
            for key, member in before.items()
            if key not in self._members or self._members[key].role != member.role
        ]

    def strangers(self) -> list[str]:
        """Who was not let in since the last call, in words; each key once."""
        told = []
        for denial in self._gate.denials():
            if denial.public not in self._told and len(self._told) < MAX_TOLD:
                self._told.add(denial.public)
                told.append(
                    f"refused a connection from {denial.address}: its key {denial.public} is not in {self._path}; "
                    "if you know whose it is, say: zmpsl keys add NAME.pub"
                )
        return told

    def _check_join(self, member: Allowed, join: Join, held: Iterable[str]) -> Join:
        if join.role != "observer":
            if join.role != member.role:
                raise JoinError(f"the key of {member.name} is for role {member.role}, not for {join.role}")
            if member.place and join.place not in ("", member.place):
                raise JoinError(f"the key of {member.name} is for place {member.place}, not for {join.place}")
            if sum(key == member.public for key in held) >= member.places:
                raise JoinError(f"the key of {member.name} holds {member.places} places already; it may hold no more")
            join = msgspec.structs.replace(join, place=member.place or join.place)
        return msgspec.structs.replace(join, public=member.public)

    def _look(self) -> tuple[int, int, int]:
        try:
            stat = self._path.stat()
        except OSError as error:
            raise JobError(f"cannot read {self._path}: {error.strerror}") from error
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


class Border:
    """A member's side: only peers of the plan connect, and each speaks only for the places it holds.

    Args:
        gate: Told which keys may connect; None where links are not protected, then everybody may say everything.
    """

    def __init__(self, gate: Gate | None) -> None:
        self._gate = gate
        self._places: dict[str, frozenset[str]] = {}
        self._faults: Counter[str] = Counter()
        self._vouched = False
        self._refused: Counter[str] = Counter()

    def admit(self, plan: Plan) -> None:
        """Lets the peers of a plan in, and nobody else."""
        if self._gate is not None:
            self._places = {
                peer.public: frozenset(each.name for each in plan.peers if each.public == peer.public)
                for peer in plan.peers
            }
            self._gate.allow(DATA, frozenset(self._places), final=False)

    def begin(self) -> None:
        """The next message comes; nobody has vouched for it."""
        self._vouched = False

    def vouch(self, task: Task, user: str) -> None:
        """Checks that a key may send in the name of the place a task says it is from.

        Raises:
            RemoteProtocolError: It may not.
        """
        self._vouched = self._gate is None
        if self._vouched:
            return
        name, places = sender_of(task), self._places.get(user, frozenset())
        if name not in places:
            raise RemoteProtocolError(f"{task}: in the name of {name} with the key of {self._named(user)}")
        self._vouched = True

    def blame(self, user: str) -> str | None:
        """Counts a message of a peer that was not used.

        Messages that were in order but came too late do not count: a fault elsewhere makes honest peers send them.

        Returns:
            The place of the peer, when it has just gone too far.
        """
        late, self._vouched = self._vouched, False
        if late or user not in self._places:
            return None
        self._faults[user] += 1
        return self._named(user) if self._faults[user] == MAX_REJECTED else None

    def tell_strangers(self) -> None:
        """Logs who was not let in, ever more rarely."""
        for denial in self._gate.denials() if self._gate is not None else []:
            if denial.address not in self._refused and len(self._refused) >= MAX_TOLD:
                continue
            self._refused[denial.address] += 1
            count = self._refused[denial.address]
            if count & (count - 1) == 0:
                log.warning(
                    "refused a connection from %s: its key %s... is not in the plan (%d so far)",
                    denial.address, denial.public[:16], count,
                )  # fmt: skip

    def _named(self, user: str) -> str:
        return ", ".join(sorted(self._places.get(user, ()))) or f"a stranger ({user[:8]}...)"


def sender_of(task: Task) -> str:
    """Gives the place name of who says it sent a task."""
    if task.sender == OWNER_SENDER:
        return owner_name(task.owner)
    return AGGREGATOR if task.sender == 0 else node_name(task.sender - 1)
