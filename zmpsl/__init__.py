"""zmpsl: multihop parallel split learning over ZeroMQ (MP-SL, arXiv 2402.00208)."""

__version__ = "0.1.0"
