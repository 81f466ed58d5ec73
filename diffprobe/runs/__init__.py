"""What `diffprobe extract` and `diffprobe train` do: from a validated configuration to stores, probes and results.

The command line parses and prints; a notebook calls these functions directly.
"""
