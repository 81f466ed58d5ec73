"""Caption regressors: maps between captions and features. One file per map; the name of the file is `probe.name`.

Source of the idea: Zeng et al., Decoding Diffusion, arXiv 2410.21314, which maps prompts and captions to directions;
the formulas are ours. A file offers `Config`, a subclass of `CaptionConfig` (the keys below `probe.params`), `READS`
("captions" for a map from caption embeddings to features, "features" for one from features to caption embeddings),
`make(config, d_in, d_out, seed=...)`, a module from standardised inputs to standardised outputs, and one of

- `estimate_cv(folds, config)`: the weights in closed form, from sums over each fold of whole groups (`config.folds`,
  `config.fold_seed`), with how the penalty was chosen; the weights of `make` are then not trained;
- `loss(module, x, y, weights)`: the loss of a batch, for a map to features;
- `contrast(module, found, captions, same)`: the same for a map to caption embeddings, from its outputs for the joint
  batch of all processes; with `embed(module, features, captions, seeds)` for outputs that training draws from more than
  the features, by a seed of each sample, and `INFERENCES`, values of the module's `inference`, each of which is scored.
"""

from diffprobe.probes.caption.base import CaptionConfig, CaptionRegressor

SHARED = ("base", "bag_of_words", "shuffled_captions")
"""Files of this folder that are not maps."""

__all__ = ["CaptionConfig", "CaptionRegressor"]
