"""Tasks, wire format, credits, and the two ends of a hop."""
