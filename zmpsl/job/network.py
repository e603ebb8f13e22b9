"""The job's fields of links and of lost roles: limits, deadlines, what happens when a role is lost."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from zmpsl.job.settings import Settings

__all__ = ["Network", "Recover"]

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Network(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sockets, limits and deadlines."""

    credit_bytes: Annotated[
        Annotated[int, Meta(ge=1 << 16)], Meta(description="bytes an owner may have under way on one link")
    ] = 64 << 20
    max_tensor_bytes: Annotated[
        Annotated[int, Meta(ge=1 << 16, le=1 << 40)],
        Meta(description="a message that claims more than this is refused before memory is touched"),
    ] = 1 << 30
    join_timeout_s: Annotated[
        Seconds, Meta(description="how long the manager waits for all roles to join and be ready")
    ] = 120.0
    lost_after_s: Annotated[Seconds, Meta(description="how long a role may be out of reach before it is lost")] = 3.0
    checksum: Annotated[
        Literal["auto", "always", "never"],
        Meta(
            description=(
                "a checksum for every chunk of a tensor, so that bits that were flipped on the way are noticed and the"
                " round is begun again; `auto`: on links without keys, for keys notice it anyway"
            )
        ),
    ] = "auto"
    jitter_s: Annotated[
        Annotated[float, Meta(ge=0, le=10)],
        Meta(description="random delay before each message, to show that timing changes no result"),
    ] = 0.0


class Recover(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What happens when a role is lost: the round is begun again from the last committed one."""

    wait_s: Annotated[
        Annotated[float, Meta(ge=0)],
        Meta(description="how long the run waits for a lost role to come back; 0 ends the run when a role is lost"),
    ] = 30.0
    standby_after_s: Annotated[
        Annotated[float, Meta(ge=0)],
        Meta(description="how long a lost compute node has before a stand-by node (`--place standby`) takes its place"),
    ] = 5.0
    fewer_nodes: Annotated[
        bool,
        Meta(
            description=(
                "go on with the compute nodes that are left, under new cuts, when one is not back after `wait_s`; every"
                " role must be able to read all part files of the last checkpoint"
            )
        ),
    ] = False
    manager_wait_s: Annotated[
        Annotated[float, Meta(ge=0)],
        Meta(description="how long the other roles go on without the manager before they give up"),
    ] = 60.0
    silent_s: Annotated[
        Seconds,
        Meta(
            description=(
                "a role that says nothing for so long hangs, and counts as lost though it is connected; longer than any"
                " one batch takes on any device"
            )
        ),
    ] = 600.0
    still_s: Annotated[
        Seconds,
        Meta(
            description=(
                "how long a round may stand still, while everybody says that there is nothing to do and no byte moves,"
                " before it is begun again: something was lost of which nobody could tell"
            )
        ),
    ] = 30.0
    round_s: Annotated[
        Seconds | None,
        Meta(
            description=(
                "how long an owner may take to train a round, from when it is told to begin; who takes longer is lost,"
                " and left out at once where the `quorum` holds without it; null: as long as it takes"
            )
        ),
    ] = None
    stalled_s: Annotated[
        Literal["auto", "never"] | Seconds,
        Meta(
            description=(
                "an owner that trains no batch for so long gives its place to one that waits, where there is not memory"
                " for all at once; nodes write its replica to disk and read it back when it goes on, which changes no"
                " result. `auto`: ten times as long as batches take, and at least 10 s"
            )
        ),
    ] = "auto"
    attempts: Annotated[Count, Meta(description="how often one round may be begun again before the run ends")] = 20
    quorum: Annotated[
        Share,
        Meta(
            description=(
                "share of the owners a round needs: lost owners that are not back after `wait_s` are left out, and"
                " take part again from the round after they come back"
            )
        ),
    ] = 1.0
