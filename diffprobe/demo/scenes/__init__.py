"""`diffprobe demo scenes`: the rendered world, samples of its twin models, and planted against generated rates."""
