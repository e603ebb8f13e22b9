"""The job's section `guard`: what is refused of data owners although it has the right form."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from zmpsl.job.settings import Settings

__all__ = ["Guard"]


class Guard(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits to what an owner may do to the model; none where not given. Who goes beyond is sent away by name."""

    gradient_norm: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description=(
                "most L2 norm of the gradient that an owner sends for one micro-batch; the last compute node looks;"
                " null: any"
            )
        ),
    ] = None
    bytes_per_s: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description=(
                "most bytes per second, with headers, that an owner sends to one role over the time of a plan; ten"
                " seconds' worth, and no less than `network.credit_bytes`, may come at once; where the owner's key has"
                " a limit in the allow-list too, the stricter holds; null: any"
            )
        ),
    ] = None
    messages_per_s: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description=(
                "most messages per second of an owner to one role, a chunk of 1 MiB each; ten seconds' worth may come"
                " at once; where the owner's key has a limit in the allow-list too, the stricter holds; null: any"
            )
        ),
    ] = None
    update_norm: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description=(
                "most L2 norm of what an owner's round changes in the parameters of one compute node's part, or of the"
                " owner's two parts together (of these from the second round on: the aggregator has no weights before);"
                " null: any"
            )
        ),
    ] = None
