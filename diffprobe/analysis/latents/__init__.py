"""Numbers and names of the latents of a sparse autoencoder, chosen on one split and measured on another."""
