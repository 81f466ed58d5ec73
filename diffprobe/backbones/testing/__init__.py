"""Tiny networks and tokenizers with random weights, in the real formats, for the tiny checkpoints of families."""
