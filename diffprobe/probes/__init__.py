"""Probes: what is trained or fitted on features. Plain modules that a notebook can use without Lightning.

Kinds: `sae` (sparse codes), `classify` (class heads), `direction` (one axis each). One file a probe; the file's name is
its name in a config. `training` wraps them for a Trainer.
"""

SHARED = ("score", "serialization", "shuffled_labels")
"""What is not a kind of probe that is fitted on features: shared code, and `score`, which reads the model itself."""
