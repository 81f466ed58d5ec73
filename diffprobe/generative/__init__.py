"""Training of diffusion models: autoencoder, text encoder and denoiser, and their export in diffusers' format.

Independent of `diffprobe.training`, which trains probes. The contract of a run's configuration is in `run_settings.py`;
training objectives of the denoiser are in `objectives/`, one file each.
"""
