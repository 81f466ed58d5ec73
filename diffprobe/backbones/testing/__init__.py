"""Tiny networks and tokenizers with random weights, in the real formats, from which families build theirs for tests."""
