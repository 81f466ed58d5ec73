"""Analysis of trained probes: top samples, selection of latents, ends of directions, loss recovered, intervals."""
