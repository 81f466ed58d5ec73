"""Kernels of the training step, written for speed. `plain.py` has a plain reference implementation of each.

`tests/probes/sae/kernels/` compares every kernel with its reference, gradients included.
"""
