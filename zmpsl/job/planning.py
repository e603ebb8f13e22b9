"""The job's section `planning`: how `cuts: auto` is solved, and what compute nodes may hold."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from zmpsl.job.settings import Settings

__all__ = ["Planning"]

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class Planning(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How `cuts: auto` is solved."""

    solver: Annotated[
        Literal["dp", "mip", "path"],
        Meta(description="`dp` dynamic programme, `mip` python-mip, `path` shortest paths; all are exact"),
    ] = "dp"
    objective: Annotated[
        Literal["pace", "sum"],
        Meta(description="`pace`: the slowest node's seconds per batch; `sum`: the paper's L_fwd + L_back"),
    ] = "pace"
    memory_model: Annotated[
        Literal["real", "paper"],
        Meta(description="`real`: what a node needs; `paper`: weights and output activations of all replicas"),
    ] = "real"
    node_memory: Annotated[
        dict[str, Annotated[int, Meta(ge=0)]],
        Meta(
            description=(
                "bytes that compute nodes may use for their part and its replicas, such as `node-0: 2000000000`: bounds"
                " the cuts and the owners in flight, as `memory` does for the whole process; the lesser holds"
            )
        ),
    ] = field(default_factory=dict)
    max_blocks: Annotated[
        Count | dict[str, Count] | None,
        Meta(
            description=(
                "the most blocks that each compute node may hold, or those named, such as `node-0: 3`; null: any. Holds"
                " for all cuts, solved or not"
            )
        ),
    ] = None
    optional_nodes: Annotated[
        bool | list[str],
        Meta(
            description=(
                "auto: compute nodes that may stay without blocks where that is better, all or those listed; they leave"
                " the chain at the start and stand by"
            )
        ),
    ] = False
    cut_again: Annotated[
        bool,
        Meta(
            description=(
                "auto: cut anew between rounds when links, as measured while training, make other cuts faster by a"
                " tenth; every role must be able to read all part files of the last checkpoint; not with"
                " `optimizer.state: keep`. Without, it is only said"
            )
        ),
    ] = False
    profile: Annotated[
        str | None, Meta(description="file written by `zmpsl profile`, taken for all roles instead of measuring")
    ] = None
    budget_s: Annotated[
        Seconds, Meta(description="seconds each role may measure, after one run of every block to warm up")
    ] = 0.5
    owner_bytes_per_s: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="rate of an owner's link, each way; null: as on loopback")
    ] = None
    node_bytes_per_s: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="rate of the link between two compute nodes, each way; null: as on loopback"),
    ] = None
    latency_s: Annotated[
        Annotated[float, Meta(ge=0)], Meta(description="latency of these links, where a rate is given")
    ] = 0.0

    def most_blocks(self, node: str) -> int | None:
        """Gives the most blocks that a compute node may hold, None for any number."""
        return self.max_blocks.get(node) if isinstance(self.max_blocks, dict) else self.max_blocks

    def may_stay_unused(self, node: str) -> bool:
        """Tells whether a compute node may be left without blocks."""
        return self.optional_nodes if isinstance(self.optional_nodes, bool) else node in self.optional_nodes

    @property
    def named_nodes(self) -> set[str]:
        """Places that something is said of, which nodes must keep."""
        blocks = self.max_blocks if isinstance(self.max_blocks, dict) else ()
        return {*self.node_memory, *blocks, *([] if isinstance(self.optional_nodes, bool) else self.optional_nodes)}
