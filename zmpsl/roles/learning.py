"""What a run has learned of its devices and links: put into what was measured, and kept beside the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from zmpsl.checkpoint import write_text
from zmpsl.errors import JobError
from zmpsl.planner.learned import Learned
from zmpsl.planner.measured import Measured, MeasuredNode, own_link
from zmpsl.planner.problem import NodeLink
from zmpsl.profiles import Profile

__all__ = ["FROM_ROUNDS", "Kept", "with_links"]

FROM_ROUNDS = "measured while training"
FILE = "profiles.json"


class Kept(Struct, frozen=True):
    """The profiles a run was planned with, `nodes` by place; and what its rounds told of links."""

    owner: Profile
    nodes: dict[str, Profile]
    learned: Learned = Learned()

    def write(self, folder: Path) -> None:
        """Leaves it in the run's folder."""
        write_text(folder / FILE, msgspec.json.encode(self))

    @classmethod
    def read(cls, folder: Path) -> Kept:
        """Reads what `write` left.

        Raises:
            JobError: There is nothing, or something else.
        """
        try:
            return msgspec.json.decode((folder / FILE).read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise JobError(f"{folder / FILE}: cannot be used: {error}") from error


def with_links(measured: Measured, learned: Learned, hosts: Mapping[str, str]) -> Measured:
    """Puts in what is known of links between hosts, where the job says nothing of them.

    A message's way on its own device, as profiled, comes on top of the network's latency.

    Args:
        measured: What was measured before.
        learned: What rounds told.
        hosts: Host of each owner and node, by place.
    """

    def link(known: NodeLink, profile: Profile) -> NodeLink:
        here = own_link(profile)
        return NodeLink(min(known.bytes_per_s, here.bytes_per_s), known.latency_s + here.latency_s)

    def node(one: MeasuredNode) -> MeasuredNode:
        known = learned.nodes.get(hosts.get(one.name, ""))
        if one.link is not None or known is None:
            return one
        return replace(one, link=link(known, one.profile), link_from=FROM_ROUNDS)

    owners = {place: link(known, measured.owner) for place, known in learned.owners.items()}
    nodes = tuple(node(one) for one in measured.nodes)
    return replace(measured, nodes=nodes, owner_links=owners, packing=learned.packing)
