"""Classes of imitated devices: owners and nodes that are alike. One form for runs, estimates and simulations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from msgspec import Meta, Struct, field

__all__ = ["Compute", "Devices", "Emulate", "NodeClass", "OwnerClass", "PartSeconds", "Scenario", "class_of"]

Positive = Annotated[float, Meta(gt=0)]
Seconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]
# Whether a device computes, and what its time is taken from.
Compute = Literal["real", "timed", "none"]
COMPUTE = (
    "`real`: computes, and takes `slow_down` times as long as the host of the run; `timed`: computes, and takes the"
    " seconds that are given, or those of `profile` times `slow_down`; `none`: the same seconds, but nothing is"
    " computed, and tensors of the right shapes are sent: not a training, for trials of scale only"
)


class Part(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the sections: frozen, and an unknown key is an error."""


class PartSeconds(Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Seconds that one part takes for a whole batch on a device, as measured there."""

    forward_s: Annotated[Seconds, Meta(description="forward; of the last part with the loss")]
    backward_s: Annotated[Seconds, Meta(description="backward")]
    update_s: Annotated[Seconds, Meta(description="optimiser step")] = 0.0


class Device(Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What owners and nodes have in common."""

    count: Annotated[Count, Meta(description="how many of them")] = 1
    slow_down: Annotated[
        Positive, Meta(description="factor on all seconds, against the device of `profile` or the host of the run")
    ] = 1.0
    compute: Annotated[Compute, Meta(description=COMPUTE)] = "real"
    bytes_per_s: Annotated[
        Positive | None,
        Meta(
            description=(
                "rate of the link, each way: an owner's to all others, a node's to the node before it; null: as on"
                " loopback"
            )
        ),
    ] = None
    latency_s: Annotated[Seconds, Meta(description="latency of that link, each way")] = 0.0
    jitter_s: Annotated[
        Seconds, Meta(description="up to so much more latency for every message, drawn from the job's seed")
    ] = 0.0


class OwnerClass(Device, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Data owners that are alike."""

    name: Annotated[str, Meta(description="names the class in what a run tells")] = "owner"
    first: Annotated[
        PartSeconds | None, Meta(description="measured seconds of the first part, in place of the profile's")
    ] = None
    last: Annotated[
        PartSeconds | None, Meta(description="measured seconds of the last part, in place of the profile's")
    ] = None
    memory_bytes: Annotated[
        Positive | None, Meta(description="memory for the owner's two parts; a run that needs more is refused")
    ] = None
    batches: Annotated[
        Count, Meta(description="batches of a local epoch; owners that compute take them from their data")
    ] = 10


class NodeClass(Device, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Compute nodes that are alike; in a run all of them make the chain, in the order of the file."""

    name: Annotated[str, Meta(description="names the class")]
    memory_bytes: Annotated[Positive | None, Meta(description="memory for the node's part and its replicas")] = None
    price_per_hour: Annotated[Seconds, Meta(description="what an hour costs, in any unit")] = 0.0


class Scenario(Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Devices and what is asked of them."""

    owners: Annotated[tuple[OwnerClass, ...], Meta(min_length=1, description="classes of data owners")]
    nodes: Annotated[tuple[NodeClass, ...], Meta(min_length=1, description="classes of compute nodes")]
    profile: Annotated[
        str | None,
        Meta(
            description=(
                "file written by `zmpsl profile`, with all blocks; beside this file. Estimates and simulations need it;"
                " in a run it gives the seconds of devices with `compute: timed` or `none`"
            )
        ),
    ] = None
    time_scale: Annotated[
        Positive,
        Meta(
            description=(
                "run: seconds of the imitated devices in one second of the run; every time is divided by it, every rate"
                " multiplied"
            )
        ),
    ] = 1.0
    hops: Annotated[
        tuple[Count, ...] | None,
        Meta(description="estimate, simulate: numbers of compute nodes to look at; null: from 1 to all there are"),
    ] = None
    first_cut: Annotated[Count | None, Meta(description="first block of the nodes; null: 1, in a run the job's")] = None
    last_cut: Annotated[
        Count | None,
        Meta(description="first block of the owners' last part; null: the last block, in a run the job's"),
    ] = None
    local_epochs: Annotated[Count | None, Meta(description="r; null: 1, in a run the job's")] = None
    micro_batches: Annotated[
        Count | None,
        Meta(description="pieces of a batch, the profile being of one piece; null: 1, in a run the job's"),
    ] = None
    epochs: Annotated[Count, Meta(description="estimate, simulate: global epochs that the cost is for")] = 1
    replicas: Annotated[
        Count | None,
        Meta(description="replicas a node holds at a time; null: one per owner, in a run as many as the memory holds"),
    ] = None


Devices = TypeVar("Devices", bound=Device)


def class_of(classes: Sequence[Devices], index: int) -> Devices | None:
    """Gives the class of the device with this index, counted through all classes; None where none is that large."""
    for kind in classes:
        if index < kind.count:
            return kind
        index -= kind.count
    return None


class Emulate(Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Imitates slower devices; results do not change, times are no longer those of this machine."""

    slow_down: Annotated[
        dict[str, Annotated[float, Meta(ge=1, le=1000)]],
        Meta(description="factor on the working time of `owner` (all), `owner-2`, `node-0`, ...; the rest is slept"),
    ] = field(default_factory=dict)
    time_scale: Annotated[
        Annotated[float, Meta(gt=0)], Meta(description="seconds of the imitated devices in one second of the run")
    ] = 1.0
    owners: Annotated[
        list[OwnerClass], Meta(description="classes of owners, as `zmpsl run --emulate` fills them in")
    ] = field(default_factory=list)
    nodes: Annotated[
        list[NodeClass], Meta(description="classes of compute nodes, as `zmpsl run --emulate` fills them in")
    ] = field(default_factory=list)

    @property
    def active(self) -> bool:
        """Whether anything is imitated."""
        return bool(self.slow_down or self.owners or self.nodes)

    @property
    def thin(self) -> bool:
        """Whether somebody only pretends to compute: then the run is no training."""
        return any(kind.compute == "none" for kind in (*self.owners, *self.nodes))

    def owner(self, index: int) -> OwnerClass | None:
        """Gives the class of an owner, None where it is not imitated."""
        return class_of(self.owners, index)

    def node(self, hop: int) -> NodeClass | None:
        """Gives the class of a compute node, None where it is not imitated."""
        return class_of(self.nodes, hop)
