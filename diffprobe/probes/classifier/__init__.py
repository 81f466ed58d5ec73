"""Classifiers on features: one file per head; the name of the file is `probe.name`.

A file offers

- `Config`, a subclass of `ClassifierConfig`: the keys below `probe.params`;
- `make(config, d_in, n_classes, *, seed) -> nn.Module`: a head that maps standardised features (batch, d_in) to logits
  (batch, n_classes). Torch's generator is seeded around the call, so that layers initialise themselves reproducibly. A
  head without weights to train is a `MemoryHead`, which keeps the training samples;
- for a head of maps `READS = "map"` (one cell), `"maps"` or `"cells"` (all cells together, see `inputs.py`); its `make`
  gets, in place of `d_in`, the shapes: cell -> (channels, height, width). The head takes vectors apart by `maps_of`;
- optionally `make_bank(config, d_in, n_classes, seeds) -> Bank`: all heads on one feature in one module, where that is
  faster than a head after the other and no number depends on it.
"""

from diffprobe.probes.classifier.base import ClassifierConfig, ClassifierProbe

SHARED = ("attention", "bank", "base", "batch_norm", "inputs")
"""Files of this folder that are not classifiers."""

__all__ = ["ClassifierConfig", "ClassifierProbe"]
