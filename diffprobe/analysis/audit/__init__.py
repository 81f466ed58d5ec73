"""Audits of prompt latents: associations of subjects with attributes, their intervals and tests, and rates."""
