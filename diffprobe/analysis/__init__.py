"""What a trained probe means: top samples, latent and direction panels, intervals and permutation tests."""
