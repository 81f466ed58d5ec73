"""What `diffprobe eval` does: measure a backbone on held-out images, and what an autoencoder costs the backbone.

Each file takes a validated config, runs the measurement and writes `result.json`.
"""
