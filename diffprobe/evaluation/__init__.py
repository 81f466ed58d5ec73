"""What `diffprobe eval` and `diffprobe report` do with what is already trained.

Evaluations (a backbone on held-out images, what an autoencoder costs its backbone) take a validated config, run the
measurement and write `result.json`. `run_report.py` writes the page of finished runs; the panels of pages are here too,
since they read stores, probes and images, which `report` does not.
"""
