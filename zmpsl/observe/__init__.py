"""Progress, events, timeline and report: what a person sees of a run."""
