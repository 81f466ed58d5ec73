"""Directions: one axis of feature space each. One file per estimator; the name of the file is `probe.name`.

A file offers `Config`, a subclass of `DirectionConfig` (the keys below `probe.params`), `NEEDS_GRAM` (whether it needs
the sum of x x^T over the training set), and one of

- `estimate(moments, config)`: the directions in closed form, one column per label column;
- `estimate_cv(folds, config)`: the same from the moments of each fold of whole groups (`config.folds`,
  `config.fold_seed`), with how each column's penalty was chosen;
- `estimate_adjusted(sums, config)`: the same from sums over nuisances too, the attributes `config.nuisances`;
- `make(config, d_in, n_columns)`: a module with `standardise(mean, variance)`, whose `forward` returns the log-odds of
  the positive end (batch, n_columns) and whose `directions()` returns (d_in, n_columns); a Trainer trains it. Such a
  file also offers `fit(x, positive, config)`, the same estimate for features in memory.
"""

from diffprobe.probes.direction.base import ContrastPair, Direction, DirectionConfig, class_means, random_directions

SHARED = ("base",)
"""Files of this folder that are not estimators."""

__all__ = ["ContrastPair", "DirectionConfig", "Direction", "class_means", "random_directions"]
