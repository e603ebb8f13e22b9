"""Memory of a compute node: how much there is, what a replica costs, who holds one. Needs neither torch nor sockets."""
