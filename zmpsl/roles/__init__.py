"""Manager, aggregator, compute node, data owner: events in, actions out."""
