"""The profiles that a run is planned with: an owner's of the ends, then one of every host that has compute nodes.

Nodes on one host count as equal, so the first measures for all. Nobody else works meanwhile, so the figures are those
of a quiet machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from zmpsl.errors import RemoteProtocolError
from zmpsl.job.schema import Job
from zmpsl.messages import Measure
from zmpsl.plan import micro_samples, owner_name
from zmpsl.profiles import Profile, cut_profile, read_profile
from zmpsl.roles.actions import Action, Tell
from zmpsl.roles.roster import Seat

__all__ = ["Gathered"]


class Gathered:
    """Asks for profiles and keeps them.

    Attributes:
        owner: Profile of an owner's ends, once it is here.
    """

    def __init__(self) -> None:
        self.owner: Profile | None = None
        self._by_host: dict[str, Profile | None] = {}

    def start(self, job: Job, owner: Seat, nodes: Sequence[Seat]) -> Iterator[Action]:
        """Asks the first owner; where the job names a file, nobody is asked.

        Raises:
            JobError: The file is damaged.
        """
        if job.planning.profile is None:
            yield Tell(owner.identity, Measure(job=job))
            return
        found = read_profile(Path(job.planning.profile))
        self.owner = cut_profile(found, job, micro_samples(job))
        self._by_host = dict.fromkeys((seat.join.host for seat in nodes), self.owner)

    def hear(self, job: Job, seat: Seat, profile: Profile, nodes: Callable[[], Sequence[Seat]]) -> Iterator[Action]:
        """Takes a profile; after the owner's asks one node of every host, of `nodes` as they are then.

        Raises:
            RemoteProtocolError: It was not asked for.
        """
        if self.owner is None and seat.place == owner_name(0):
            self.owner = profile
            for node in nodes():
                if node.join.host not in self._by_host:
                    self._by_host[node.join.host] = None
                    shape, dtype = profile.input_shape, profile.input_dtype
                    yield Tell(node.identity, Measure(job=job, input_shape=shape, input_dtype=dtype))
        elif self.owner is not None and seat.join.role == "compute" and self._by_host.get(seat.join.host, "") is None:
            self._by_host[seat.join.host] = profile
        else:
            raise RemoteProtocolError(f"{seat.place} sends a profile nobody asked it for")

    @property
    def complete(self) -> bool:
        """Whether everybody has answered."""
        return self.owner is not None and bool(self._by_host) and None not in self._by_host.values()

    def of(self, node: Seat) -> Profile | None:
        """Gives the profile that counts for a compute node, None where its host was not asked."""
        return self._by_host.get(node.join.host)

    def cut(self, job: Job) -> None:
        """Cuts all of them to the micro-batches that the job has by now."""
        size = micro_samples(job)
        self.owner = None if self.owner is None else cut_profile(self.owner, job, size)
        self._by_host = {
            host: None if each is None else cut_profile(each, job, size) for host, each in self._by_host.items()
        }
