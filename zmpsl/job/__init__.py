"""A job: what is to be trained, on which data, cut where, and how. Frozen values; every default lives in schema.py."""

from zmpsl.job.load import load_job, parse_job
from zmpsl.job.schema import (
    Codec,
    Data,
    Evaluate,
    Job,
    LearningRate,
    Model,
    Network,
    Optimizer,
    Partition,
    Train,
)

__all__ = [
    "Codec", "Data", "Evaluate", "Job", "LearningRate", "Model", "Network", "Optimizer", "Partition", "Train",
    "load_job", "parse_job",
]  # fmt: skip
