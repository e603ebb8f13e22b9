"""Tried out on this machine: codecs on a tensor, links of a rate, what a message and storing a part cost."""
