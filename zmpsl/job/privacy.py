"""The job's section `privacy`: what an owner does to its smashed data and its parts before they leave it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from zmpsl.job.settings import Settings

__all__ = ["Privacy"]


class Privacy(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What owners do against inference from what they send; nothing where not given (see docs/privacy.md)."""

    clip_norm: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="each sample's smashed data are scaled down to at most this L2 norm; null: not at all"),
    ] = None
    noise: Annotated[
        Annotated[float, Meta(ge=0)],
        Meta(
            description=(
                "Gaussian noise on the smashed data, with a standard deviation of this times `clip_norm`; no privacy"
                " budget is accounted"
            )
        ),
    ] = 0.0
    reproducible: Annotated[
        bool,
        Meta(
            description=(
                "noise follows from the job's seed: for experiments only, as whoever knows the job can take it off"
                " again; else from a secret that each owner's process draws at its start"
            )
        ),
    ] = False
    nopeek: Annotated[
        Annotated[float, Meta(ge=0)],
        Meta(
            description=(
                "weight of the squared distance correlation between raw inputs and smashed data in the owner's loss"
                " (NoPeek)"
            )
        ),
    ] = 0.0
    secure_average: Annotated[
        bool,
        Meta(
            description=(
                "owners mask what they hand in to the aggregator, so that it learns only their average; needs 3 owners"
                " or more, and zmpsl[secure] where they run"
            )
        ),
    ] = False
    max_share: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        Meta(description="largest share of the model's trained parameters that one compute node may hold; null: any"),
    ] = None

    @property
    def shapes(self) -> bool:
        """True where smashed data or the owner's loss are changed."""
        return self.clip_norm is not None or self.nopeek > 0
