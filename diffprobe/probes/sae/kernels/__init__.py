"""The parts of a training step of a sparse autoencoder that are written for speed, each tested against a plain twin."""
