"""Parts, replicas and the computations on them; no sockets, no clocks."""
