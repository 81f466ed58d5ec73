"""Training of diffusion models: autoencoder, text encoder, denoiser, and their export in diffusers' format.

Independent of `diffprobe.training`, which trains probes. `run_settings.py` holds the contract of a run's configuration.
"""
