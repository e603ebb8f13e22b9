"""The data room: what data owners train on, who owns which samples, and in which order they come."""

from zmpsl.data.owner import OwnerData, owner_data
from zmpsl.data.partitions import partition
from zmpsl.data.samples import Samples, Split
from zmpsl.data.sets import load

__all__ = ["OwnerData", "Samples", "Split", "load", "owner_data", "partition"]
